"""Malformed files and odd options: one sentence that names the thing, exit 2, never a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from adversarial import case, outcome

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
REFUSED = "exit 2, names it"


def told(*arguments: object, names: str = "", input: str | None = None) -> str:
    """`outcome`, and whether the error is one sentence that names the thing."""
    from typer.testing import CliRunner

    from loraprobe.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return f"traceback {type(error).__name__}"
    if result.exit_code != 2:
        return f"exit {result.exit_code}"
    lines = result.stderr.strip().splitlines()
    if "defect of loraprobe" in result.stderr:
        return "exit 2, a defect"
    if "Usage:" in result.stderr and names in result.stderr:  # typer's own, in several lines
        return REFUSED
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit 2, {len(lines)} lines"
    return REFUSED if names in lines[0] else f"exit 2, does not say {names!r}"


def tiny(place: Path, **config: Any) -> Path:
    """A directory with a base of two layers and its tokenizer, two adapters and a task."""
    import making
    from words import word_tokenizer

    from loraprobe.base.quiet import quiet

    base = place / "base"
    with quiet():
        making.tiny_llama().save_pretrained(base)
        word_tokenizer().save_pretrained(base)
    for seed, name in enumerate("ab", 1):
        making.random_adapter(name, seed=seed, base_model=str(base)).save(place / name)
    ask(place, {"prompt": "ada lives in", "answer": "ulm"})
    edit(base / CONFIG, **config)
    return place


def ask(place: Path, *items: dict[str, Any]) -> None:
    """The task of a directory."""
    (place / "t.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def edit(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON object."""
    if changes:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def evaluated(place: Path, *options: object, names: str = "") -> str:
    """merge-and-eval of the two adapters on the task."""
    return told(
        "merge-and-eval", place / "a", place / "b", "--base", place / "base",
        "--task", place / "t.jsonl", "--system", "uniform", "--max-new-tokens", 2, *options,
        names=names,
    )  # fmt: skip


def inspected(place: Path, *options: object, names: str = "") -> str:
    """inspect of one adapter on the base."""
    return told("inspect", place / "a", "--base", place / "base", *options, names=names)


def merged(place: Path, *options: object, names: str = "") -> str:
    """merge of the two adapters."""
    return told("merge", place / "a", place / "b", "-o", place / "o", *options, names=names)


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}  # fmt: skip


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
    "not-json": ("no JSON", TOKENIZER, "{", ""),
    "list": ("a list", TOKENIZER, "[]", ""),
    "bom": ("a byte order mark", TOKENIZER, "\ufeff{}", ""),
    "nul": ("a zero byte", TOKENIZER, "{}\0", ""),
    "deep": ("3,000 nested brackets", TOKENIZER, "[" * 3000 + "]" * 3000, ""),
    "surrogate": ("half of a surrogate pair", TOKENIZER, '{"model": {}, "x": "\\ud800"}', ""),
    "without-model": ("no `model`", TOKENIZER, _without("model"), ""),
    "model-list": ("`model` is a list", TOKENIZER, _with(model=[]), ""),
    "vocab-text": ("a vocabulary that is a text", TOKENIZER, _model(vocab="ada"), ""),
    "id-text": ("an id that is a text", TOKENIZER, _word("ada", "5"), ""),
    "id-negative": ("a negative id", TOKENIZER, _word("ada", -5), ""),
    "id-huge": ("an id of 401 digits", TOKENIZER, _word("ada", 10**400), ""),
    "merges-inf": (
        "infinite numbers as merges", TOKENIZER,
        _model(type="BPE", vocab={"a": 0, "b": 1}, merges=[float("inf")]), "",
    ),
    "merges-cyclic": (
        "merges of tokens that are not there", TOKENIZER,
        _model(type="BPE", vocab={"a": 0, "aa": 1}, merges=[["aa", "a"], ["aaa", "aa"]]), "",
    ),
    "unknown-type": ("an unknown type of model", TOKENIZER, _model(type="Oracle"), ""),
    "added-object": ("`added_tokens` is an object", TOKENIZER, _with(added_tokens={"id": 1}), ""),
    "added-number": ("an added token that is a number", TOKENIZER, _with(added_tokens=[5]), ""),
    "added-without-text": ("an added token without text", TOKENIZER, _added(id=3), ""),
    "panic": ("an expression that ends in a panic", TOKENIZER, _with(pre_tokenizer=SPLIT), ""),
    "config-list": ("a list", "tokenizer_config.json", "[]", ""),
    "config-not-json": ("no JSON", "tokenizer_config.json", "{", ""),
    "template-number": ("a template that is a number", "tokenizer_config.json",
                        _with(chat_template=5), ""),
    "decoder-list": ("`added_tokens_decoder` is a list", "tokenizer_config.json",
                     _with(added_tokens_decoder=[1]), ""),
    "eos-number": ("`eos_token` is a number", "tokenizer_config.json", _with(eos_token=5), ""),
    "map-list": ("a list", "special_tokens_map.json", "[1]", ""),
    "map-number": ("`bos_token` is a list", "special_tokens_map.json", '{"bos_token": [1]}', ""),
    "added-list": ("a list", "added_tokens.json", "[1]", ""),
    "added-id-text": ("an id that is a text", "added_tokens.json", '{"<x>": "y"}', ""),
}  # fmt: skip


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
    "tokenizer-id-beyond-the-rows", "a word whose id the embedding has no row for",
    before="", now=REFUSED,
)  # fmt: skip
def _(place: Path) -> str:
    tiny(place)
    _damage(place / "base" / TOKENIZER, _word("zoe", 41))
    ask(place, {"prompt": "zoe lives in", "answer": "ulm"})
    return evaluated(place, names="41")


