"""The commands that write a directory, and `verify`, which checks one against its card."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from loraprobe.cli.output import Output, imports_done
from loraprobe.cli.parameters import (
    AllowOption,
    AnswerAfterOption,
    AnswerPatternOption,
    BalanceOption,
    BaseOrNoneOption,
    BatchSizeOption,
    ChatTemplateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ExplainOption,
    FieldsOption,
    FileDtypeOption,
    HtmlOption,
    JsonOption,
    LikeOption,
    LimitOption,
    MarkdownOption,
    MethodOption,
    OverwriteOption,
    PortableOption,
    ProbeOption,
    PromptTemplateOption,
    PublicOption,
    PushOption,
    QuantizeOption,
    QuietOption,
    RankOption,
    RefArgument,
    RefsArgument,
    RouterOption,
    RouterPromptsOption,
    SeedOption,
    SpaceOption,
    SubtractOption,
    TargetOption,
    TaskOption,
    ThreadsOption,
    TrustRemoteCodeOption,
    WeightsOption,
    argument,
    setting,
)
from loraprobe.cli.running import options_from, run, write
from loraprobe.errors import UsageError

DirectoryArgument = Annotated[
    str, argument("DIR", "What merge, route or merge-and-eval wrote; with --served any adapter.")
]
SourcesArgument = Annotated[
    list[str] | None,
    argument("REF", "Where the adapters are that it was made of, if they moved."),
]
MovedBaseOption = Annotated[
    str | None, setting("REF", "Where the base is, if one was used and it moved.")
]
ServedOption = Annotated[
    str | None,
    setting(
        "URL",
        "Ask this OpenAI-compatible server whether it applies the adapter (a key comes from "
        "OPENAI_API_KEY).",
        "Server",
    ),
]
ModelOption = Annotated[
    str | None,
    setting("NAME", "The adapter's name on that server, if it has several models.", "Server"),
]


def merge(
    refs: RefsArgument,
    *,
    base: BaseOrNoneOption = None,
    balance: BalanceOption = "none",
    subtract: SubtractOption = None,
    allow: AllowOption = None,
    task: TaskOption = None,
    fields: FieldsOption = None,
    prompt_template: PromptTemplateOption = None,
    answer_after: AnswerAfterOption = None,
    answer_pattern: AnswerPatternOption = None,
    methods: MethodOption = "uniform",
    weights: WeightsOption = None,
    space: SpaceOption = None,
    rank: RankOption = "auto",
    dtype: FileDtypeOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    target: TargetOption,
    overwrite: OverwriteOption = False,
    push: PushOption = None,
    public: PublicOption = False,
    json: JsonOption = False,
    html: HtmlOption = None,
    markdown: MarkdownOption = False,
    explain: ExplainOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, and to
    learn weights on a task; what cannot be merged exactly as it stands is refused by name.
    """
    options, output = options_from(locals())
    from loraprobe.pipeline import commands

    _save(output, options, refs, base, task, commands.merge)


def route(
    refs: RefsArgument,
    *,
    base: BaseOrNoneOption = None,
    balance: BalanceOption = "none",
    subtract: SubtractOption = None,
    allow: AllowOption = None,
    task: TaskOption = None,
    fields: FieldsOption = None,
    prompt_template: PromptTemplateOption = None,
    answer_after: AnswerAfterOption = None,
    answer_pattern: AnswerPatternOption = None,
    routers: RouterOption = "arrow",
    router_prompts: RouterPromptsOption = None,
    weights: WeightsOption = None,
    limit: LimitOption = None,
    chat_template: ChatTemplateOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = "none",
    device_map: DeviceMapOption = "none",
    batch_size: BatchSizeOption = "auto",
    threads: ThreadsOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    target: TargetOption,
    overwrite: OverwriteOption = False,
    push: PushOption = None,
    public: PublicOption = False,
    json: JsonOption = False,
    html: HtmlOption = None,
    markdown: MarkdownOption = False,
    explain: ExplainOption = False,
    quiet: QuietOption = False,
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for learned weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    options, output = options_from(locals())
    from loraprobe.pipeline import commands

    _save(output, options, refs, base, task, commands.compose)


def convert(
    ref: RefArgument,
    *,
    base: BaseOrNoneOption = None,
    like: LikeOption = None,
    allow: AllowOption = None,
    portable: PortableOption = True,
    threads: ThreadsOption = None,
    target: TargetOption,
    overwrite: OverwriteOption = False,
    push: PushOption = None,
    public: PublicOption = False,
    json: JsonOption = False,
    html: HtmlOption = None,
    markdown: MarkdownOption = False,
    explain: ExplainOption = False,
    quiet: QuietOption = False,
) -> None:
    """Rewrite one adapter so that peft and servers read it, without changing what it computes.

    Keys get peft's prefix once, a .bin becomes safetensors, rsLoRA and patterns become one rank and
    one scaling. What cannot be kept exactly is refused by name. DoRA stays DoRA.
    """
    options, output = options_from(locals())
    from loraprobe.pipeline import commands

    whole = partial(commands.convert, like=like, portable=portable)
    _save(output, options, [ref], base, None, whole)


def _save(output: Output, *given: Any) -> None:
    """Runs a command that makes something, writes that and prints the audit."""
    found = run(output, *given)
    write(found.made, output)
    output.result(found.audit, line=f"{output.target}: {found.audit.notes[-1]}")


def verify(
    directory: DirectoryArgument,
    sources: SourcesArgument = None,
    *,
    base: MovedBaseOption = None,
    served: ServedOption = None,
    model: ModelOption = None,
    probe: ProbeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a merge or a composition again from its card and compare the whole directory.

    With --served it instead compares the log-probabilities of a running server with those of the
    base and of the adapter, run here. Exits 0 if everything holds, 1 if something does not, 3 if it
    cannot be told, such as where a source is not found.
    """
    options, output = options_from(locals())
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if served is None:
        if model or probe:
            raise UsageError("--model and --probe go with --served URL; add that.")
        code = _verify_card(directory, sources or [], base, output)
    else:
        if sources:
            raise UsageError(f"--served takes one adapter, and {sources[0]} was given too.")
        asked = {"model": model, "base": base, "probe": probe, "options": options}
        code = _verify_server(directory, served, output, **asked)
    raise typer.Exit(code)


def _verify_card(directory: str, sources: list[str], base: str | None, output: Output) -> int:
    """Compares a directory with its card; the exit code."""
    from loraprobe.pipeline import verify
    from loraprobe.report.terminal import render
    from loraprobe.report.verification import as_plain, verification_sections

    imports_done()
    found = verify.verify(directory, sources, base)
    told = {True: (0, "verified"), False: (1, "not verified"), None: (3, "cannot tell")}
    code, short = told[found.passed]
    shown, title = verification_sections(found), f"loraprobe verify {found.directory}"
    show = partial(render, Console(highlight=False), title, shown, "short")
    output.tell("verify", as_plain(found), short, show)
    return code


def _verify_server(directory: str, url: str, output: Output, **asked: Any) -> int:
    """Asks a server what it serves; the exit code."""
    from loraprobe.pipeline import served
    from loraprobe.report.terminal import print_answer
    from loraprobe.report.verification import served_answer

    with output.progress() as progress:
        found = served.ask_server(directory, url, progress=progress, **asked)
    show = partial(print_answer, Console(highlight=False), served_answer(found, directory))
    output.tell("verify", {"served": found}, found.serves, show)
    return {"adapter": 0, "unclear": 3}.get(found.serves, 1)
