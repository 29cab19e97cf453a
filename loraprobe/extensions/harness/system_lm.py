"""A ModelScorer as a model of lm-evaluation-harness: `SystemLM` answers its requests.

Texts become tokens, and replies texts, as in the harness's own HFLM, so that both give equal
scores; prompts that do not fit into the context lose their beginning, as there. Batches, shared
prompts and memory are the scorer's. The composition is the one that is in its model.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from loraprobe.errors import BaseError, TaskError
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.forward import seeded
from loraprobe.scoring.generation import generate_batch

LONGEST = 2048  # tokens of a context whose length the model does not say, as in the harness
NEW_TOKENS = 256  # of a reply whose task sets no limit, as in the harness
SEED = 1234  # of replies that a task samples
CACHED = 1024  # texts whose tokens are kept


class SystemLM(TemplateLM):
    """Answers requests of the harness with a ModelScorer; chat: prompts have the chat template."""

    def __init__(self, scorer: ModelScorer) -> None:
        super().__init__()
        self.scorer, self.tokenizer, self.chat = scorer, scorer.tokenizer, scorer.chat_template
        # The choices of an item share its prompt.
        self.tok_encode = functools.lru_cache(CACHED)(self.tok_encode)  # type: ignore[method-assign]

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """The tokens of a context."""
        return self.scorer.context or LONGEST

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as a prompt. A template that knows no system turn gets the others."""
        form = {"add_generation_prompt": add_generation_prompt}
        form |= {"continue_final_message": not add_generation_prompt}
        try:
            return self.scorer.encoder.filled(chat_history, **form)
        except BaseError:
            rest = [turn for turn in chat_history if turn["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            return self.scorer.encoder.filled(rest, **form)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, with special tokens unless the text begins with one that it needs."""
        if add_special_tokens is None and has_bos_prefix(
            string, self.tokenizer.decode(self.prefix_token_id)
        ):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, verbose=False, **options))

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether each of its tokens is the likeliest."""
        rows = []
        for _texts, context, continuation in requests:
            ids = (context + continuation)[-(self.max_length + 1) :]
            if len(ids) <= len(continuation):
                raise TaskError(
                    f"A text of {len(continuation):,} tokens is to be scored, and the model's "
                    f"context holds {self.max_length:,}:",
                    "choose another task.",
                )
            rows.append((ids, len(ids) - len(continuation)))
        found = self.scorer.score_tokens(rows)
        return [(one.logprob, max(one.rank) == 1) for one in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of each whole text, in windows of the context's length."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logprob
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that the model writes after each prompt, up to the first stop text."""
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        for chosen in alike.values():
            self._write([requests[i] for i in chosen], chosen, texts)
        return texts

    def _write(self, requests: Sequence[Any], places: Sequence[int], texts: list[str]) -> None:
        """Writes the replies of requests of equal options to their places in `texts`."""
        options = dict(normalize_gen_kwargs(requests[0].args[1], NEW_TOKENS))
        eos = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(options.pop("until"), eos=eos)
        most, room = options["max_gen_toks"], self.max_length - options.pop("max_gen_toks")
        if room < 1:
            raise TaskError(
                f"Replies of {most:,} tokens leave no room for a prompt in the model's context of "
                f"{self.max_length:,}: lower --max-new-tokens."
            )
        rows = [self.tok_encode(request.args[0])[-room:] for request in requests]
        texts_of_stops = [stop for stop in stops if stop]
        window = max(map(len, texts_of_stops), default=0) + 2

        def ended(tokens: Sequence[int]) -> bool:
            text = self.tokenizer.decode(tokens[-window:])
            return any(stop in text for stop in texts_of_stops)

        def work(batch: Sequence[int]) -> None:
            new = generate_batch(
                self.scorer.model,
                [rows[i] for i in batch],
                pad=self.scorer.pad,
                stops=self.scorer.stops,
                max_new_tokens=most,
                ended=ended,
                options=self._options(options),
            )
            for i, (ids, _) in zip(batch, new, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                texts[places[i]] = postprocess_generated_text(text, stops, None)

        # What is sampled depends on the batches, so none is larger than one pass can read.
        batches = self.scorer.batcher.split([len(row) for row in rows], new=most)
        with seeded(SEED, self.scorer.model.device):
            self.scorer.run(batches, work)

    def _options(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Options of transformers' generate: the model's own, then those of the task."""
        own = self.scorer.model.generation_config.to_diff_dict()
        kept = {k: v for k, v in own.items() if k[0] != "_" and "token" not in k and "max" not in k}
        found = {**kept, **asked}
        found.pop("transformers_version", None)
        if not found.get("do_sample"):
            for sampling in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
                found.pop(sampling, None)
        return found