@case("eos-beyond-the-rows", "an EOS token that the embedding has no row for; prompts of two "
      "lengths", before="", now="exit 3")  # fmt: skip
def _(place: Path) -> str:
    tiny(place, eos_token_id=41)
    edit(place / "base" / "tokenizer_config.json", eos_token="<end>")
    _damage(place / "base" / TOKENIZER, _word("<end>", 41))
    ask(place, *({"prompt": f"{who} lives", "answer": "ulm"} for who in ("ada", "bo in the")))
    return evaluated(place)


@case("tokenizers-beside-adapters", "`tokenizer.json` beside both adapters: one a list, one with "
      "a text as id; inspect", before="", now="exit 0, says so twice")  # fmt: skip
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


# config.json of the base, read by inspect.
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "text-config-list": ("`text_config` is a list", {"text_config": [1]}, ""),
    "text-config-text": ("`text_config` is a text", {"text_config": "llama"}, ""),
    "text-config-number": ("`text_config` is a number", {"text_config": 5}, ""),
    "architectures-number": ("`architectures` is a number", {"architectures": 5}, ""),
    "architectures-object": ("`architectures` is an object", {"architectures": {"a": 1}}, ""),
    "model-type-list": ("`model_type` is a list", {"model_type": ["llama"]}, ""),
    "vocab-text": ("`vocab_size` is a text", {"vocab_size": "forty"}, ""),
    "quantization-text": ("`quantization_config` is a text", {"quantization_config": "nf4"}, ""),
    "auto-map-list": ("`auto_map` is a list", {"auto_map": [1]}, ""),
    "401-digits": ("`hidden_size` of 401 digits", {"hidden_size": 10**400}, ""),
    "401-digits-nested": ("401 digits in a list", {"rope_scaling": {"x": [10**400]}}, ""),
}


