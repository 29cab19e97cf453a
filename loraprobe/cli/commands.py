"""The commands by name, each in a module beside this one that is imported when it is called."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from loraprobe.cli.config import Configured
from loraprobe.formatting import flowing

# Name -> module and function, then calls that its help shows; in the order of --help.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "demo": ("measuring.demo", "loraprobe demo", "loraprobe demo --scenario skill-and-facts"),
    "find": ("information.find", "loraprobe find gpt2 --limit 10"),
    "inspect": (
        "measuring.inspect",
        "loraprobe inspect ./legal owner/chat",
        "loraprobe inspect ./legal owner/chat --base auto --probe auto",
    ),
    "merge": (
        "making.merge",
        "loraprobe merge ./legal owner/chat -o merged",
        "loraprobe merge ./legal owner/chat --method ties:density=0.3 --weights 0.7,0.3 -o merged",
    ),
    "route": (
        "making.route",
        "loraprobe route ./legal owner/chat --router arrow:top_k=1 -o routed",
    ),
    "merge-and-eval": (
        "measuring.merge_and_eval",
        "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl",
        "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl --dry-run",
    ),
    "screen": (
        "measuring.screen",
        "loraprobe screen @library.txt",
        "loraprobe screen @library.txt --task questions.jsonl",
    ),
    "convert": ("making.convert", "loraprobe convert ./legal -o portable"),
    "report": ("measuring.report", "loraprobe report audit.json --html page.html"),
    "verify": (
        "making.verify",
        "loraprobe verify merged",
        "loraprobe verify merged --served http://localhost:8000 --model legal",
    ),
    "methods": ("methods.methods", "loraprobe methods", "loraprobe methods ties arrow"),
    "cache": ("information.cache", "loraprobe cache", "loraprobe cache --clear --older 30"),
    "env": ("information.env", "loraprobe env"),
    "lab": ("information.lab", "loraprobe lab --help"),
    "task new": ("task.new", "loraprobe task new questions.jsonl"),
    "task check": (
        "task.check",
        "loraprobe task check questions.jsonl",
        "loraprobe task check gsm8k.jsonl --fields prompt=question --answer-after '####'",
    ),
    "task sample": ("task.sample", "loraprobe task sample questions.jsonl --base gpt2"),
}
GROUPS = {"task": "Write, check and preview a file of questions."}
NAMES = tuple(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))  # and of groups


@functools.cache
def command_of(name: str) -> Any:
    """The command or group that typer runs, whose module is imported here."""
    inside = [known for known in COMMANDS if known.partition(" ")[0] == name]
    app = typer.Typer(
        name=name, help=GROUPS.get(name), no_args_is_help=name in GROUPS, add_completion=False
    )
    for known in inside:
        found = function_of(known)
        own, text = known.rpartition(" ")[2], flowing(found.__doc__)
        passed_on = known == "lab"  # which hands words on to commands of its own
        settings = ("allow_extra_args", "ignore_unknown_options")
        register = app.command(
            own,
            cls=Configured,
            help=text,
            epilog="\n\n".join(("Examples:", *(f"  {call}" for call in COMMANDS[known][1:]))),
            add_help_option=not passed_on,
            context_settings=dict.fromkeys(settings, passed_on),
        )
        register(found)
    return typer.main.get_command(app)


def outlines() -> dict[str, Any]:
    """Name of a command or a group -> a command with its help alone, which a list of them shows."""
    texts = {n: GROUPS.get(n) or flowing(function_of(n).__doc__) for n in NAMES}
    return {name: TyperCommand(name, help=text) for name, text in texts.items()}


def function_of(name: str) -> Callable[..., None]:
    """The function of a command, whose signature has its options; its module is imported here."""
    module, _, function = COMMANDS[name][0].partition(".")
    found: Callable[..., None] = vars(importlib.import_module(f"loraprobe.cli.{module}"))[function]
    return found
