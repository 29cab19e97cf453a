"""Checks the files of a tokenizer and loads it by transformers.

The tokenizers library aborts on some malformed files with a Rust panic, and it runs a normaliser
that makes a text huge. Both are refused here before the library reads the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraprobe import limits
from loraprobe.base.quiet import silenced
from loraprobe.checkpoint import first_line, read_json
from loraprobe.errors import BaseError

IDS = 2**32  # the library stores token ids as 32-bit numbers
SPECIAL = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
GROWTH = 1000  # the largest factor by which a normaliser may lengthen a text


def check_tokenizer(directory: Path, reference: str) -> dict[str, Any]:
    """Checks all JSON files of a tokenizer; returns tokenizer.json, {} if there is none.

    Raises BaseError, naming file and key, for invalid JSON, a wrong type, an id that is not a
    32-bit number, and a normaliser that lengthens a text too much.
    """
    found: dict[str, Any] = {}
    for name, check in CHECKS.items():
        file = directory / name
        if not file.is_file():
            continue
        content = read_json(file, reference, largest=limits.TOKENIZER)
        try:
            check(content)
        except _Malformed as problem:
            raise BaseError(
                f"{name} of {reference} is no tokenizer's: {problem}; save the tokenizer again."
            ) from None
        if name == "tokenizer.json":
            found = content
    return found


def tokenizer_size(directory: Path, reference: str) -> int | None:
    """One more than the largest token id of tokenizer.json; None if there is no id."""
    tokenizer = check_tokenizer(directory, reference)
    vocab = tokenizer.get("model", {}).get("vocab") or {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
    ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
    return max(ids, default=-1) + 1 or None


def load_tokenizer(directory: Path, reference: str, trusted: bool) -> Any:
    """The tokenizer, with a padding token. Raises BaseError if it cannot be loaded."""
    from transformers import AutoTokenizer

    check_tokenizer(directory, reference)
    try:
        with silenced():
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), trust_remote_code=trusted, local_files_only=True
            )
            tokenizer(["a"])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        raise BaseError(
            f"{reference} has no tokenizer that loads ({first_line(error)}); "
            "save the tokenizer beside the model."
        ) from error
    if tokenizer.pad_token_id is None:  # batches need one, which is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


class _Malformed(Exception):
    """Raised with what is wrong in a file of a tokenizer."""


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _Malformed(problem)


def _tokenizer(content: dict[str, Any]) -> None:
    model: Any = content.get("model")
    added = content.get("added_tokens")
    _require(isinstance(model, dict), "it has no object 'model'")
    vocab = model.get("vocab")
    _require(
        isinstance(vocab, dict | list | None),
        "the vocabulary of its model is neither an object nor a list",
    )
    if isinstance(vocab, dict):
        _added_tokens(vocab)
    _require(isinstance(model.get("merges"), list | None), "the merges of its model are no list")
    _require(isinstance(added, list | None), "its added_tokens are no list")
    for token in added or ():
        _require(_has_text(token), "an entry of added_tokens has no text as its 'content'")
        _check_id(token.get("id"), f"added token {token['content'][:40]!r}")
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        longer = _growth(content.get(part)) > math.log(GROWTH)
        _require(not longer, f"its {part} makes a text more than {GROWTH} times as long")


def _tokenizer_config(content: dict[str, Any]) -> None:
    template = content.get("chat_template")
    named = template if isinstance(template, list) else []
    _require(
        isinstance(template, str | list | None)
        and all(_has_text(one, "name") and _has_text(one, "template") for one in named),
        "chat_template is neither a text nor a list of named templates",
    )
    decoder = content.get("added_tokens_decoder")
    _require(isinstance(decoder, dict | None), "added_tokens_decoder is no object")
    for key, token in (decoder or {}).items():
        is_id = re.fullmatch(r"\d{1,10}", key, re.ASCII) is not None
        _require(is_id, f"added_tokens_decoder has the key {key[:40]!r}, which is no token id")
        _check_id(int(key), "a token of added_tokens_decoder")
        text = f"token {key} of added_tokens_decoder has no text as its 'content'"
        _require(_has_text(token), text)
    _special_tokens(content)


def _special_tokens(content: dict[str, Any]) -> None:
    """Checks that special tokens are texts or objects with a text."""
    for key in SPECIAL & content.keys():
        token = content[key]
        _require(isinstance(token, str | None) or _has_text(token), f"{key} is no token's text")


def _added_tokens(content: dict[str, Any]) -> None:
    """Checks an object from tokens to ids."""
    for token, number in content.items():
        _check_id(number, f"token {token[:40]!r}")


def _has_text(value: Any, key: str = "content") -> bool:
    return isinstance(value, dict) and isinstance(value.get(key), str)


def _check_id(value: Any, what: str) -> None:
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < IDS
    _require(is_id, f"the id of {what} is no whole number from 0 to {IDS - 1:,}")


def _growth(part: Any) -> float:
    """The logarithm of the largest factor by which all replacements may lengthen a text."""
    waiting, growth = [part], 0.0
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            if one.get("type") == "Replace" and _has_text(one):
                growth += math.log(max(len(one["content"]), 1))
    return growth


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "tokenizer.json": _tokenizer,
    "tokenizer_config.json": _tokenizer_config,
    "special_tokens_map.json": _special_tokens,
    "added_tokens.json": _added_tokens,
    "chat_template.json": lambda content: _require(
        _has_text(content, "chat_template"), "chat_template is no text"
    ),
}
