"""The commands that end in an audit of what was measured, and those that print one again."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from loraprobe.cli.completing import scenarios
from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output
from loraprobe.cli.parameters import (
    REFERENCE,
    Base,
    BaseOrNone,
    Probe,
    Refs,
    Tasks,
    argument,
    setting,
)
from loraprobe.cli.running import run, write
from loraprobe.command_options import EVALUATE, INSPECT, SCREEN
from loraprobe.errors import UsageError
from loraprobe.options import Options

if TYPE_CHECKING:
    from loraprobe.records import Audit

OWN = "loraprobe merge-and-eval owner/one owner/two --task questions.jsonl"
Library = Annotated[
    list[str],
    argument("REF", f"Adapters: {REFERENCE}; @FILE with one a line; or - for standard input."),
]
Scenario = Annotated[
    str,
    setting(
        "NAME",
        "disjoint, skill-and-facts, target-adapter or keep-both.",
        autocompletion=scenarios,
    ),
]
Saved = Annotated[Path, argument("AUDIT.json", "What --json printed.")]


@with_options(INSPECT, "json html markdown explain quiet exit_zero")
def inspect(
    refs: Refs,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    task: Tasks = None,
    probe: Probe = None,
) -> None:
    """Look at adapters: one, layer by layer; several, all pairs and whether they fit together.

    Needs no base model. --base adds what needs its weights; with --probe it also measures what the
    base knows, and with --task it asks the base, the adapters and their compositions a sample of
    your questions. The verdict goes as far as that evidence. --serve tells what servers would
    refuse or misread in one adapter's file, and exits 1 if one would.
    """
    from loraprobe.pipeline import commands

    whole = partial(commands.inspect, probe=probe)
    read = [probe] if probe and probe != "auto" else []
    audit = run(output, options, refs, base, task, whole, read=read)
    output.result(audit)


@with_options(
    EVALUATE,
    "target overwrite push public json html markdown save_samples explain dry_run quiet",
    "exit_zero",
    target={"help": "Directory for the recommended composition."},
)
def merge_and_eval(
    refs: Refs, options: Options, output: Output, task: Tasks = None, base: Base = "auto"
) -> None:
    """Compose adapters every reasonable way, measure each on your task, and give a verdict.

    Systems: the base, each adapter alone, merges, routers, a chain of the adapters where the task
    has hops, and two controls. Exit code 0: composing likely works; 1: it does not; 3: undecided.
    """
    from loraprobe.pipeline import commands

    if output.save_samples is not None and options.metric == "answer_loss":
        raise UsageError(
            "--save-samples keeps answers, and --metric answer_loss asks for none; leave one out."
        )
    whole, estimate = commands.merge_and_eval, commands.estimate_cost
    found = run(output, options, refs, base, task, whole, estimate)
    audit = found.audit
    if output.target is not None and found.made is None:
        output.say(f"Nothing was written to {output.target}: {found.why_nothing}")
    elif output.target is not None:
        write(found.made, output)
        audit = _saved(audit, found, output.target)
    output.result(audit, samples=found.samples)


def _saved(audit: Audit, found: Any, target: Path) -> Audit:
    """The audit with what licences ask of somebody who publishes what was written, and whose next
    step is the line of Python that loads it.

    The verdict's own step would write it a second time.
    """
    from loraprobe.adapters import local_name
    from loraprobe.merging import Merged
    from loraprobe.pipeline.examination import with_issues

    place = repr(local_name(str(target)))
    line = f"loraprobe.load_composition({place}).into(model)"
    if isinstance(found.made, Merged):
        line = f"PeftModel.from_pretrained(base, {place})"
    verdict = audit.verdict and replace(audit.verdict, next=line)
    told = with_issues(audit.compatibility, found.licences)
    return replace(audit, verdict=verdict, compatibility=told)


@with_options(SCREEN, "json html markdown explain dry_run quiet exit_zero")
def screen(
    refs: Library, options: Options, output: Output, base: BaseOrNone = None, task: Tasks = None
) -> None:
    """Look through a library of adapters for what can be used, and for what your task needs.

    Every adapter is read once; what is broken, a copy, or of another base is named. With --task
    base and adapters answer a part of your questions, the compositions that look best are proved on
    the others, and the verdict covers the choice. Exit code 0: a composition likely works, or there
    was no task; 1: none does, or no adapter can be used; 3: undecided.

    As one pipe: loraprobe find BASE | loraprobe screen - --task FILE
    """
    from loraprobe.library import listed
    from loraprobe.pipeline import commands

    given = (str(one) for ref in refs for one in listed([ref], sys.stdin))
    output.result(
        run(output, options, given, base, task, commands.screen, commands.estimate_screen)
    )


@with_options(
    "margin prior all_items device threads seed json html markdown save_samples explain quiet",
    "exit_zero",
)
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


@with_options("html markdown explain quiet")
def report(file: Saved, output: Output) -> None:
    """Show a saved result again: on the terminal, as a page or as Markdown.

    Nothing is measured. Exits 0 whatever the verdict is, 2 if the file is no such document.
    """
    from loraprobe.report.answer import unplaced
    from loraprobe.report.documents import read_audit

    audit = read_audit(file)
    replace(output, exit_zero=True).result(audit, unplaced(audit))
