"""Malformed files and odd options: one sentence that names the thing, exit 2, never a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from adversarial import case, outcome

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
REFUSED = "exit 2, names it"
UNNAMED = "exit 2, does not name it"


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
        return "exit 2, called a defect"
    if "Usage:" in result.stderr and names in result.stderr:  # typer's own, in several lines
        return REFUSED
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit 2, {len(lines)} lines"
    return REFUSED if names in lines[0] else UNNAMED


def tiny(place: Path, **config: Any) -> Path:
    """A directory with a base of two layers and its tokenizer, two adapters and a task."""
    import making
    from words import word_tokenizer

    from loraprobe.base.quiet import quiet

    base = place / "base"
    with quiet():
        making.tiny_llama().save_pretrained(base)
        word_tokenizer().save_pretrained(base)
    making.saved_pair(place, base_model=str(base))
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
        "merge-and-eval",
        place / "a",
        place / "b",
        "--base",
        place / "base",
        "--task",
        place / "t.jsonl",
        "--system",
        "uniform",
        "--max-new-tokens",
        2,
        *options,
        names=names,
    )


def inspected(place: Path, *options: object, names: str = "") -> str:
    """inspect of one adapter on the base."""
    return told("inspect", place / "a", "--base", place / "base", *options, names=names)


def merged(place: Path, *options: object, names: str = "") -> str:
    """merge of the two adapters."""
    return told("merge", place / "a", place / "b", "-o", place / "o", *options, names=names)


# config.json of the base, read by inspect.
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "text-config-list": (
        "`text_config` is a list",
        {"text_config": [1]},
        "traceback AttributeError",
    ),
    "text-config-text": (
        "`text_config` is a text",
        {"text_config": "llama"},
        "traceback AttributeError",
    ),
    "text-config-number": (
        "`text_config` is a number",
        {"text_config": 5},
        "traceback AttributeError",
    ),
    "architectures-number": ("`architectures` is a number", {"architectures": 5}, "exit 3"),
    "architectures-object": ("`architectures` is an object", {"architectures": {"a": 1}}, "exit 3"),
    "model-type-list": ("`model_type` is a list", {"model_type": ["llama"]}, "traceback TypeError"),
    "vocab-text": (
        "`vocab_size` is a text",
        {"vocab_size": "forty"},
        UNNAMED,
    ),
    "quantization-text": (
        "`quantization_config` is a text",
        {"quantization_config": "nf4"},
        UNNAMED,
    ),
    "auto-map-list": ("`auto_map` is a list", {"auto_map": [1]}, "exit 3"),
    "401-digits": (
        "`hidden_size` of 401 digits",
        {"hidden_size": 10**400},
        UNNAMED,
    ),
    "401-digits-nested": ("401 digits in a list", {"rope_scaling": {"x": [10**400]}}, "exit 3"),
}


def _config(name: str, what: str, changes: dict[str, Any], before: str) -> None:
    @case(f"config-{name}", f"`config.json` of the base: {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        return evaluated(tiny(place, **changes), names=CONFIG)


for _name, (_what, _changes, _before) in CONFIGS.items():
    _config(_name, _what, _changes, _before)


def _nested(name: str, depth: int, before: str) -> None:
    @case(
        f"config-{name}",
        f"`config.json` of the base: {depth:,} nested brackets",
        before=before,
        now=REFUSED,
    )
    def _(place: Path) -> str:
        tiny(place)
        text = (place / "base" / CONFIG).read_text().rstrip()[:-1]
        (place / "base" / CONFIG).write_text(text + ', "x": ' + "[" * depth + "]" * depth + "}")
        return evaluated(place, names=CONFIG)


_nested("nested", 3000, REFUSED)
_nested("nested-less", 700, UNNAMED)

INDEX = "model.safetensors.index.json"
MAPS: dict[str, tuple[str, Any, str]] = {
    "list": ("`weight_map` is a list", [], "traceback AttributeError"),
    "null": ("`weight_map` is null", None, "traceback AttributeError"),
    "text": ("`weight_map` is a text", "model.safetensors", "traceback AttributeError"),
    "numbers": ("`weight_map` holds numbers", {"x": 5}, "traceback TypeError"),
    "lists": ("`weight_map` holds lists", {"x": ["model.safetensors"]}, "traceback TypeError"),
    "outside": (
        "the index names `../outside.safetensors`",
        {"x": "../outside.safetensors"},
        UNNAMED,
    ),
    "absolute": ("the index names an absolute path", {"x": "/ABSOLUTE"}, UNNAMED),
    "inside-out": (
        "the index names `x/../../outside.safetensors`",
        {"x": "x/../../outside.safetensors"},
        UNNAMED,
    ),
    "nul": ("the index names a file with a zero byte", {"x": "a\0b"}, REFUSED),
}


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


@case(
    "index-link",
    "a shard that is a link out of the base's directory",
    before=REFUSED,
    now=REFUSED,
)
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / "model.safetensors").rename(place / "outside.safetensors")
    (base / "shard.safetensors").symlink_to(place / "outside.safetensors")
    (base / INDEX).write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    return evaluated(place, names="shard.safetensors")


@case(
    "tokenizer-link",
    "a tokenizer that is a link out of the base's directory",
    before=REFUSED,
    now=REFUSED,
)
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


_weights("overflow", "1e308,1e308", "traceback _LinAlgError", REFUSED)
_weights("negative-overflow", "-1e308,1", "traceback _LinAlgError", REFUSED)
_weights("large", "1e30,1", UNNAMED, REFUSED)
_weights("1e400", "1e400,1", REFUSED, REFUSED)


@case("seed-negative", "`merge-and-eval --seed -5`", before="traceback ValueError", now=REFUSED)
def _(place: Path) -> str:
    return evaluated(tiny(place), "--seed", -5, names="--seed")


@case("threads-many", "`--threads 1000000000000`", before="traceback ValueError", now=REFUSED)
def _(place: Path) -> str:
    return merged(tiny(place), "--threads", 10**12, names="--threads")


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


_task(
    "hop-digits",
    "`{999...}` of 5,000 digits in a hop's prompt",
    {"hops": [{"prompt": "x", "answer": "y"}, {"prompt": "{" + "9" * 5000 + "}", "answer": "z"}]},
    "traceback ValueError",
    "hop 2 refers to",
)
_task(
    "nested",
    "3,000 nested brackets in a line",
    "[" * 3000 + "]" * 3000,
    REFUSED,
    "line 1",
)
_task(
    "pattern-nested",
    "3,000 nested brackets in an answer_pattern",
    {"cot_prompt": "ada", "answer_pattern": "(" * 3000 + "a" + ")" * 3000},
    REFUSED,
    "answer_pattern",
)
_task(
    "pattern-flag",
    "an answer_pattern that is no expression",
    {"cot_prompt": "ada", "answer_pattern": "\\L<x>"},
    REFUSED,
    "answer_pattern",
)
_task(
    "surrogate",
    "half of a surrogate pair as the answer",
    {"answer": "\ud800"},
    REFUSED,
    "surrogate",
)
_task(
    "digits",
    "a number of 5,000 digits as an id",
    '{"id": ' + "9" * 5000 + ', "prompt": "p", "answer": "a"}',
    "traceback ValueError",
    "line 1",
)
_task(
    "long-answer",
    "an answer longer than the model's context (the prompt is three words)",
    {"answer": "ulm " * 3000, "choices": ["ulm " * 3000, "bo"]},
    UNNAMED,
    "answer",
)


# Chat templates.
def _template(name: str, what: str, template: str, before: str) -> None:
    @case(f"template-{name}", f"a chat template that {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        tiny(place)
        edit(place / "base" / "tokenizer_config.json", chat_template=template)
        with mock.patch("loraprobe.scoring.encoding.TEMPLATE_SECONDS", 0.5):
            return evaluated(place, "--chat-template", "on", names="chat template")


_template("empty", "gives an empty prompt", "{# nothing #}", "exit 3")
_template("blank", "gives blanks", "  \n ", "exit 3")
_template(
    "nested",
    "nests 3,000 brackets",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    REFUSED,
)
_template(
    "loop",
    "does not end",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    REFUSED,
)


# Exceptions that nobody expected.
def _raised(
    name: str,
    what: str,
    error: BaseException,
    now: str,
    before: str,
    where: str = "loraprobe.hub.load_all",
    command: tuple[str, ...] = ("inspect", "x"),
) -> None:
    @case(f"unexpected-{name}", what, before=before, now=now)
    def _(place: Path) -> str:
        with mock.patch(where, side_effect=error):
            ended = told(*command)
            return ended if ended.startswith("traceback") else f"{outcome(*command)}{ended[6:]}"


DEFECT = "exit 2, called a defect"
_raised("exception", "a defect in a command", ValueError("x"), DEFECT, "traceback ValueError")
_raised(
    "recursion", "a recursion without end", RecursionError("x"), DEFECT, "traceback RecursionError"
)
_raised("exit", "a library that calls sys.exit(1)", SystemExit(1), DEFECT, "exit 1")
_raised(
    "end-of-file", "EOFError, which typer takes for the user's wish", EOFError(), DEFECT, "exit 1"
)
_raised(
    "panic",
    "a panic of a library in Rust",
    type("PanicException", (BaseException,), {})("x"),
    DEFECT,
    "traceback PanicException",
)
_raised(
    "import",
    "a package that cannot be imported",
    ImportError("no libcudart"),
    REFUSED,
    "traceback ImportError",
)
_raised("disk", "a full disk", OSError(28, "No space left on device"), REFUSED, "traceback OSError")
_raised("memory", "memory that runs out", MemoryError(), REFUSED, REFUSED)
_raised(
    "lab",
    "a defect in the nested command lab",
    ValueError("x"),
    DEFECT,
    "traceback ValueError",
    "loraprobe_lab.worlds.spec.build_world",
    ("lab", "build", "keep-both", "-o", "x"),
)


def _piped(name: str, command: str, before: str, now: str) -> None:
    @case(f"stdout-{name}", f"`loraprobe {command.replace('|', 'into')}`", before=before, now=now)
    def _(place: Path) -> str:
        import subprocess

        line = f'"{sys.executable}" -m loraprobe {command}; echo "exit ${{PIPESTATUS[0]}}" >&2'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=place)
        lines = done.stderr.strip().splitlines()
        shown = "traceback, " if "Traceback" in done.stderr else ""
        return f"{shown}{lines[-1]}"


_piped("head", "--help | head -1", "exit 1", "exit 141")
_piped("full", "--help > /dev/full", "traceback, exit 1", "exit 2")
_piped("closed", "find --help >&-", "exit 0", "exit 0")
