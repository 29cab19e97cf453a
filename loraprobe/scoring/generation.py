"""Greedy texts, whose rows leave their batch when they end; other texts, and models with a cache of
another kind, by transformers' generate() without the model's generation_config."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loraprobe.scoring.forward import Prefix, cache_kinds, padded

# A greedy text that has repeated the same tokens so often, and over so many, goes on with them.
# Of 384 worked replies of SmolLM2-135M with adapters 128 did so, all to the end; of 134 that had
# repeated tokens three times, over 24 tokens, 4 did not.
REPEATED, LOOP = 8, 64
EVERY = 16  # tokens, after which a repetition is looked for
STAYING = 0.75  # rows that have ended leave a batch when at most this share goes on
KEEPS_ROWS = {"DynamicLayer", "DynamicSlidingWindowLayer"}  # whose rows can be selected

Ended = Callable[[Sequence[int]], bool]


class Written(NamedTuple):
    """A continuation. cut: it ended at the limit of tokens or of the context, not by itself."""

    text: str
    cut: bool


def line_ended(tokenizer: Any, until: Callable[[str], bool] | None) -> Ended:
    """Tells of new tokens, the last of which is new, whether they end with their first line.

    A line ends at a newline after text that is not white space, so an answer may begin with
    newlines. With `until` they end with the first line at whose end that is true of their text.
    """
    known = len(tokenizer)

    @functools.cache
    def text(token: int) -> str:
        plain = [token] if token < known else []
        return str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))

    def ended(tokens: Sequence[int]) -> bool:
        last = text(tokens[-1])
        if "\n" not in last:
            return False
        if "\n" not in last.lstrip() and not any(text(one).strip() for one in tokens[:-1]):
            return False
        return until is None or until(decoded(tokenizer, tokens))

    return ended


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
    stops = [] if eos is None else [int(eos)]
    wanted = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    wanted = [] if wanted is None else wanted if isinstance(wanted, (list, tuple)) else [wanted]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return stops + [int(i) for i in wanted if i in special and i not in stops]


def generate_batch(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    pad: int,
    stops: Sequence[int],
    max_new_tokens: int,
    ended: Ended = lambda tokens: False,
    options: Mapping[str, Any] = {},
) -> list[tuple[list[int], bool]]:
    """New token ids of each prompt before its first stop token, and whether the limit cut it.

    ended: tells of the new tokens of a row, after each one, whether nothing is to follow them.
    Generation is greedy unless the options, which are those of transformers' GenerationConfig, say
    otherwise.
    """
    greedy = options.keys() <= {"do_sample"} and not options.get("do_sample")
    if greedy and cache_kinds(model) <= KEEPS_ROWS and _is_plain(model):
        return _greedy(model, rows, pad, stops, max_new_tokens, ended)
    from transformers import GenerationConfig, StoppingCriteria

    ids, mask = padded(rows, pad, "left", model.device)
    start, lengths = ids.shape[1], dict[int, int]()

    class Ends(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            for row, tokens in enumerate(input_ids[:, start:].tolist()):
                if row not in lengths and ended(tokens):
                    lengths[row] = len(tokens)
            done = [row in lengths for row in range(len(input_ids))]
            return torch.tensor(done, device=input_ids.device)

    config: dict[str, Any] = {"num_beams": 1, "use_cache": True, "do_sample": False}
    config |= {"pad_token_id": pad, "eos_token_id": list(stops) or None}
    config |= {"max_new_tokens": max_new_tokens, **options}
    with own_generation_config(model, GenerationConfig()):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(**config),
            stopping_criteria=[Ends()],
        )
    new = [row[: lengths.get(i)] for i, row in enumerate(out[:, start:].tolist())]
    before_stop = [[*itertools.takewhile(lambda token: token not in stops, row)] for row in new]
    cut = [i not in lengths and len(before_stop[i]) == len(row) for i, row in enumerate(new)]
    return list(zip(before_stop, cut, strict=True))


def _is_plain(model: Any) -> bool:
    """Whether a model prepares its inputs as most do: not by reading all again at some length."""
    from transformers import GenerationMixin

    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    return prepare is GenerationMixin.prepare_inputs_for_generation


def _greedy(
    model: Any,
    rows: Sequence[Sequence[int]],
    pad: int,
    stops: Sequence[int],
    most: int,
    ended: Ended,
) -> list[tuple[list[int], bool]]:
    """`generate_batch` by the likeliest tokens; rows that have ended leave the batch.

    A row whose tokens repeat themselves is filled up with the repetition (`period`).
    """
    prefix = Prefix.read(model, rows, pad)
    new: list[list[int]] = [[] for _ in rows]
    cut, going = [True] * len(rows), dict.fromkeys(range(len(rows)))
    while True:
        tokens = prefix.logits.float().argmax(-1).cpu()
        for row, token in zip(prefix.rows, tokens.tolist(), strict=True):
            if row not in going:
                continue
            tokens_of_row = new[row]
            if token in stops:
                cut[row] = False
            else:
                tokens_of_row.append(token)
                cut[row] = not ended(tokens_of_row)
            if not cut[row] or len(tokens_of_row) == most:
                del going[row]
            elif len(tokens_of_row) % EVERY == 0 and (size := period(tokens_of_row)):
                repeated = itertools.cycle(tokens_of_row[len(tokens_of_row) - size :])
                tokens_of_row += itertools.islice(repeated, most - len(tokens_of_row))
                del going[row]
        if not going:
            return list(zip(new, cut, strict=True))
        if len(going) <= STAYING * len(prefix.rows):
            places = [place for place, row in enumerate(prefix.rows) if row in going]
            tokens = tokens[places]
            prefix.select(places)
        prefix.forward(tokens[:, None].to(model.device))


def period(tokens: Sequence[int]) -> int:
    """The number of tokens that are repeated at the end of a text, at least REPEATED times and over
    at least LOOP tokens; 0 if none are."""
    for size in range(1, len(tokens) // REPEATED + 1):
        length = max(REPEATED * size, LOOP)
        if len(tokens) >= length and tokens[-length:-size] == tokens[size - length :]:
            return size
    return 0


@contextlib.contextmanager
def own_generation_config(model: Any, config: Any) -> Iterator[None]:
    """Replaces the model's generation_config while the context lasts.

    generate() takes missing options from it, such as a repetition penalty or suppressed tokens.
    """
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
