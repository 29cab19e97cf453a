"""`loraprobe demo`: the whole audit on the world that ships with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output

Scenario = Annotated[
    str,
    typer.Option(help="disjoint, skill-and-facts, target-adapter or keep-both."),
]


def demo(
    scenario: Scenario = "disjoint",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    exit_zero: opt.ExitZero = False,
) -> None:
    """Run merge-and-eval on adapters that ship with loraprobe: offline, in under two minutes."""
    from loraprobe.base import open_base
    from loraprobe.cli import _work
    from loraprobe.demo import shipped_world
    from loraprobe.report.terminal import demo_text

    output = Output(json, quiet, exit_zero)
    world = shipped_world()
    chosen = world.scenario(scenario)
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    tasks = [str(path) for path in chosen.tasks]
    settings = _work.settings(device=device, threads=threads, seed=seed)
    output.say(f"Scenario {scenario}: {chosen.description}")
    base = open_base(world.path / "base", reference=world.base_name)
    outcome = _work.audit_of(refs, base, tasks, settings, output)
    output.result(outcome.audit, demo_text(outcome.audit, list(world.scenarios)))
