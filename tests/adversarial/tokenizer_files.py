"""Malformed files of tokenizers, in the base and beside adapters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import making

from adversarial import call, case, cases, ended
from adversarial.errors import TOKENIZER, ask, evaluated, tiny

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}


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


SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
INFINITE = _model(type="BPE", vocab={"a": 0, "b": 1}, merges=[float("inf")])
CYCLIC = _model(type="BPE", vocab={"a": 0, "aa": 1}, merges=[["aa", "a"], ["aaa", "aa"]])
# Name -> the file of the base, its content or a change to what is there, what the sentence names.
FORMS: dict[str, tuple[str, Any, str]] = {
    "not-json": (TOKENIZER, "{", TOKENIZER),
    "list": (TOKENIZER, "[]", TOKENIZER),
    "bom": (TOKENIZER, "\ufeff{}", TOKENIZER),
    "nul": (TOKENIZER, "{}\0", TOKENIZER),
    "deep": (TOKENIZER, "[" * 3000 + "]" * 3000, TOKENIZER),
    "surrogate": (TOKENIZER, '{"model": {}, "x": "\\ud800"}', TOKENIZER),
    "without-model": (TOKENIZER, _without("model"), "tokenizer"),
    "model-list": (TOKENIZER, _with(model=[]), TOKENIZER),
    "vocab-text": (TOKENIZER, _model(vocab="ada"), "tokenizer"),
    "id-text": (TOKENIZER, _word("ada", "5"), "tokenizer"),
    "id-negative": (TOKENIZER, _word("ada", -5), "tokenizer"),
    "id-huge": (TOKENIZER, _word("ada", 10**400), "tokenizer"),
    "merges-inf": (TOKENIZER, INFINITE, "tokenizer"),
    "merges-cyclic": (TOKENIZER, CYCLIC, "tokenizer"),
    "unknown-type": (TOKENIZER, _model(type="Oracle"), "tokenizer"),
    "added-object": (TOKENIZER, _with(added_tokens={"id": 1}), TOKENIZER),
    "added-number": (TOKENIZER, _with(added_tokens=[5]), TOKENIZER),
    "added-without-text": (TOKENIZER, _with(added_tokens=[FLAGS | {"id": 3}]), "tokenizer"),
    "panic": (TOKENIZER, _with(pre_tokenizer=SPLIT), "tokenizer"),
    "config-list": (SETTINGS, "[]", SETTINGS),
    "config-not-json": (SETTINGS, "{", SETTINGS),
    "template-number": (SETTINGS, _with(chat_template=5), "template"),
    "decoder-list": (SETTINGS, _with(added_tokens_decoder=[1]), "tokenizer"),
    "eos-number": (SETTINGS, _with(eos_token=5), "tokenizer"),
    "map-list": (SPECIAL, "[1]", SPECIAL),
    "map-number": (SPECIAL, '{"bos_token": [1]}', "tokenizer"),
    "added-list": (ADDED, "[1]", ADDED),
    "added-id-text": (ADDED, '{"<x>": "y"}', "tokenizer"),
}


def _damage(file: Path, change: Any) -> None:
    if callable(change):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        file.write_text(change, encoding="utf-8")


@cases("tokenizer", FORMS)
def _(place: Path, row: tuple[str, Any, str]) -> str:
    file, change, names = row
    tiny(place)
    _damage(place / "base" / file, change)
    ask(place, {"prompt": "a" * 40 + "!", "answer": "ulm"})
    return evaluated(place, names=names)


@case("tokenizer-id-beyond-the-rows")
def _(place: Path) -> str:
    tiny(place)
    _damage(place / "base" / TOKENIZER, _word("zoe", 41))
    ask(place, {"prompt": "zoe lives in", "answer": "ulm"})
    return evaluated(place, names="41")


@case("eos-beyond-the-rows")
def _(place: Path) -> str:
    tiny(place, eos_token_id=41)
    making.edit(place / "base" / "tokenizer_config.json", eos_token="<end>")
    _damage(place / "base" / TOKENIZER, _word("<end>", 41))
    ask(place, *({"prompt": f"{who} lives", "answer": "ulm"} for who in ("ada", "bo in the")))
    return evaluated(place)


@case("tokenizers-beside-adapters")
def _(place: Path) -> str:
    tiny(place)
    (place / "a" / TOKENIZER).write_text("[]")
    (place / "b" / TOKENIZER).write_text('{"model": {"vocab": {"x": "5"}}}')
    result = call("inspect", place / "a", place / "b", "--json")
    if (end := ended(result)).startswith("traceback"):
        return end
    codes = [issue["code"] for issue in json.loads(result.stdout)["compatibility"]["issues"]]
    said = ("says nothing", "says so once", "says so twice")
    return f"{end}, {said[codes.count('tokenizer-unreadable')]}"
