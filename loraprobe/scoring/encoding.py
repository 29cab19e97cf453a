"""Text -> token ids, with special tokens, chat templates, and joined continuations."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe.base.quiet import silenced
from loraprobe.errors import BaseError, TaskError, UsageError
from loraprobe.formatting import size
from loraprobe.untrusted import deadline, error_line, memory_limit

# The sandbox of transformers limits neither the time nor the memory of a template.
TEMPLATE_SECONDS = 10.0
TEMPLATE_BYTES = 2**30
TEMPLATE_LONGEST = 1_000_000  # characters that a template may add to a prompt

# Scripts without spaces between words: the answer follows its prompt directly.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
CLOSING = frozenset(".,;:!?)]}%’”")
OPENING = frozenset("([{‘“¿¡$£€#/-_")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encodes prompts for a model.

    With `chat` a prompt becomes a user turn of the tokenizer's chat template, followed by the
    beginning of the assistant's turn. The template contains the BOS, so none is added. Without
    `chat` the tokenizer adds its special tokens, except an EOS at the end.

    rows: the number of rows of the model's embedding, to check ids; None for no check.
    """

    tokenizer: Any
    chat: bool = False
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.chat and not getattr(self.tokenizer, "chat_template", None):
            raise UsageError(
                "The base model's tokenizer has no chat template; use --chat-template=off."
            )

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, at least one per prompt."""
        texts = [self.text(prompt) for prompt in prompts]
        return [self._started(ids) for ids in self._ids(texts)]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """(ids of prompt and continuation together, index of the continuation's first token).

        As in lm-evaluation-harness, spaces at the end of a prompt move to the continuation, both
        are tokenised together, and the continuation begins after the prompt's own tokens. If the
        tokenizer merges characters of both into one token, it begins with that token. `joined`
        defines the space between the two; after a chat template there is none.
        """
        contexts, wholes = [], []
        for prompt, continuation in pairs:
            if not continuation.strip():
                raise TaskError(f"The continuation of prompt {prompt[:60]!r} is empty.")
            text = self.text(prompt)
            context = text if self.chat else text.rstrip(" ")
            rest = continuation.lstrip() if self.chat else joined(text, continuation)
            contexts.append(context)
            wholes.append(context + text[len(context) :] + rest)
        unique = list(dict.fromkeys(contexts))
        known = dict(zip(unique, self._ids(unique), strict=True))
        return [
            self._boundary(known[context], whole)
            for context, whole in zip(contexts, self._ids(wholes), strict=True)
        ]

    def text(self, prompt: str) -> str:
        """The text that is tokenised: the prompt, or the chat template filled with it.

        Without a prompt there is no turn: a text stands by itself.
        """
        if not self.chat or not prompt:
            return prompt
        return self.filled([{"role": "user", "content": prompt}], add_generation_prompt=True)

    def filled(self, turns: Sequence[dict[str, str]], **form: bool) -> str:
        """The chat template filled with turns. form: options of `apply_chat_template`."""
        slow = _template_error(f"does not end within {TEMPLATE_SECONDS:g} seconds")
        prompt = "".join(turn["content"] for turn in turns)
        try:
            with deadline(TEMPLATE_SECONDS, slow), memory_limit(TEMPLATE_BYTES):
                text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, **form)
        except BaseError:
            raise
        except MemoryError:
            raise _template_error(f"takes more than {size(TEMPLATE_BYTES)} of memory") from None
        except Exception as error:  # a template may raise any exception
            raise _template_error(f"cannot be filled ({error_line(error)})") from None
        if not text.strip():
            raise _template_error(f"makes an empty text of the prompt {prompt[:60]!r}")
        if len(text) > TEMPLATE_LONGEST + 10 * len(prompt):
            raise _template_error(f"makes {len(text):,} characters of a prompt of {len(prompt):,}")
        return text

    def opening(self) -> list[int]:
        """Token ids before a user's first word: BOS, or the template up to the user's turn."""
        marker = "loraprobe-marker"
        text = self.text(marker).partition(marker)[0] if self.chat else ""
        return self._started(self._ids([text])[0])

    def _boundary(self, context: list[int], whole: list[int]) -> tuple[list[int], int]:
        start = 0
        while start < min(len(context), len(whole)) and context[start] == whole[start]:
            start += 1
        if whole == context:
            raise TaskError(
                "The tokenizer of the base makes no token of an answer or a choice; write it in "
                "characters that the base knows, or leave the item out."
            )
        if start == 0:  # a first token must precede the continuation
            started = self._started([])
            return [*started, *whole], len(started)
        return whole, min(start, len(whole) - 1)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; one call of the tokenizer with special tokens, one without."""
        encoded_texts: list[list[int]] = [[] for _ in texts]
        bos = getattr(self.tokenizer, "bos_token", None)
        for special in (True, False):
            chosen = [
                i
                for i, text in enumerate(texts)
                if special != (self.chat or bool(bos and text.startswith(bos)))
            ]
            if chosen:
                encoded = self._encoded([texts[i] for i in chosen], special)
                for i, ids in zip(chosen, encoded, strict=True):
                    ended = len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id
                    appended = ended and not texts[i].endswith(self.tokenizer.eos_token)
                    encoded_texts[i] = list(ids[:-1] if appended else ids)
        return encoded_texts

    def _encoded(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """The tokenizer's token ids.

        Raises BaseError if it fails on a text, or gives an id for which the model has no row.
        """
        try:
            with silenced():
                rows = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is not an Exception
            raise BaseError(
                f"The tokenizer of the base fails on {texts[0][:60]!r} "
                f"({error_line(error)}); save the tokenizer again."
            ) from None
        largest = max((max(row, default=0) for row in rows), default=0)
        if self.rows is not None and largest >= self.rows:
            raise BaseError(
                f"The tokenizer of the base gives token ids up to {largest:,}, and the "
                f"model has rows for {self.rows:,}; give the tokenizer that belongs "
                "to the model, or resize the model's embedding."
            )
        return rows

    def _started(self, ids: list[int]) -> list[int]:
        if ids:
            return ids
        for start in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if start is not None:
                return [start]
        raise TaskError(
            "The tokenizer makes no token of a prompt and has no BOS token to start from; "
            "leave the prompt out, or save the tokenizer with a BOS token."
        )


def _template_error(problem: str) -> BaseError:
    return BaseError(f"The chat template of the base {problem}; use --chat-template=off.")


def joined(prompt: str, continuation: str) -> str:
    """The continuation with the space that separates it from its prompt.

    One space is added if there is no white space between the two, except before closing
    punctuation, after an opening sign, and in scripts without spaces. Two spaces become one.
    """
    if prompt.endswith(" "):
        return continuation.lstrip(" ")
    if not prompt or prompt[-1].isspace() or continuation[0].isspace():
        return continuation
    if continuation[0] in CLOSING or prompt[-1] in OPENING:
        return continuation
    if _unspaced(prompt[-1]) or _unspaced(continuation[0]):
        return continuation
    return " " + continuation


def _unspaced(character: str) -> bool:
    return ord(character) > 0xE00 and unicodedata.name(character, "").startswith(UNSPACED)


def tokens_left(
    context: int | None, ids: Sequence[int], prompt: str, wanted: int, more: str = ""
) -> int:
    """How many tokens may follow the ids, at most `wanted`. Raises TaskError if none.

    context: the largest number of tokens of a sequence; None for no limit. more: text for the error
    that says what the ids contain besides the prompt.
    """
    if context is None:
        return wanted
    # The last token needs no position, because nothing follows it.
    left = context - len(ids) + 1
    if left < 1:
        raise TaskError(
            f"The prompt {prompt[:60]!r}{more} has {len(ids):,} tokens, but the "
            f"model's context holds {context:,}; shorten {'both' if more else 'it'}."
        )
    return min(wanted, left)
