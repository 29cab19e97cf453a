"""The commands that write a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraprobe.cli.parameters import (
    COMPOSITION,
    MACHINE,
    BaseOption,
    IssueCodes,
    RefsArgument,
    TaskOption,
    Texts,
    complete_methods,
    complete_routers,
    setting,
)
from loraprobe.cli.running import Output, options_from, run, write
from loraprobe.errors import UsageError
from loraprobe.extension import forms_of, installed
from loraprobe.options import Options

TargetOption = Annotated[Path, typer.Option()]  # which typer would take for an argument


def merge(
    refs: RefsArgument,
    *,
    base: BaseOption = None,
    balance: str = "none",
    subtract: Texts = None,
    allow: IssueCodes = None,
    task: TaskOption = None,
    fields: Texts = None,
    methods: Annotated[
        str,
        setting(
            "TEXT",
            "Merge method, as ties:density=0.3.",
            COMPOSITION,
            "--method",
            autocompletion=complete_methods,
        ),
    ] = "uniform",
    weights: str | None = None,
    space: str | None = None,
    rank: str = "auto",
    dtype: Annotated[
        str,
        setting(
            "TEXT",
            "Of the file: auto (the sources' widest), float32, bfloat16 or float16.",
            MACHINE,
            "--dtype",
        ),
    ] = "auto",
    device: str = "auto",
    threads: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    target: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    explain: bool = False,
    quiet: bool = False,
    **added: Any,
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, to learn
    weights on a task, and for what is written with the base in it; what cannot be merged exactly as
    it stands is refused by name.
    """
    options, output = options_from(locals())
    forms = forms_of(options)
    if target is None and not forms:
        others = [f"{form.flag} DIR" for one in installed() for form in one.forms]
        ways = ", ".join(["-o DIR", *others, *(["or both"] if others else [])])
        raise UsageError(f"merge writes a directory; give {ways}.")
    if target is None and dtype != "auto":
        raise UsageError(
            f"--dtype is that of the adapter; {forms[0][1].name} has its base's. Leave it out."
        )
    save(output, options, "merge", refs, base, task or [])


def route(
    refs: RefsArgument,
    *,
    base: BaseOption = None,
    balance: str = "none",
    subtract: Texts = None,
    allow: IssueCodes = None,
    task: TaskOption = None,
    fields: Texts = None,
    routers: Annotated[
        str,
        setting(
            "TEXT",
            "Router, such as arrow:top_k=1.",
            COMPOSITION,
            "--router",
            autocompletion=complete_routers,
        ),
    ] = "arrow",
    router_prompts: Texts = None,
    weights: str | None = None,
    limit: int | None = None,
    chat_template: str = "auto",
    seed: int = 0,
    device: str = "auto",
    quantize: str = "none",
    device_map: str = "none",
    batch_size: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    target: TargetOption,
    overwrite: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    explain: bool = False,
    quiet: bool = False,
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for learned weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    options, output = options_from(locals())
    save(output, options, "compose", refs, base, task or [])


def save(output: Output, options: Options, *given: Any, **more: Any) -> None:
    """Runs a command that makes something, writes that and prints the audit."""
    outcome = run(output, options, *given, **more)
    write(outcome, output, options)
    place = output.target or forms_of(options)[0][0]
    output.result(outcome.audit, options, line=f"{place}: {outcome.audit.notes[-1]}")
