"""One forward pass of a model, for gates that are decided once for a whole prompt.

A token router whose gates depend on one input alone does not use this module. Where one decision
is for a whole prompt, the gates ask `current_pass()` for what a single module cannot see: which
tokens are padding, whether a sequence begins or goes on, and what has been decided already.

A model's head is an exception: it is given only the tokens whose logits are needed, so it decides
by the last token of a prompt, which it is always given.

A sequence begins with a pass that has no cache and goes on while that cache grows. Without a cache
every pass begins anew, whatever its tokens repeat.
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

from loraprobe.batch_context import followed_rows, prompt_ends
from loraprobe.errors import UsageError


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass of `rows` rows with `tokens` tokens each.

    prompt: [rows, tokens], which tokens are those of a prompt; None where they all are. begins:
    whether the sequences start in this pass. follows: [rows], the row of the sequences' first pass
    that each row continues; None if they are the same. decided: the scores [rows, ..., k] that each
    module, by its path, has decided by for these sequences. problem: why the rows are not known, ""
    if they are. heads: paths of the model's head; kept: the positions whose tokens the head is
    given, None for all.
    """

    rows: int
    tokens: int
    prompt: Tensor | None
    begins: bool
    decided: dict[str, Tensor]
    follows: Tensor | None = None
    problem: str = ""
    heads: frozenset[str] = frozenset()
    kept: Tensor | None = None

    def over_prompt(self, scores: Tensor, leading: Sequence[int], path: str) -> Tensor:
        """Means over the prompts' tokens: [rows, ...] of scores [*leading, ...].

        leading: (rows, tokens), or their product where the rows lie one after the other. A head's
        are scores of the last token of each prompt.
        """
        self.check(path)
        if path in self.heads:
            return self._at_prompts_end(scores, leading, path)
        if math.prod(leading) != self.rows * self.tokens or leading[0] % self.rows:
            raise UsageError(
                f"Module {path} reads other tokens than those of the {self.rows} prompts of "
                f"{self.tokens} tokens (an input of shape {tuple(leading)}), so no gate for a "
                "whole prompt can be decided there; use per=token."
            )
        rest = scores.shape[len(leading) :]
        scores = scores.reshape(self.rows, self.tokens, *rest)
        if self.prompt is None:
            return scores.mean(1)
        counted = self.prompt.to(scores.device)
        ones = (1,) * len(rest)
        kept = scores * counted.reshape(*counted.shape, *ones)
        return kept.sum(1) / counted.sum(1).clamp_min(1).reshape(-1, *ones)

    def _at_prompts_end(self, scores: Tensor, leading: Sequence[int], path: str) -> Tensor:
        """[rows, ...] of scores [rows, tokens that the head is shown, ...]."""
        every = torch.arange(self.tokens)
        shown = every if self.kept is None or leading[-1] == self.tokens else self.kept.cpu()
        last = torch.full((self.rows,), self.tokens - 1)
        if self.prompt is not None:
            last = (self.prompt.cpu() * every).amax(1)
        there = shown == last[:, None]
        if tuple(leading) != (self.rows, len(shown)) or not bool(there.any(1).all()):
            raise UsageError(
                f"The head {path} is not shown the last token of every prompt, so it cannot decide "
                "for them; use per=token."
            )
        index = there.int().argmax(1).to(scores.device)
        return scores[torch.arange(self.rows, device=scores.device), index]

    def of_rows(self, scores: Tensor) -> Tensor:
        """Scores [rows, ...] of the sequences' beginning, as the rows of this pass follow it."""
        return scores if self.follows is None else scores[self.follows.to(scores.device)]

    def check(self, path: str) -> None:
        """Raises UsageError where it cannot be told which sequences the rows are."""
        if self.problem:
            raise UsageError(f"Module {path}: {self.problem}")


_NOW: ContextVar[Pass | None] = ContextVar("forward_pass", default=None)


