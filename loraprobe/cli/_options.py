"""Options with one meaning in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraprobe.defaults import MARGIN

Refs = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        help="Adapters: a directory, owner/name[@revision[:sub/folder]], or NAME=REF.",
        show_default=False,
    ),
]
_BASE = typer.Option(
    help="Base model: a directory, a Hub id, or auto (what the adapters agree on)."
)
Base = Annotated[str, _BASE]
BaseOrNone = Annotated[str | None, _BASE]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="Task file (JSONL); may be repeated.")
]
Probe = Annotated[
    str | None,
    typer.Option(help="auto, or a file with a question or entity a line (answer after a tab)."),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="Merge method, such as ties:density=0.3; may be repeated."),
]
Method = Annotated[str, typer.Option("--method", help="Merge method, such as ties:density=0.3.")]
Routers = Annotated[
    list[str] | None,
    typer.Option("--router", help="Router, such as arrow:top_k=1; may be repeated."),
]
Router = Annotated[str, typer.Option("--router", help="Router, such as arrow:top_k=1.")]
Systems = Annotated[
    list[str] | None,
    typer.Option("--system", help="Evaluate only these systems (repeat; base and singles stay)."),
]
Space = Annotated[
    str | None,
    typer.Option(
        help="Space that a merge runs in: full, core or knots; without it the method's own."
    ),
]
Rank = Annotated[
    str,
    typer.Option(help="Rank of the merge; auto: as many as lose nothing, at most the ranks' sum."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="One weight an adapter, such as 0.7,0.3 or 1,-0.5; never normalised; uniform has its "
        "own. Or search: found on a part of the task that serves nothing else."
    ),
]
SearchBudget = Annotated[
    int, typer.Option(min=1, help="Weight vectors that --weights search may try.")
]
SearchItems = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Items set apart for --weights search (a quarter, at most 64, unless set).",
        show_default=False,
    ),
]
Balance = Annotated[
    str,
    typer.Option(help="norm: scale adapters to equal Frobenius norm (their mean) first; or none."),
]
Subtract = Annotated[
    list[str] | None,
    typer.Option(
        "--subtract",
        help="Take this adapter's deltas (the mean of several) from every other's first; may be "
        "repeated.",
    ),
]
RouterPrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--router-prompts",
        metavar="NAME=FILE",
        help="Unlabelled prompts, one a line, that show a router what an adapter is for; may be "
        "repeated.",
    ),
]
Quantize = Annotated[str, typer.Option(help="Load the base as it is (none), in 4bit or in 8bit.")]
DeviceMap = Annotated[
    str, typer.Option(help="auto: spread the base over all devices (needs accelerate); or none.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Directory for the recommended composition.", show_default=False
    ),
]
Target = Annotated[
    Path, typer.Option("--output", "-o", help="Directory to write.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda[:n] or mps.")]
Dtype = Annotated[
    str, typer.Option(help="Of the base: auto, float32, bfloat16 or float16 (auto: by the device).")
]
FileDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Of the file: auto (the sources' widest), float32, bfloat16 or float16.",
    ),
]
BatchSize = Annotated[str, typer.Option(help="Prompts a batch, or auto.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default=False)]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use only the first N items.", show_default=False)
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default=False)
]
Metric = Annotated[
    str | None, typer.Option(help="exact_match, choice or answer_loss.", show_default=False)
]
ChatTemplate = Annotated[
    str, typer.Option(help="auto (the better for the single adapters), on or off.")
]
Margin = Annotated[
    float | None,
    typer.Option(help=f"Gain below which composing is not worth it (default {MARGIN:g})."),
]
Retention = Annotated[
    float, typer.Option(help="Share of each specialist's gain that one model must keep.")
]
Prior = Annotated[
    float | None,
    typer.Option(
        help="Share of compositions like this one expected to gain; the probability is for it "
        "(without it the calibration's own).",
        show_default=False,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Calibration that lab calibrate wrote, in place of the shipped one.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
PerModule = Annotated[bool, typer.Option("--per-module", help="Also a row for every module.")]
Exact = Annotated[bool, typer.Option("--exact", help="No sampling: all entries of every delta.")]
Diagnostics = Annotated[
    list[str] | None,
    typer.Option(
        "--diagnostic",
        help="Also compute this, such as intruder_dimensions (needs --base); may be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Html = Annotated[
    Path | None, typer.Option("--html", help="Also write the report to this HTML file.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress or warnings; one line of result.")
]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit 0 whatever the verdict says.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run of the same call stopped.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Accept one named issue, such as base-mismatch; may be repeated."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run model code that a repository brings along."),
]
