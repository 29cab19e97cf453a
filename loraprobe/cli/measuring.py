"""The commands that end in an audit of what was measured, and those that print one again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from loraprobe.cli.parameters import (
    OUTPUT,
    BaseOption,
    DiagnosticSpecs,
    IssueCodes,
    MethodSpecs,
    ProbeOption,
    RefsArgument,
    RouterSpecs,
    SystemSpecs,
    TaskOption,
    Texts,
    argument,
    scenarios,
    setting,
)
from loraprobe.cli.running import options_from, run, write
from loraprobe.defaults import LOSS, MARGIN, RETENTION
from loraprobe.errors import UsageError
from loraprobe.options import Options


def inspect(
    refs: RefsArgument,
    *,
    base: BaseOption = None,
    allow: IssueCodes = None,
    task: TaskOption = None,
    fields: Texts = None,
    probe: ProbeOption = None,
    per_module: bool = False,
    diagnostics: DiagnosticSpecs = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    metric: Texts = None,
    margin: float | None = None,
    chat_template: str = "auto",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    explain: bool = False,
    quiet: bool = False,
    exit_zero: bool = False,
    **added: Any,
) -> None:
    """Look at adapters: one, layer by layer; several, all pairs and whether they fit together.

    Needs no base model. --base adds what needs its weights; with --probe it also measures what the
    base knows, and with --task it asks the base, the adapters and their compositions a sample of
    your questions. The verdict goes as far as that evidence.
    """
    options, output = options_from(locals())
    read = [probe] if probe and probe != "auto" else []
    found = run(output, options, "inspect", refs, base, task or [], read=read, probe=probe)
    output.result(found.audit, options)


def merge_and_eval(
    refs: RefsArgument,
    *,
    task: TaskOption = None,
    fields: Texts = None,
    base: BaseOption = "auto",
    balance: str = "none",
    subtract: Texts = None,
    allow: IssueCodes = None,
    methods: MethodSpecs = None,
    routers: RouterSpecs = None,
    systems: SystemSpecs = None,
    space: str | None = None,
    rank: str = "auto",
    weights: str | None = None,
    router_prompts: Texts = None,
    metric: Texts = None,
    margin: float | None = None,
    guards: Texts = None,
    guard_margin: float = MARGIN,
    retention: float = RETENTION,
    limit: int | None = None,
    all_items: bool = False,
    max_new_tokens: int | None = None,
    chat_template: str = "auto",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    device_map: str = "none",
    batch_size: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    target: Annotated[
        Path | None,
        setting("DIR", "Directory for the recommended composition.", OUTPUT, "--output", "-o"),
    ] = None,
    overwrite: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    save_samples: Path | None = None,
    explain: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    exit_zero: bool = False,
    **added: Any,
) -> None:
    """Compose adapters every reasonable way, measure each on your task, and give a verdict.

    Systems: the base, each adapter alone, merges, routers, a chain of the adapters where the task
    has hops, and two controls. Exit code 0: composing likely works; 1: it does not; 3: undecided.
    """
    options, output = options_from(locals())
    if output.save_samples is not None and options.metric == LOSS:
        raise UsageError(
            "--save-samples keeps answers, and --metric=answer_loss asks for none; leave one out."
        )
    outcome = run(output, options, "merge_and_eval", refs, base, task or [])
    write(outcome, output, options)
    output.result(outcome.audit, options, samples=outcome.samples)


def demo(
    *,
    scenario: Annotated[
        str,
        setting(
            "NAME",
            "disjoint, skill-and-facts, target-adapter or keep-both.",
            autocompletion=scenarios,
        ),
    ] = "disjoint",
    margin: float | None = None,
    guards: Texts = None,
    guard_margin: float = MARGIN,
    all_items: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    save_samples: Path | None = None,
    explain: bool = False,
    quiet: bool = False,
    exit_zero: bool = False,
    **added: Any,
) -> None:
    """Run merge-and-eval on adapters that ship with loraprobe: offline, in under two minutes.

    --scenario skill-and-facts --guard familiar also asks what the base knew before.
    """
    options, output = options_from(locals())
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
    file: Annotated[Path, argument("AUDIT.json", "What --json printed.")],
    *,
    html: Path | None = None,
    markdown: bool = False,
    explain: bool = False,
    quiet: bool = False,
) -> None:
    """Show a saved result again: on the terminal, as a page or as Markdown.

    Nothing is measured. Exits 0 whatever the verdict is, 2 if the file is no such document.
    """
    options, output = options_from(locals())
    from loraprobe.report.answer import unplaced
    from loraprobe.report.documents import read_audit

    audit = read_audit(file)
    replace(output, exit_zero=True).result(audit, options, unplaced(audit))
