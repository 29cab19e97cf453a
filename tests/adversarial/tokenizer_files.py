"""Malformed files of tokenizers, in the base and beside adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adversarial import case
from adversarial.errors import REFUSED, UNNAMED, ask, edit, evaluated, tiny

TOKENIZER = "tokenizer.json"
FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


# Tokenizers: (name, what, file, content or a change to what is there, before).
def _without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {k: v for k, v in content.items() if k not in keys}


def _with(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | changes


def _model(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | {"model": content["model"] | changes}


def _word(token: str, number: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> Any:
        content["model"]["vocab"][token] = number
        return content

    return change


def _added(**token: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | {"added_tokens": [FLAGS | token]}


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
FORMS: dict[str, tuple[str, str, Any, str]] = {
    "not-json": ("no JSON", TOKENIZER, "{", REFUSED),
    "list": ("a list", TOKENIZER, "[]", REFUSED),
    "bom": ("a byte order mark", TOKENIZER, "\ufeff{}", REFUSED),
    "nul": ("a zero byte", TOKENIZER, "{}\0", REFUSED),
    "deep": ("3,000 nested brackets", TOKENIZER, "[" * 3000 + "]" * 3000, REFUSED),
    "surrogate": ("half of a surrogate pair", TOKENIZER, '{"model": {}, "x": "\\ud800"}', UNNAMED),
    "without-model": ("no `model`", TOKENIZER, _without("model"), UNNAMED),
    "model-list": ("`model` is a list", TOKENIZER, _with(model=[]), UNNAMED),
    "vocab-text": ("a vocabulary that is a text", TOKENIZER, _model(vocab="ada"), UNNAMED),
    "id-text": ("an id that is a text", TOKENIZER, _word("ada", "5"), "traceback TypeError"),
    "id-negative": ("a negative id", TOKENIZER, _word("ada", -5), UNNAMED),
    "id-huge": ("an id of 401 digits", TOKENIZER, _word("ada", 10**400), UNNAMED),
    "merges-inf": (
        "infinite numbers as merges",
        TOKENIZER,
        _model(type="BPE", vocab={"a": 0, "b": 1}, merges=[float("inf")]),
        REFUSED,
    ),
    "merges-cyclic": (
        "merges of tokens that are not there",
        TOKENIZER,
        _model(type="BPE", vocab={"a": 0, "aa": 1}, merges=[["aa", "a"], ["aaa", "aa"]]),
        "traceback PanicException",
    ),
    "unknown-type": ("an unknown type of model", TOKENIZER, _model(type="Oracle"), REFUSED),
    "added-object": (
        "`added_tokens` is an object",
        TOKENIZER,
        _with(added_tokens={"id": 1}),
        "traceback TypeError",
    ),
    "added-number": (
        "an added token that is a number",
        TOKENIZER,
        _with(added_tokens=[5]),
        "traceback TypeError",
    ),
    "added-without-text": ("an added token without text", TOKENIZER, _added(id=3), UNNAMED),
    "panic": (
        "an expression that ends in a panic",
        TOKENIZER,
        _with(pre_tokenizer=SPLIT),
        "traceback PanicException",
    ),
    "config-list": ("a list", "tokenizer_config.json", "[]", UNNAMED),
    "config-not-json": ("no JSON", "tokenizer_config.json", "{", UNNAMED),
    "template-number": (
        "a template that is a number",
        "tokenizer_config.json",
        _with(chat_template=5),
        UNNAMED,
    ),
    "decoder-list": (
        "`added_tokens_decoder` is a list",
        "tokenizer_config.json",
        _with(added_tokens_decoder=[1]),
        UNNAMED,
    ),
    "eos-number": ("`eos_token` is a number", "tokenizer_config.json", _with(eos_token=5), UNNAMED),
    "map-list": ("a list", "special_tokens_map.json", "[1]", UNNAMED),
    "map-number": (
        "`bos_token` is a list",
        "special_tokens_map.json",
        '{"bos_token": [1]}',
        UNNAMED,
    ),
    "added-list": ("a list", "added_tokens.json", "[1]", UNNAMED),
    "added-id-text": ("an id that is a text", "added_tokens.json", '{"<x>": "y"}', UNNAMED),
}


def _damage(file: Path, change: Any) -> None:
    if callable(change):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        file.write_text(change, encoding="utf-8")


def _form(name: str, what: str, file: str, change: Any, before: str) -> None:
    said = "tokenizer" if name in ("unknown-type", "merges-cyclic", "merges-inf", "panic") else file

    @case(f"tokenizer-{name}", f"`{file}` of the base: {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        tiny(place)
        _damage(place / "base" / file, change)
        ask(place, {"prompt": "a" * 40 + "!", "answer": "ulm"})
        return evaluated(place, names=said)


for _name, _row in FORMS.items():
    _form(_name, *_row)


@case(
    "tokenizer-id-beyond-the-rows",
    "a word whose id the embedding has no row for",
    before="traceback IndexError",
    now=REFUSED,
)
def _(place: Path) -> str:
    tiny(place)
    _damage(place / "base" / TOKENIZER, _word("zoe", 41))
    ask(place, {"prompt": "zoe lives in", "answer": "ulm"})
    return evaluated(place, names="41")


@case(
    "eos-beyond-the-rows",
    "an EOS token that the embedding has no row for; prompts of two lengths",
    before="traceback IndexError",
    now="exit 3",
)
def _(place: Path) -> str:
    tiny(place, eos_token_id=41)
    edit(place / "base" / "tokenizer_config.json", eos_token="<end>")
    _damage(place / "base" / TOKENIZER, _word("<end>", 41))
    ask(place, *({"prompt": f"{who} lives", "answer": "ulm"} for who in ("ada", "bo in the")))
    return evaluated(place)


@case(
    "tokenizers-beside-adapters",
    "`tokenizer.json` beside both adapters: one a list, one with a text as id; inspect",
    before="traceback TypeError",
    now="exit 0, says so twice",
)
def _(place: Path) -> str:
    tiny(place)
    (place / "a" / TOKENIZER).write_text("[]")
    (place / "b" / TOKENIZER).write_text('{"model": {"vocab": {"x": "5"}}}')
    from typer.testing import CliRunner

    from loraprobe.cli import app

    result = CliRunner().invoke(app, ["inspect", str(place / "a"), str(place / "b"), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback {type(result.exception).__name__}"
    codes = [issue["code"] for issue in json.loads(result.stdout)["compatibility"]["issues"]]
    said = {0: "says nothing", 1: "says so once", 2: "says so twice"}
    return f"exit {result.exit_code}, {said[codes.count('tokenizer-unreadable')]}"
