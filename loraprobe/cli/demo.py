"""`loraprobe demo`: the whole audit on the world that ships with the package."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from loraprobe.cli.completing import scenarios
from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output
from loraprobe.options import Options

OWN = "loraprobe merge-and-eval owner/one owner/two --task questions.jsonl"
Scenario = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="disjoint, skill-and-facts, target-adapter or keep-both.",
        autocompletion=scenarios,
    ),
]

OPTIONS = (
    "margin prior all_items device threads seed json html markdown save_samples explain quiet "
    "exit_zero"
)


@with_options(*OPTIONS.split())
def demo(options: Options, output: Output, scenario: Scenario = "disjoint") -> None:
    """Run merge-and-eval on adapters that ship with loraprobe: offline, in under two minutes."""
    from loraprobe.base import open_base
    from loraprobe.demo import shipped_world
    from loraprobe.pipeline import commands
    from loraprobe.report.terminal import demo_text

    world = shipped_world()
    chosen = world.scenario(scenario)
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    output.say(f"Scenario {scenario}: {chosen.description}")
    base = open_base(world.path / "base", reference=world.base_name)
    with output.progress() as progress:
        found = commands.merge_and_eval(
            refs, base=base, tasks=chosen.tasks, options=options, progress=progress
        )
    assert found.audit.verdict is not None
    audit = replace(found.audit, verdict=replace(found.audit.verdict, next=OWN))
    others = [name for name in world.scenarios if name != scenario]
    output.result(audit, demo_text(audit, others), samples=found.samples)
