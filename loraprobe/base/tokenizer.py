"""Checks the files of a tokenizer and loads it by transformers.

The tokenizers library aborts on some malformed files with a Rust panic, and it runs a normaliser
that makes a text huge. Both are refused here before the library reads the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

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
        if file.is_file():
            content = read_json(file, reference, limit="tokenizer")

            def refuse(what: str, name: str = name) -> NoReturn:
                raise BaseError(
                    f"{name} of {reference} is no tokenizer's: {what}; save the tokenizer again."
                )

            check(content, refuse)
            found = content if name == "tokenizer.json" else found
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


Refuse = Callable[[str], NoReturn]


def _tokenizer(content: dict[str, Any], refuse: Refuse) -> None:
    model = content.get("model")
    if not isinstance(model, dict):
        refuse("it has no object 'model'")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        for token, number in vocab.items():
            _check_id(number, f"token {token[:40]!r}", refuse)
    elif not isinstance(vocab, list | None):
        refuse("the vocabulary of its model is neither an object nor a list")
    if not isinstance(model.get("merges"), list | None):
        refuse("the merges of its model are no list")
    added = content.get("added_tokens")
    if not isinstance(added, list | None):
        refuse("its added_tokens are no list")
    for token in added or ():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            refuse("an entry of added_tokens has no text as its 'content'")
        _check_id(token.get("id"), f"added token {token['content'][:40]!r}", refuse)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if _growth(content.get(part)) > math.log(GROWTH):
            refuse(f"its {part} makes a text more than {GROWTH} times as long")


def _tokenizer_config(content: dict[str, Any], refuse: Refuse) -> None:
    template = content.get("chat_template")
    named = template if isinstance(template, list) else []
    if not isinstance(template, str | list | None) or not all(
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
        for one in named
    ):
        refuse("chat_template is neither a text nor a list of named templates")
    decoder = content.get("added_tokens_decoder")
    if not isinstance(decoder, dict | None):
        refuse("added_tokens_decoder is no object")
    for key, token in (decoder or {}).items():
        if not re.fullmatch(r"\d{1,10}", key, re.ASCII):
            refuse(f"added_tokens_decoder has the key {key[:40]!r}, which is no token id")
        _check_id(int(key), "a token of added_tokens_decoder", refuse)
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            refuse(f"token {key} of added_tokens_decoder has no text as its 'content'")
    _special_tokens(content, refuse)


def _special_tokens(content: dict[str, Any], refuse: Refuse) -> None:
    """Checks that special tokens are texts or objects with a text."""
    for key in SPECIAL & content.keys():
        token = content[key]
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            refuse(f"{key} is no token's text")


def _added_tokens(content: dict[str, Any], refuse: Refuse) -> None:
    for token, number in content.items():
        _check_id(number, f"token {token[:40]!r}", refuse)


def _chat_template(content: dict[str, Any], refuse: Refuse) -> None:
    if not isinstance(content.get("chat_template"), str):
        refuse("chat_template is no text")


def _check_id(value: Any, what: str, refuse: Refuse) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < IDS:
        refuse(f"the id of {what} is no whole number from 0 to {IDS - 1:,}")


def _growth(part: Any) -> float:
    """The logarithm of the largest factor by which all replacements may lengthen a text."""
    return sum(math.log(len(text)) for text in _replacements(part) if len(text) > 1)


def _replacements(part: Any) -> Iterator[str]:
    """The replacement texts of a part of a tokenizer and of all nested parts."""
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            text = one.get("content")
            if one.get("type") == "Replace" and isinstance(text, str):
                yield text


CHECKS: dict[str, Callable[[dict[str, Any], Refuse], None]] = {
    "tokenizer.json": _tokenizer,
    "tokenizer_config.json": _tokenizer_config,
    "special_tokens_map.json": _special_tokens,
    "added_tokens.json": _added_tokens,
    "chat_template.json": _chat_template,
}
