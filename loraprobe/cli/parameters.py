"""Every argument and option of the command line: how it is written, and its help.

A command lists those that it takes in its own signature. Options that decide a result have the name
of their field in `loraprobe.options`, which also reads and checks their values; those that say how
a command prints and where it writes have that of their field in `Output`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loraprobe.cli.completing import (
    codes,
    diagnostic_specs,
    method_specs,
    router_specs,
    scenarios,
    system_specs,
)
from loraprobe.defaults import MARGIN

PANELS = "Adapters", "Tasks", "Composition", "Evaluation", "Machine", "Output"  # in their order
ADAPTERS, TASKS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = PANELS
DEBUG = "loraprobe.debug"
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument, which has no default to show."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def setting(metavar: str, help: str, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """An option with a value, named after its parameter unless flags are given. panel: where the
    help shows it."""
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **more)


def flag(help: str, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """An option without a value."""
    return typer.Option(*flags, metavar=" ", help=help, rich_help_panel=panel, **more)


def _debug(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG] = True  # the same dictionary in every context of a call


Texts = list[str] | None  # the values of an option that may be repeated

# Arguments.
RefsArgument = Annotated[list[str], argument("REF", f"Adapters: {REFERENCE}.")]
RefArgument = Annotated[str, argument("REF", "The adapter, as for inspect.")]
LibraryArgument = Annotated[
    list[str],
    argument("REF", f"Adapters: {REFERENCE}; @FILE with one a line; or - for standard input."),
]
TasksArgument = Annotated[list[str], argument("FILE", "Task files, or hf://datasets/owner/name.")]

# Adapters.
_BASE = setting(
    "REF", "Base model: a directory, a Hub id, or auto (what the adapters agree on).", ADAPTERS
)
BaseOption = Annotated[str, _BASE]
BaseOrNoneOption = Annotated[str | None, _BASE]
BalanceOption = Annotated[
    str,
    setting(
        "none|norm",
        "norm: scale the adapters to one Frobenius norm, the mean of theirs, first; or none.",
        ADAPTERS,
    ),
]
SubtractOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Subtract this adapter's deltas (the mean of several) from every other's first; may be "
        "repeated.",
        ADAPTERS,
    ),
]
AllowOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Accept one named issue, such as base-mismatch; may be repeated.",
        ADAPTERS,
        autocompletion=codes,
    ),
]
ServeOption = Annotated[
    Texts,
    setting(
        "SERVER",
        "Tell what these servers would refuse or misread in the file: vllm, sglang, llama.cpp, "
        "ollama, peft (each may have @VERSION), or all; with commas, or repeated.",
        ADAPTERS,
    ),
]
LikeOption = Annotated[
    str | None,
    setting(
        "REF",
        "Give the modules the names that this base or adapter has for them, such as those of the "
        "class with vision.",
        ADAPTERS,
    ),
]

# Tasks.
TaskOption = Annotated[
    Texts,
    setting(
        "FILE",
        "Questions: JSONL, JSON, CSV, TSV, Parquet, hf:// for a data set of the Hub, or "
        "lm_eval:TASK[,TASK][@DIR]; may be repeated.",
        TASKS,
    ),
]
FieldsOption = Annotated[
    Texts,
    setting(
        "KEY=FIELD",
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; repeated: one for each task.",
        TASKS,
    ),
]
PromptTemplateOption = Annotated[
    Texts,
    setting(
        "FILE|TEXT",
        "The prompt, with {field} for a field of the task's file; repeated: one for each task.",
        TASKS,
    ),
]
AnswerAfterOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "The gold answer follows this text in its field, as #### in gsm8k; repeated: one for each "
        "task.",
        TASKS,
    ),
]
AnswerPatternOption = Annotated[
    Texts,
    setting(
        "REGEX",
        "The gold answer is what this regular expression finds last in its field (its first "
        "group); repeated: one for each task.",
        TASKS,
    ),
]

# Composition.
MethodsOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Merge method, such as ties:density=0.3; may be repeated; none: no merge.",
        COMPOSITION,
        "--method",
        autocompletion=method_specs,
    ),
]
MethodOption = Annotated[
    str,
    setting(
        "TEXT",
        "Merge method, as ties:density=0.3.",
        COMPOSITION,
        "--method",
        autocompletion=method_specs,
    ),
]
RoutersOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Router, such as arrow:top_k=1; may be repeated; none: no router.",
        COMPOSITION,
        "--router",
        autocompletion=router_specs,
    ),
]
RouterOption = Annotated[
    str,
    setting(
        "TEXT",
        "Router, such as arrow:top_k=1.",
        COMPOSITION,
        "--router",
        autocompletion=router_specs,
    ),
]
SystemsOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Compose only this system; may be repeated. The base, the single adapters and the controls "
        "stay.",
        COMPOSITION,
        "--system",
        autocompletion=system_specs,
    ),
]
RouterPromptsOption = Annotated[
    Texts,
    setting(
        "NAME=FILE",
        "Unlabelled prompts of one adapter, one a line, for a router that learns from prompts; "
        "may be repeated.",
        COMPOSITION,
    ),
]
WeightsOption = Annotated[
    str | None,
    setting(
        "TEXT",
        "One weight for each adapter, such as 0.7,0.3 or 1,-0.5, used as given (uniform ignores "
        "them); or learn, or learn:per=layer: by gradient descent on a part of the task that "
        "serves nothing else.",
        COMPOSITION,
    ),
]
SpaceOption = Annotated[
    str | None,
    setting(
        "TEXT",
        "Space in which a merge runs: full, core or knots; without it the method's own.",
        COMPOSITION,
    ),
]
RankOption = Annotated[
    str,
    setting(
        "N",
        "Rank of the merge; auto: as many as lose nothing, at most the sum of the ranks.",
        COMPOSITION,
    ),
]
PortableOption = Annotated[
    bool,
    flag(
        "One rank and one scaling in all modules, or those of the file.",
        COMPOSITION,
        "--portable/--compact",
    ),
]

# Evaluation.
ProbeOption = Annotated[
    str | None,
    setting(
        "auto|FILE",
        "auto, or a file with a question or entity a line (an answer after a tab).",
        EVALUATION,
    ),
]
LimitOption = Annotated[int | None, setting("N", "Use only the first N items.", EVALUATION)]
AllItemsOption = Annotated[
    bool,
    flag(
        "Ask every system all items; otherwise a run stops as soon as the decision holds.",
        EVALUATION,
        "--all-items",
    ),
]
ItemsOption = Annotated[
    int, setting("N", "Items of each task on which a library is screened.", EVALUATION)
]
KeepOption = Annotated[int, setting("N", "Sets of a library that are proved.", EVALUATION)]
BudgetOption = Annotated[float | None, setting("X", "Minutes that a screen may take.", EVALUATION)]
MaxNewTokensOption = Annotated[int | None, setting("N", "Longest answer, in tokens.", EVALUATION)]
MetricOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "How answers are judged: auto (by what the gold answers need), exact_match, strict, "
        "contains, json, numeric, regex, choice or answer_loss; TASK=metric for one task; may be "
        "repeated.",
        EVALUATION,
    ),
]
MarginOption = Annotated[
    float | None,
    setting("X", f"Gain below which composing is not worth it (default {MARGIN:g}).", EVALUATION),
]
RetentionOption = Annotated[
    float,
    setting("X", "Share of each specialist's gain that one model must keep.", EVALUATION),
]
PriorOption = Annotated[
    float | None,
    setting(
        "X",
        "Share of such compositions that you expect to gain; the probability is for it (without "
        "it the calibration's own).",
        EVALUATION,
    ),
]
CalibrationOption = Annotated[
    Path | None,
    setting(
        "FILE", "Calibration that lab calibrate wrote, in place of the shipped one.", EVALUATION
    ),
]
ChatTemplateOption = Annotated[
    str,
    setting("auto|on|off", "auto (the better for the single adapters), on or off.", EVALUATION),
]
DiagnosticsOption = Annotated[
    Texts,
    setting(
        "TEXT",
        "Also compute this diagnostic, such as intruder_dimensions (needs --base); may be "
        "repeated.",
        EVALUATION,
        "--diagnostic",
        autocompletion=diagnostic_specs,
    ),
]
PerModuleOption = Annotated[
    bool, flag("Also give a row for every module.", EVALUATION, "--per-module")
]
SeedOption = Annotated[
    int, setting("N", "Seed of everything that is drawn.", EVALUATION, show_default=False)
]
ScenarioOption = Annotated[
    str,
    setting(
        "NAME",
        "disjoint, skill-and-facts, target-adapter or keep-both.",
        autocompletion=scenarios,
    ),
]

# Machine.
DeviceOption = Annotated[str, setting("TEXT", "auto, cpu, cuda[:n] or mps.", MACHINE)]
DtypeOption = Annotated[
    str,
    setting("TEXT", "Of the base: auto (by the device), float32, bfloat16 or float16.", MACHINE),
]
FileDtypeOption = Annotated[
    str,
    setting(
        "TEXT",
        "Of the file: auto (the sources' widest), float32, bfloat16 or float16.",
        MACHINE,
        "--dtype",
    ),
]
QuantizeOption = Annotated[
    str, setting("TEXT", "Load the base as it is (none), in 4bit or in 8bit.", MACHINE)
]
DeviceMapOption = Annotated[
    str,
    setting(
        "none|auto", "auto: spread the base over all devices (needs accelerate); or none.", MACHINE
    ),
]
TrustRemoteCodeOption = Annotated[
    bool,
    flag("Run model code that the base's repository holds.", MACHINE, "--trust-remote-code"),
]
RunUnsafeCodeOption = Annotated[
    bool,
    flag(
        "Let lm_eval: run the code in a folder of YAML, or what a model writes.",
        MACHINE,
        "--run-unsafe-code",
    ),
]
BatchSizeOption = Annotated[str, setting("N", "Prompts a batch, or auto.", MACHINE)]
ThreadsOption = Annotated[int | None, setting("N", "CPU threads.", MACHINE)]
ExecutorOption = Annotated[
    str | None,
    setting(
        "WHERE",
        "Ask the base by tasks of a Ray cluster: ray (this machine) or ray://ADDRESS.",
        MACHINE,
    ),
]

# Output.
ResumeOption = Annotated[
    bool, flag("Use what an interrupted run of this call, or inspect, kept.", OUTPUT, "--resume")
]
TargetOption = Annotated[Path, setting("DIR", "Directory to write.", OUTPUT, "--output", "-o")]
TargetOrNoneOption = Annotated[
    Path | None,
    setting("DIR", "Directory for the recommended composition.", OUTPUT, "--output", "-o"),
]
OverwriteOption = Annotated[bool, flag("Replace an existing output.", OUTPUT, "--overwrite")]
PushOption = Annotated[
    str | None,
    setting(
        "OWNER/NAME",
        "Upload the directory to this repository of the Hub, private unless --public.",
        OUTPUT,
    ),
]
PublicOption = Annotated[bool, flag("Let everybody read what --push uploads.", OUTPUT, "--public")]
JsonOption = Annotated[bool, flag("Print one JSON document on standard output.", OUTPUT, "--json")]
HtmlOption = Annotated[
    Path | None, setting("FILE", "Also write the report to this HTML file.", OUTPUT)
]
MarkdownOption = Annotated[
    bool, flag("Print the result as Markdown, for a pull request.", OUTPUT, "--markdown")
]
SaveSamplesOption = Annotated[
    Path | None,
    setting(
        "FILE",
        "Write every question with what each system answered to this file (JSONL).",
        OUTPUT,
    ),
]
ExplainOption = Annotated[bool, flag("Print every reason, probe and figure.", OUTPUT, "--explain")]
DryRunOption = Annotated[
    bool,
    flag("Print what the run would take (systems, time, memory), and stop.", OUTPUT, "--dry-run"),
]
QuietOption = Annotated[
    bool, flag("No progress or warnings; one line of result.", OUTPUT, "--quiet", "-q")
]
ExitZeroOption = Annotated[bool, flag("Exit 0 whatever the verdict says.", OUTPUT, "--exit-zero")]
ConfigOption = Annotated[
    str | None,
    setting(
        "FILE",
        "Take options that are not given here from this YAML file, by their long names.",
        OUTPUT,
        show_default=False,
    ),
]
DebugOption = Annotated[
    bool, flag("On an error also print the traceback.", OUTPUT, "--debug", callback=_debug)
]
