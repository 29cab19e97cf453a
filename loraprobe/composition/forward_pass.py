"""The current forward pass of a model, for gates that are decided once for a whole prompt.

Gates that depend on one token only do not use this module. Gates of a whole prompt call
`current_pass()` for information that a single module does not have: which tokens are padding,
whether a sequence begins or continues, and which scores were already decided.

The model's head receives only the tokens whose logits are needed, so gates of a whole prompt are
refused where an expert adapts it.

A sequence begins with a pass without a cache and continues while that cache grows. Without a cache
every pass begins new sequences. The arguments of forward() do not say where each row's prompt ends,
nor which cached prompt a row continues; the caller of the model says it by `rows_of_batch`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.errors import UsageError


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass of `rows` rows with `tokens` tokens each.

    prompt: [rows, tokens], which tokens belong to a prompt; None if all do. begins: whether the
    sequences start in this pass. follows: [rows], the row of the sequences' first pass that each
    row continues; None if the rows are the same. decided: module path -> scores [rows, ..., k] by
    which the module decided for these sequences. problem: why the rows are unknown, "" if they are
    known.
    """

    rows: int
    tokens: int
    prompt: Tensor | None
    begins: bool
    decided: dict[str, Tensor]
    follows: Tensor | None = None
    problem: str = ""

    def over_prompt(self, scores: Tensor, leading: Sequence[int], path: str) -> Tensor:
        """Means over the prompts' tokens: [rows, ...] of scores [*leading, ...].

        leading: (rows, tokens), or their product if the rows are flattened.
        """
        if math.prod(leading) != self.rows * self.tokens or leading[0] % self.rows:
            raise UsageError(
                f"Module {path} has an input of shape {tuple(leading)}, which does not fit "
                f"{self.rows} prompts of {self.tokens} tokens, so it cannot decide "
                "a gate for a whole prompt; use per=token."
            )
        rest = scores.shape[len(leading) :]
        scores = scores.reshape(self.rows, self.tokens, *rest)
        if self.prompt is None:
            return scores.mean(1)
        counted = self.prompt.to(scores.device)
        ones = (1,) * len(rest)
        of_prompt = scores * counted.reshape(*counted.shape, *ones)
        return of_prompt.sum(1) / counted.sum(1).clamp_min(1).reshape(-1, *ones)

    def of_rows(self, scores: Tensor) -> Tensor:
        """Scores [rows, ...] of the sequences' first pass, in the order of this pass's rows."""
        return scores if self.follows is None else scores[self.follows.to(scores.device)]


_NOW: ContextVar[Pass | None] = ContextVar("forward_pass", default=None)


def current_pass(path: str) -> Pass:
    """The current pass of the composed model.

    Raises UsageError outside of a pass, and if it is not known which sequences its rows belong to.
    """
    now = _NOW.get()
    if now is None:
        raise UsageError(
            f"Gates of {path} are decided for whole prompts (per=sequence), so they exist only in "
            "a forward pass of the composed model."
        )
    if now.problem:
        raise UsageError(f"Module {path}: {now.problem}")
    return now


# What the caller says of the rows: `ends` and `follows` of `rows_of_batch`.
_ROWS: ContextVar[tuple[Sequence[int] | None, Sequence[int] | None]] = ContextVar(
    "rows_of_batch", default=(None, None)
)


@contextlib.contextmanager
def rows_of_batch(
    *, ends: Sequence[int] | None = None, follows: Sequence[int] | None = None
) -> Iterator[None]:
    """Describes the rows of the passes in this context.

    ends: row i (padded on the right) begins with a prompt of ends[i] tokens. follows: row i
    continues row follows[i] of the last batch that began with an empty cache.
    """
    before = _ROWS.set((ends, follows))
    try:
        yield
    finally:
        _ROWS.reset(before)


_FOLLOWED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextlib.contextmanager
def following_passes(model: nn.Module) -> Iterator[None]:
    """`current_pass` works in the model's forward passes while the context lasts."""
    tracker = SequenceTracker(model)
    _FOLLOWED.add(model)
    begin = model.register_forward_pre_hook(tracker.begin, with_kwargs=True)
    end = model.register_forward_hook(tracker.end, always_call=True)
    try:
        yield
    finally:
        begin.remove()
        end.remove()
        _FOLLOWED.discard(model)


def is_followed(model: nn.Module) -> bool:
    """Whether gates of the model's composition are decided by passes that read whole prompts."""
    return model in _FOLLOWED


class SequenceTracker:
    """Remembers the sequences that began in the last pass without a cache."""

    def __init__(self, model: nn.Module) -> None:
        self.names = list(inspect.signature(model.forward).parameters)
        self.decided: dict[str, Tensor] = {}
        self.rows = self.seen = 0
        self.cache: weakref.ref[Any] | None = None
        self.before: list[Pass | None] = []

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.before.append(_NOW.get())
        _NOW.set(self._opened({**dict(zip(self.names, args, strict=False)), **kwargs}))

    def end(self, *_: Any) -> None:
        _NOW.set(self.before.pop() if self.before else None)

    def _opened(self, given: Mapping[str, Any]) -> Pass:
        ids = given.get("input_ids")
        ids = given.get("inputs_embeds") if ids is None else ids
        if ids is None:
            problem = "the model was called without input_ids or inputs_embeds, so its prompts "
            return Pass(0, 0, None, True, {}, problem=f"{problem}are unknown.")
        rows, tokens = int(ids.shape[0]), int(ids.shape[1])
        cache = given.get("past_key_values")
        cache = given.get("cache") if cache is None else cache
        past = _length(cache)
        if past == 0:
            prompt, problem = _prompt(given.get("attention_mask"), rows, tokens)
            self.decided, self.rows, self.seen = {}, rows, tokens
            self.cache = None if cache is None else weakref.ref(cache)
            return Pass(rows, tokens, prompt, True, self.decided, None, problem)
        _, known = _ROWS.get()
        follows, problem = None, ""  # the rows that are continued, if the caller gave them
        same = self.cache() is cache if self.cache is not None else past == self.seen
        if known is not None and (len(known) != rows or max(known, default=-1) >= self.rows):
            problem = "the rows given by rows_of_batch do not fit this batch."
        elif known is not None:
            follows = torch.tensor(known, dtype=torch.long)
        elif not same or rows != self.rows:
            problem = (
                "the cache does not belong to the prompts that the model read last, or has other "
                "rows, so per=sequence does not know which gates to keep; read the prompts again, "
                "or use per=token."
            )
        if follows is None:
            self.seen = past + tokens
        return Pass(rows, tokens, None, False, self.decided, follows, problem)


def _length(cache: Any) -> int:
    """The number of tokens in a cache."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2]) if len(cache) else 0


def _prompt(mask: Tensor | None, rows: int, tokens: int) -> tuple[Tensor | None, str]:
    """Which tokens belong to a prompt, [rows, tokens] or None for all; and the problem or ""."""
    if mask is not None and mask.shape != (rows, tokens):
        return None, (
            f"an attention mask of shape {tuple(mask.shape)} does not say which of {rows} x "
            f"{tokens} tokens are padding, so per=sequence cannot leave it out; pass one of shape "
            "[rows, tokens], or use per=token."
        )
    ends, _ = _ROWS.get()
    prompt = None if mask is None else mask.bool()
    if ends is not None and len(ends) == rows:
        device = None if mask is None else mask.device
        before = torch.arange(tokens, device=device) < torch.tensor(ends, device=device)[:, None]
        prompt = before if prompt is None else prompt & before
    return (None if prompt is None or bool(prompt.all()) else prompt), ""
