"""The commands by name, in the order of --help; the module of each stands beside this one."""

from __future__ import annotations

from collections.abc import Callable

from loraprobe.cli import task
from loraprobe.cli.cache import cache
from loraprobe.cli.combine import combine
from loraprobe.cli.convert import convert
from loraprobe.cli.demo import demo
from loraprobe.cli.env import env
from loraprobe.cli.evaluate import merge_and_eval
from loraprobe.cli.find import find
from loraprobe.cli.inspect import inspect
from loraprobe.cli.lab import lab
from loraprobe.cli.merge import merge
from loraprobe.cli.methods import methods
from loraprobe.cli.report import report
from loraprobe.cli.route import route
from loraprobe.cli.screen import screen
from loraprobe.cli.verify import verify

__all__ = ["COMMANDS", "combine", "lab"]  # the last two hand words on to other commands

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "find": find,
    "inspect": inspect,
    "merge": merge,
    "route": route,
    "merge-and-eval": merge_and_eval,
    "screen": screen,
    "convert": convert,
    "report": report,
    "verify": verify,
    "methods": methods,
    "cache": cache,
    "env": env,
    "task new": task.new,
    "task check": task.check,
    "task sample": task.sample,
}
