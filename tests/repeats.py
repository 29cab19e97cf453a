"""Whether the printed next command repeats an option that was set."""

import contextlib
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import making
from evidences import score

from loraprobe.cli import command_of
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.pipeline.conclusion import next_step
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import NOTHING, Command, Compatibility, EvaluationRecords, Verdict
from loraprobe.tasks import Task

STAGES = ("inspect", "merge", "compose", "merge_and_eval")


def check_repeated(
    options: Mapping[str, Any],
    verdict: Verdict,
    left_out: Collection[str] = (),
    again: Command = NOTHING,
    stages: Mapping[str, ModuleType] = dict.fromkeys(STAGES, commands),
) -> None:
    """Asserts that the next command of a verdict, as it is typed, has the first of the options.

    The others are those without which it cannot be set. left_out: options that the next command
    takes and leaves out, because it replaces them. stages: a function of the next command -> its
    module.
    """
    name, given = next(iter(options)), Options.of(options)
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    tasks = [Task("t", (), "t.jsonl")], [Task("g", (), "g.jsonl")]
    kind, sessions = "router" if verdict.action.kind == "route" else "merge", list[Any]()
    rows = EvaluationRecords(scores=(replace(score("sum", 0.9), system=verdict.system, kind=kind),))
    few = Inputs(pair, pair, None, *tasks[: 1 + bool(given.guards)])
    command, _ = next_step(verdict, given, few, rows, Compatibility(), again=again)
    takes = {one.name for one in command_of(command.verb).params}
    with contextlib.ExitStack() as stack:
        for one, module in stages.items():
            seen = mock.patch.object(module, one, lambda _, session, **__: sessions.append(session))
            stack.enter_context(seen)
        making.call(*shlex.split(str(command))[1:])
    again = sessions.pop().options.value(name)
    if name in takes and name not in left_out:
        assert again == given.value(name), (name, str(command))
    elif name not in ("methods", "routers", "systems"):
        assert again != given.value(name), (name, str(command))
