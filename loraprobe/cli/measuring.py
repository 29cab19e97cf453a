"""The commands that end in an audit of what was measured, and those that print one again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from loraprobe.cli.parameters import RefsArgument, Texts, argument, scenarios, setting
from loraprobe.cli.running import Output, run, write
from loraprobe.options import Options


def inspect(
    options: Options,
    output: Output,
    refs: RefsArgument,
    base: str | None,
    task: Texts,
    probe: str | None,
) -> None:
    """Look at adapters: one, layer by layer; several, all pairs and whether they fit together.

    Needs no base model. --base adds what needs its weights; with --probe it also measures what the
    base knows, and with --task it asks the base, the adapters and their compositions a sample of
    your questions. The verdict goes as far as that evidence.
    """
    read = [probe] if probe and probe != "auto" else []
    found = run(output, options, "inspect", refs, base, task or [], read=read, probe=probe)
    output.result(found.audit, options)


def merge_and_eval(
    options: Options, output: Output, refs: RefsArgument, base: str, task: Texts
) -> None:
    """Compose adapters every reasonable way, measure each on your task, and give a verdict.

    Systems: the base, each adapter alone, merges, routers, a chain of the adapters where the task
    has hops, and two controls. Exit code 0: composing likely works, or no merge and no router was
    asked for; 1: it does not; 3: undecided.
    """
    outcome = run(output, options, "merge_and_eval", refs, base, task or [])
    write(outcome, output, options)
    output.result(outcome.audit, options, samples=outcome.samples)


def demo(
    options: Options,
    output: Output,
    scenario: Annotated[
        str,
        setting(
            "NAME",
            "disjoint, skill-and-facts, target-adapter or keep-both.",
            autocompletion=scenarios,
        ),
    ] = "disjoint",
) -> None:
    """Run merge-and-eval on adapters that ship with loraprobe: offline, in under two minutes.

    --scenario skill-and-facts --guard familiar also asks what the base knew before.
    """
    from loraprobe.base import open_base
    from loraprobe.demo import shipped_world
    from loraprobe.pipeline.conclusion import given_flags
    from loraprobe.pipeline.inputs import Inputs
    from loraprobe.records import Command
    from loraprobe.report.sections import demo_text

    world = shipped_world()
    chosen = world.scenario(scenario)
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    given = tuple(chosen.guards.get(guard, guard) for guard in options.guards)
    options = replace(options, guards=given)
    output.say(f"Scenario {scenario}: {chosen.description}")
    base = open_base(world.path / "base", reference=world.base_name)
    outcome = run(output, options, "merge_and_eval", refs, base, chosen.tasks)
    assert outcome.audit.verdict is not None
    asked: list[tuple[str, ...]] = [("--task", "questions.jsonl")]
    asked += given_flags(Options(added=options.added), Inputs((), ()))
    asked += [("--guard", Path(guard).name) for guard in options.guards]
    own = Command("merge-and-eval", ("owner/one", "owner/two"), tuple(asked))
    audit = replace(outcome.audit, verdict=replace(outcome.audit.verdict, next=own))
    others = [name for name in world.scenarios if name != scenario]
    text = demo_text(audit, others, world.path / "base")
    output.result(audit, options, text, samples=outcome.samples)


def report(
    options: Options,
    output: Output,
    file: Annotated[Path, argument("AUDIT.json", "What --json printed.")],
) -> None:
    """Show a saved result again, in another form too.

    Nothing is measured. Exits 0 whatever the verdict is, 2 if the file is no such document.
    """
    from loraprobe.report.answer import unplaced
    from loraprobe.report.documents import read_audit

    audit = read_audit(file)
    replace(output, exit_zero=True).result(audit, options, unplaced(audit))