def current_pass(path: str) -> Pass:
    """The pass that the composed model is in. Raises UsageError outside of one."""
    now = _NOW.get()
    if now is None:
        raise UsageError(
            f"Gates of {path} are decided for whole prompts (per=sequence), so they exist only in "
            "a forward pass of the composed model."
        )
    return now


@contextlib.contextmanager
def following_passes(model: nn.Module) -> Iterator[None]:
    """While the context lasts, each forward pass of the model can be asked for."""
    follower = SequenceTracker(model)
    begin = model.register_forward_pre_hook(follower.begin, with_kwargs=True)
    end = model.register_forward_hook(follower.end, always_call=True)
    try:
        yield
    finally:
        begin.remove()
        end.remove()


class SequenceTracker:
    """Remembers the sequences that the last beginning pass has opened."""

    def __init__(self, model: nn.Module) -> None:
        self.names = list(inspect.signature(model.forward).parameters)
        find: Any = getattr(model, "get_output_embeddings", None)
        head = None if find is None else find()
        found = (name for name, module in model.named_modules() if module is head)
        self.heads = frozenset(found if head is not None else ())
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
            return Pass(
                0,
                0,
                None,
                True,
                {},
                problem="the model was called with neither "
                "input_ids nor inputs_embeds, so its prompts cannot be told.",
            )
        rows, tokens = int(ids.shape[0]), int(ids.shape[1])
        cache = given.get("past_key_values")
        cache = given.get("cache") if cache is None else cache
        past = _length(cache)
        if past == 0:
            prompt, problem = _prompt(given.get("attention_mask"), rows, tokens)
            self.decided, self.rows, self.seen = {}, rows, tokens
            self.cache = None if cache is None else weakref.ref(cache)
            kept = _kept(given.get("logits_to_keep", 0), tokens)
            return Pass(rows, tokens, prompt, True, self.decided, None, problem, self.heads, kept)
        follows, problem = self._continued(cache, past, rows)
        if follows is None:
            self.seen = past + tokens
        return Pass(rows, tokens, None, False, self.decided, follows, problem)

    def _continued(self, cache: Any, past: int, rows: int) -> tuple[Tensor | None, str]:
        """Which rows go on, if it was told, and what is wrong with them."""
        told = followed_rows()
        if told is not None:
            if len(told) != rows or (told and max(told) >= self.rows):
                return None, "the rows said to follow the prompts are not those of this batch."
            return torch.tensor(told, dtype=torch.long), ""
        same = self.cache() is cache if self.cache is not None else past == self.seen
        if not same or rows != self.rows:
            return None, (
                "the cache is not that of the prompts that the model has read last (or has other "
                "rows), so per=sequence cannot tell whose gates to keep; read the prompts again, "
                "or use per=token."
            )
        return None, ""


def _kept(wanted: int | Tensor | None, tokens: int) -> Tensor | None:
    """The positions whose logits are wanted; None for all."""
    if isinstance(wanted, Tensor):
        return wanted
    return torch.arange(tokens)[-wanted:] if wanted else None


def _length(cache: Any) -> int:
    """How many tokens a cache holds."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2]) if len(cache) else 0


def _prompt(mask: Tensor | None, rows: int, tokens: int) -> tuple[Tensor | None, str]:
    """Which tokens are a prompt's, [rows, tokens]: no padding, and nothing after its end."""
    if mask is not None and mask.shape != (rows, tokens):
        return None, (
            f"an attention mask of shape {tuple(mask.shape)} does not say which of {rows} x "
            f"{tokens} tokens are padding, so per=sequence cannot leave it out; pass one of shape "
            "[rows, tokens], or use per=token."
        )
    ends = prompt_ends()
    kept = None if mask is None else mask.bool()
    if ends is not None and len(ends) == rows:
        device = None if mask is None else mask.device
        before = torch.arange(tokens, device=device) < torch.tensor(ends, device=device)[:, None]
        kept = before if kept is None else kept & before
    return (None if kept is None or bool(kept.all()) else kept), ""
