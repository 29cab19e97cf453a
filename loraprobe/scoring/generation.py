"""Generation with transformers' generate(), without the model's generation_config."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loraprobe.scoring.forward import padded


class Written(NamedTuple):
    """A continuation. cut: it ended at the limit of tokens or of the context, not by itself."""

    text: str
    cut: bool


class NewlineTokens:
    """Tokens that end a line, computed once from the tokenizer's vocabulary.

    A line ends at the first newline after text that is not white space, so an answer may begin with
    newlines.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def masks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Booleans [vocab] per token id: has text; has a newline; has a newline after text.

        White space does not count as text.
        """
        ids = range(len(self._tokenizer))
        texts = self._tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        return (
            torch.tensor([bool(text.strip()) for text in texts]),
            torch.tensor(["\n" in text for text in texts]),
            torch.tensor(["\n" in text.lstrip() for text in texts]),
        )

    def stopper(self, until: Callable[[str], bool] | None = None) -> Any:
        """A transformers StoppingCriteria for one call of generate().

        A row ends at the end of its first line, or with `until` at the first newline at which that
        is true of its text. Afterwards `lengths` has the number of new tokens of each row
        that ended so.
        """
        from transformers import StoppingCriteria

        masks, text = self.masks, functools.partial(decoded, self._tokenizer)

        class EndOfLine(StoppingCriteria):
            begun: Tensor | None = None
            written = 0

            def __init__(self) -> None:
                self.lengths: dict[int, int] = {}

            def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                token = input_ids[:, -1].cpu().clamp_max(len(masks[0]) - 1)
                word, newline, after = (mask[token] for mask in masks)
                before = torch.zeros_like(word) if self.begun is None else self.begun
                self.begun, self.written = before | word, self.written + 1
                ended = torch.where(before, newline, after)
                for row in ended.nonzero().flatten().tolist():
                    if row not in self.lengths:
                        if until is None or until(text(input_ids[row, -self.written :])):
                            self.lengths[row] = self.written
                        else:
                            ended[row] = False
                return ended.to(input_ids.device)

        return EndOfLine()


def decoded(tokenizer: Any, ids: Any) -> str:
    """The text of token ids without special tokens."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def first_line(text: str) -> str:
    """The first line that is not blank; "" if there is none."""
    return next((line for line in text.split("\n") if line.strip()), "")


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's EOS and the model's end-of-turn tokens.

    The model's ids count only if the tokenizer marks them as special, because the default
    eos_token_id of a config may be an ordinary word of another vocabulary.
    """
    eos = tokenizer.eos_token_id
    found = [] if eos is None else [int(eos)]
    wanted = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    wanted = [] if wanted is None else wanted if isinstance(wanted, (list, tuple)) else [wanted]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return found + [int(i) for i in wanted if i in special and i not in found]


def generate_batch(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    pad: int,
    stops: Sequence[int],
    max_new_tokens: int,
    stopper: Any = None,
    options: Mapping[str, Any] = {},
) -> list[tuple[list[int], bool]]:
    """New token ids of each prompt before its first stop token, and whether the limit cut it.

    Generation is greedy unless the options, which are those of transformers' GenerationConfig, say
    otherwise.
    """
    from transformers import GenerationConfig

    ids, mask = padded(rows, pad, "left", model.device)
    own: dict[str, Any] = {"num_beams": 1, "use_cache": True, "do_sample": False}
    own |= {"pad_token_id": pad, "eos_token_id": list(stops) or None}
    own |= {"max_new_tokens": max_new_tokens, **options}
    with own_generation_config(model, GenerationConfig()):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(**own),
            stopping_criteria=[stopper] if stopper is not None else None,
        )
    ended = {} if stopper is None else stopper.lengths
    new = [row[: ended.get(i)] for i, row in enumerate(out[:, ids.shape[1] :].tolist())]
    kept = [[*itertools.takewhile(lambda token: token not in stops, row)] for row in new]
    cut = [i not in ended and len(kept[i]) == len(row) for i, row in enumerate(new)]
    return list(zip(kept, cut, strict=True))


@contextlib.contextmanager
def own_generation_config(model: Any, config: Any) -> Iterator[None]:
    """Replaces the model's generation_config while the context lasts.

    generate() takes missing options from it, such as a repetition penalty or suppressed tokens.
    """
    had = "generation_config" in vars(model)
    before = getattr(model, "generation_config", None)
    model.generation_config = config
    try:
        yield
    finally:
        if had:
            model.generation_config = before
        else:
            del model.generation_config
