"""Malformed files and odd options: one sentence that names the thing, exit 2, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import making
from words import word_tokenizer

from adversarial import call, case, cases, copied, ended, outcome
from loraprobe.base.quiet import quiet

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
REFUSED = "exit 2, names it"


def told(*arguments: object, names: str = "") -> str:
    """`outcome`, and whether the error is one sentence that names the thing."""
    result = call(*arguments)
    end, lines = ended(result), result.stderr.strip().splitlines()
    if end != "exit 2":
        return end
    if "defect of loraprobe" in result.stderr:
        return "exit 2, called a defect"
    if "Usage:" in result.stderr and names in result.stderr:  # typer's own, in several lines
        return REFUSED
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit 2, {len(lines)} lines"
    return REFUSED if names in lines[0] else "exit 2, does not name it"


@copied
def _tiny(place: Path) -> None:
    with quiet():
        making.tiny_llama().save_pretrained(place / "base")
        word_tokenizer().save_pretrained(place / "base")
    making.saved_pair(place)
    ask(place, {"prompt": "ada lives in", "answer": "ulm"})


def tiny(place: Path, **config: Any) -> Path:
    """A directory with a base of two layers and its tokenizer, two adapters and a task."""
    _tiny(place)
    for name in "ab":
        named = {"base_model_name_or_path": str(place / "base")}
        making.edit(place / name / "adapter_config.json", **named)
    making.edit(place / "base" / CONFIG, **config)
    return place


def ask(place: Path, *items: dict[str, Any]) -> None:
    """The task of a directory."""
    (place / "t.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def evaluated(place: Path, *options: object, names: str = "") -> str:
    """merge-and-eval of the two adapters on the task."""
    given = [place / "a", place / "b", "--base", place / "base", "--task", place / "t.jsonl"]
    few = ["--system", "uniform", "--max-new-tokens", 2]
    return told("merge-and-eval", *given, *few, *options, names=names)


def inspected(place: Path, *options: object, names: str = "") -> str:
    """inspect of one adapter on the base."""
    return told("inspect", place / "a", "--base", place / "base", *options, names=names)


def merged(place: Path, *options: object, names: str = "") -> str:
    """merge of the two adapters."""
    return told("merge", place / "a", place / "b", "-o", place / "o", *options, names=names)


# config.json of the base.
CONFIGS: dict[str, dict[str, Any]] = {
    "text-config-list": {"text_config": [1]},
    "text-config-text": {"text_config": "llama"},
    "text-config-number": {"text_config": 5},
    "architectures-number": {"architectures": 5},
    "architectures-object": {"architectures": {"a": 1}},
    "model-type-list": {"model_type": ["llama"]},
    "vocab-text": {"vocab_size": "forty"},
    "quantization-text": {"quantization_config": "nf4"},
    "auto-map-list": {"auto_map": [1]},
    "401-digits": {"hidden_size": 10**400},
    "401-digits-nested": {"rope_scaling": {"x": [10**400]}},
}


@cases("config", CONFIGS)
def _(place: Path, changes: dict[str, Any]) -> str:
    return evaluated(tiny(place, **changes), names=CONFIG)


@cases("config", {"nested": 3000, "nested-less": 700})
def _(place: Path, depth: int) -> str:
    tiny(place)
    text = (place / "base" / CONFIG).read_text().rstrip()[:-1]
    (place / "base" / CONFIG).write_text(text + ', "x": ' + "[" * depth + "]" * depth + "}")
    return evaluated(place, names=CONFIG)


MAPS: dict[str, Any] = {
    "list": [],
    "null": None,
    "text": "model.safetensors",
    "numbers": {"x": 5},
    "lists": {"x": ["model.safetensors"]},
    "outside": {"x": "../outside.safetensors"},
    "absolute": {"x": "/ABSOLUTE"},
    "inside-out": {"x": "x/../../outside.safetensors"},
    "nul": {"x": "a\0b"},
}


@cases("index", MAPS)
def _(place: Path, value: Any) -> str:
    base = tiny(place) / "base"
    (base / "model.safetensors").rename(place / "outside.safetensors")
    (base / "x").mkdir()
    text = json.dumps({"weight_map": value})
    (base / INDEX).write_text(text.replace("/ABSOLUTE", str(place / "outside.safetensors")))
    return evaluated(place, names=INDEX)


@case("index-link")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / "model.safetensors").rename(place / "outside.safetensors")
    (base / "shard.safetensors").symlink_to(place / "outside.safetensors")
    (base / INDEX).write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    return evaluated(place, names="shard.safetensors")


@case("tokenizer-link")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / TOKENIZER).rename(place / "outside.json")
    (base / TOKENIZER).symlink_to(place / "outside.json")
    return evaluated(place, names=TOKENIZER)


# Options.
WEIGHTS = {
    "overflow": "1e308,1e308",
    "negative-overflow": "-1e308,1",
    "large": "1e30,1",
    "1e400": "1e400,1",
}


@cases("weights", WEIGHTS)
def _(place: Path, text: str) -> str:
    return merged(tiny(place), "--method", "task_arithmetic", f"--weights={text}", names="weight")


@case("seed-negative")
def _(place: Path) -> str:
    return evaluated(tiny(place), "--seed", -5, names="--seed")


@case("threads-many")
def _(place: Path) -> str:
    return merged(tiny(place), "--threads", 10**12, names="--threads")


@case("task-long-answer")
def _(place: Path) -> str:
    ask(tiny(place), {"prompt": "ada", "answer": "ulm " * 3000, "choices": ["ulm " * 3000, "bo"]})
    return evaluated(place, names="answer")


# Chat templates.
TEMPLATES = {
    "empty": "{# nothing #}",
    "blank": "  \n ",
    "nested": "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
}


@cases("template", TEMPLATES)
def _(place: Path, template: str) -> str:
    making.edit(tiny(place) / "base" / "tokenizer_config.json", chat_template=template)
    with mock.patch("loraprobe.scoring.encoding.TEMPLATE_SECONDS", 0.5):
        return evaluated(place, "--chat-template", "on", names="chat template")


# Exceptions that nobody expected.
INSPECT = "loraprobe.hub.load_all", ("inspect", "x")
BUILD = "loraprobe_lab.build.build_world", ("lab", "build", "keep-both", "-o", "x")
RAISED: dict[str, tuple[BaseException, str, tuple[str, ...]]] = {
    "exception": (ValueError("x"), *INSPECT),
    "recursion": (RecursionError("x"), *INSPECT),
    "exit": (SystemExit(1), *INSPECT),
    "end-of-file": (EOFError(), *INSPECT),
    "panic": (type("PanicException", (BaseException,), {})("x"), *INSPECT),
    "import": (ImportError("no libcudart"), *INSPECT),
    "disk": (OSError(28, "No space left on device"), *INSPECT),
    "memory": (MemoryError(), *INSPECT),
    "lab": (ValueError("x"), *BUILD),
}


@cases("unexpected", RAISED)
def _(place: Path, row: tuple[BaseException, str, tuple[str, ...]]) -> str:
    error, where, command = row
    with mock.patch(where, side_effect=error):
        found = told(*command)
        return found if found.startswith("traceback") else f"{outcome(*command)}{found[6:]}"


@cases(
    "stdout",
    {"head": "--help | head -1", "full": "--help > /dev/full", "closed": "methods --help >&-"},
)
def _(place: Path, command: str) -> str:
    line = f'"{sys.executable}" -m loraprobe {command}; echo "exit ${{PIPESTATUS[0]}}" >&2'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=place)
    shown = "traceback, " if "Traceback" in done.stderr else ""
    return f"{shown}{done.stderr.strip().splitlines()[-1]}"


@case("choice-no-token")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    making.edit(base / "tokenizer_config.json", chat_template="\u00f1")
    nothing = {"type": "Replace", "pattern": {"String": "\u00f1"}, "content": ""}
    making.edit(base / "tokenizer.json", normalizer=nothing)
    ask(place, {"prompt": "p", "answer": "\u00f1", "choices": ["\u00f1", "bo"]})
    return evaluated(place, "--chat-template", "on", names="token")


@cases("alpha", {"1e300": False, "1e300-inspected": True})
def _(place: Path, inspected: bool) -> str:
    a, b = making.saved_pair(place)
    making.edit(place / "a" / "adapter_config.json", lora_alpha=1e300)
    return told("inspect", a, b, names="lora_alpha") if inspected else merged(place, names="a")


@case("ties-1e20")
def _(place: Path) -> str:
    from safetensors.torch import load_file, save_file

    making.saved_pair(place)
    file = place / "a" / "adapter_model.safetensors"
    save_file({k: v * 1e20 for k, v in load_file(file).items()}, file)
    return merged(place, "--method", "ties", names="a")