def _config(name: str, what: str, changes: dict[str, Any], before: str) -> None:
    @case(f"config-{name}", f"`config.json` of the base: {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        return evaluated(tiny(place, **changes), names=CONFIG)


for _name, (_what, _changes, _before) in CONFIGS.items():
    _config(_name, _what, _changes, _before)


def _nested(name: str, depth: int, before: str) -> None:
    @case(f"config-{name}", f"`config.json` of the base: {depth:,} nested brackets",
          before=before, now=REFUSED)  # fmt: skip
    def _(place: Path) -> str:
        tiny(place)
        text = (place / "base" / CONFIG).read_text().rstrip()[:-1]
        (place / "base" / CONFIG).write_text(text + ', "x": ' + "[" * depth + "]" * depth + "}")
        return evaluated(place, names=CONFIG)


_nested("nested", 3000, "")
_nested("nested-less", 700, "")

INDEX = "model.safetensors.index.json"
MAPS: dict[str, tuple[str, Any, str]] = {
    "list": ("`weight_map` is a list", [], ""),
    "null": ("`weight_map` is null", None, ""),
    "text": ("`weight_map` is a text", "model.safetensors", ""),
    "numbers": ("`weight_map` holds numbers", {"x": 5}, ""),
    "lists": ("`weight_map` holds lists", {"x": ["model.safetensors"]}, ""),
    "outside": ("the index names `../outside.safetensors`", {"x": "../outside.safetensors"}, ""),
    "absolute": ("the index names an absolute path", {"x": "/ABSOLUTE"}, ""),
    "inside-out": ("the index names `x/../../outside.safetensors`",
                   {"x": "x/../../outside.safetensors"}, ""),
    "nul": ("the index names a file with a zero byte", {"x": "a\0b"}, ""),
}  # fmt: skip


def _index(name: str, what: str, value: Any, before: str) -> None:
    @case(f"index-{name}", what, before=before, now=REFUSED)
    def _(place: Path) -> str:
        base = tiny(place) / "base"
        (base / "model.safetensors").rename(place / "outside.safetensors")
        (base / "x").mkdir()
        text = json.dumps({"weight_map": value})
        text = text.replace("/ABSOLUTE", str(place / "outside.safetensors"))
        (base / INDEX).write_text(text)
        return evaluated(place, names=INDEX)


for _name, (_what, _value, _before) in MAPS.items():
    _index(_name, _what, _value, _before)


@case("index-link", "a shard that is a link out of the base's directory", before="", now=REFUSED)
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / "model.safetensors").rename(place / "outside.safetensors")
    (base / "shard.safetensors").symlink_to(place / "outside.safetensors")
    (base / INDEX).write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    return evaluated(place, names="shard.safetensors")


@case("tokenizer-link", "a tokenizer that is a link out of the base's directory",
      before="", now=REFUSED)  # fmt: skip
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / TOKENIZER).rename(place / "outside.json")
    (base / TOKENIZER).symlink_to(place / "outside.json")
    return evaluated(place, names=TOKENIZER)


# Options.
def _weights(name: str, text: str, before: str, now: str, names: str = "weight") -> None:
    @case(f"weights-{name}", f"`--weights {text}`", before=before, now=now)
    def _(place: Path) -> str:
        return merged(tiny(place), "--method", "task_arithmetic", f"--weights={text}", names=names)


_weights("overflow", "1e308,1e308", "", REFUSED)
_weights("negative-overflow", "-1e308,1", "", REFUSED)
_weights("large", "1e30,1", "", REFUSED)
_weights("inf", "inf,1", "", REFUSED)
_weights("1e400", "1e400,1", "", REFUSED)
_weights("nan", "nan,1", "", REFUSED)


@case("seed-negative", "`merge-and-eval --seed -5`", before="", now=REFUSED)
def _(place: Path) -> str:
    return evaluated(tiny(place), "--seed", -5, names="--seed")


@case("threads-many", "`--threads 1000000000000`", before="", now=REFUSED)
def _(place: Path) -> str:
    return merged(tiny(place), "--threads", 10**12, names="--threads")


@case("limits-400-digits", "`--limits line=` with 400 digits", before="", now=REFUSED)
def _(place: Path) -> str:
    return told("--limits", f"line={'9' * 400}", "inspect", tiny(place) / "a", names="--limits")


# Task files.
def _task(name: str, what: str, item: dict[str, Any] | str, before: str, names: str) -> None:
    @case(f"task-{name}", what, before=before, now=REFUSED)
    def _(place: Path) -> str:
        tiny(place)
        if isinstance(item, str):
            (place / "t.jsonl").write_text(item)
        else:
            ask(place, {"prompt": "ada lives in", "answer": "ulm"} | item)
        return evaluated(place, names=names)


_task("hop-digits", "`{999...}` of 5,000 digits in a hop's prompt",
      {"hops": [{"prompt": "x", "answer": "y"}, {"prompt": "{" + "9" * 5000 + "}", "answer": "z"}]},
      "", "hop 2 asks for")  # fmt: skip
_task("nested", "3,000 nested brackets in a line", "[" * 3000 + "]" * 3000, "", "line 1")
_task("pattern-nested", "3,000 nested brackets in an answer_pattern",
      {"cot_prompt": "ada", "answer_pattern": "(" * 3000 + "a" + ")" * 3000}, "", "answer_pattern"
      )  # fmt: skip
_task("pattern-flag", "an answer_pattern that is no expression",
      {"cot_prompt": "ada", "answer_pattern": "\\L<x>"}, "", "answer_pattern")  # fmt: skip
_task("surrogate", "half of a surrogate pair as the answer", {"answer": "\ud800"}, "", "surrogate")
_task("digits", "a number of 5,000 digits as an id",
      '{"id": ' + "9" * 5000 + ', "prompt": "p", "answer": "a"}', "", "line 1")  # fmt: skip
_task("long-answer", "an answer longer than the model's context (the prompt is three words)",
      {"answer": "ulm " * 3000, "choices": ["ulm " * 3000, "bo"]}, "", "answer")  # fmt: skip


# Chat templates.
def _template(name: str, what: str, template: str, before: str) -> None:
    @case(f"template-{name}", f"a chat template that {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        tiny(place)
        edit(place / "base" / "tokenizer_config.json", chat_template=template)
        with mock.patch("loraprobe.scoring.encoding.TEMPLATE_SECONDS", 0.5):
            return evaluated(place, "--chat-template", "on", names="chat template")


_template("empty", "gives an empty prompt", "{# nothing #}", "")
_template("blank", "gives blanks", "  \n ", "")
_template("undefined", "calls what is not there", "{{ nothing.at.all() }}", "")
_template("raises", "raises", "{{ raise_exception('no') }}", "")
_template("syntax", "is no template", "{% if %}", "")
_template("nested", "nests 3,000 brackets", "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "")
_template("loop", "does not end",
          "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", ""
          )  # fmt: skip


# Exceptions that nobody expected.
def _raised(name: str, what: str, error: BaseException, now: str, before: str,
            where: str = "loraprobe.hub.load_all", command: tuple[str, ...] = ("inspect", "x")
            ) -> None:  # fmt: skip
    @case(f"unexpected-{name}", what, before=before, now=now)
    def _(place: Path) -> str:
        with mock.patch(where, side_effect=error):
            ended = told(*command)
            return ended if ended.startswith("traceback") else f"{outcome(*command)}{ended[6:]}"


DEFECT = "exit 2, a defect"
_raised("exception", "a defect in a command", ValueError("x"), DEFECT, "")
_raised("recursion", "a recursion without end", RecursionError("x"), DEFECT, "")
_raised("exit", "a library that calls sys.exit(1)", SystemExit(1), DEFECT, "")
_raised("end-of-file", "EOFError, which typer takes for the user's wish", EOFError(), DEFECT, "")
_raised("panic", "a panic of a library in Rust", type("PanicException", (BaseException,), {})("x"),
        DEFECT, "")  # fmt: skip
_raised("import", "a package that cannot be imported", ImportError("no libcudart"), REFUSED, "")
_raised("disk", "a full disk", OSError(28, "No space left on device"), REFUSED, "")
_raised("memory", "memory that runs out", MemoryError(), REFUSED, "")
_raised("lab", "a defect in the nested command lab", ValueError("x"), DEFECT, "",
        "loraprobe_lab.build.build_world", ("lab", "build", "keep-both", "-o", "x"))  # fmt: skip


def _piped(name: str, command: str, before: str, now: str) -> None:
    @case(f"stdout-{name}", f"`loraprobe {command}`", before=before, now=now)
    def _(place: Path) -> str:
        import subprocess

        line = f'"{sys.executable}" -m loraprobe {command}; echo "exit ${{PIPESTATUS[0]}}" >&2'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=place)
        lines = done.stderr.strip().splitlines()
        shown = "traceback, " if "Traceback" in done.stderr else ""
        return f"{shown}{lines[-1]}"


_piped("head", "--help | head -1", "", "exit 141")
_piped("full", "--help > /dev/full", "", "exit 2")
_piped("closed", "find --help >&-", "", "exit 0")
