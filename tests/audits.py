"""An audit with one of everything, and what the renderers make of an audit."""

import dataclasses
import io
import math

from rich.console import Console

from loraprobe.records import (
    QUESTION,
    AdapterSummary,
    Attribution,
    Audit,
    BaseSummary,
    Comparison,
    Compatibility,
    Coverage,
    EvaluationRecords,
    Forecast,
    Gain,
    GateStatistics,
    Issue,
    LayerGroup,
    Library,
    LibraryAdapter,
    LibraryScore,
    Measurement,
    Provenance,
    Reason,
    Reply,
    Sample,
    Score,
    Shortlisted,
    Verdict,
)
from loraprobe.report import markdown as as_markdown
from loraprobe.report import page as as_page
from loraprobe.report.sections import footer, heading, sections, title
from loraprobe.report.terminal import render

HOSTILE = "ev\x1b[31mil\u202e[red]<script>|`"


def a_library(name: str) -> Library:
    """An adapter of every state."""
    lost = Issue("error", "adapter", (name,), f"{name} is empty.", "Download it again.")
    far = Issue("warning", "norm-outlier", (name,), f"The norm of {name} is large.", "Look at it.")
    one = LibraryAdapter(
        name, name, None, "e" * 64, "gpt2", {"min": 8, "max": 8}, 2, 4096, 1.5, "usable", (far,)
    )
    one = dataclasses.replace(one, scores=(LibraryScore("t", "question", 0.5, 20),))
    rows = [
        dataclasses.replace(one, family=1, place=(x, 0.25), outlier=x > 0) for x in (-1.0, 0.0, 1.0)
    ]
    broken = dataclasses.replace(one, state="broken", issues=(lost,), norm=None, rank=None)
    copy = dataclasses.replace(one, state="duplicate", same_as=name)
    scaled = dataclasses.replace(rows[0], same_as=name)
    unfit = dataclasses.replace(broken, state="unfit")
    adapters = (*rows, scaled, broken, unfit, copy)
    return Library(adapters, 0.02, 0.5)


def an_audit(name: str = "a") -> Audit:
    """One of everything."""
    summary = AdapterSummary(
        name, f"./{name}", "c" * 40, "gpt2", {"min": 8, "max": 16}, 2, 4096, 1.5
    )
    replies = Reply("base", "", False), Reply("uniform", name, False, "interference")
    reason = Reason("gain-below-margin", f"{name} gains 0.02.", 0.02, 0.05, "user", "decisive")
    return Audit(
        command="merge-and-eval",
        provenance=Provenance("0", "2", ("x",), seconds={"load": 1.25}, peak_memory_bytes=1 << 30),
        adapters=(summary, dataclasses.replace(summary, name="b")),
        base=BaseSummary("gpt2", "d" * 40),
        layers=(LayerGroup(name, "h.*.c", "conv1d", 2, (8, 16), (4, 4), (4, 4), (1.0, 2.0)),),
        compatibility=Compatibility((Issue("warning", "x-y", (name,), f"{name} is odd.", "Fix."),)),
        diagnostics=(
            Measurement("norm", (name,), 1.5),
            Measurement("subspace_overlap", (name, "b"), 0.3, side="in", chance=0.1),
            Measurement("cosine", (name, "b"), math.nan, module="h.0.c"),
            Measurement("norm", (name,), 1.25, module="h.0.c"),
            Measurement("norm", (name,), 0.25, module="h.1.c"),
        ),
        evaluation=EvaluationRecords(
            coverage=(Coverage("hop_accuracy", "t", 0.5, 10, 1, (name,), (0.2, 0.8), 0.1),),
            scores=(
                Score("base", "base", "t", QUESTION, "exact_match", 0.1, (0.0, 0.2), 10),
                Score("uniform", "merge", "t", QUESTION, "exact_match", 0.1, (0.0, 0.2), 10, 0.5),
            ),
            comparisons=(Comparison("uniform", name, "t", QUESTION, 0.0, (-0.1, 0.1), 10),),
            gains=(Gain("t", QUESTION, "uniform", name, 0.0, (-0.1, 0.1), (-0.2, 0.2), 10, 900),),
            attribution=(Attribution("uniform", "t", 1, 2, 3, 4, 0),),
        ),
        samples=(Sample("t", QUESTION, name, f"Who is {name}?", (name, "x"), replies),),
        gates=(
            GateStatistics("arrow", {name: 0.75, "b": 0.25}, 0.5, 0.72, 4, 90),
            GateStatistics("spectr", {name: 1.0, "b": 0.0}, 0.0, 0.0, 2, 90),
        ),
        library=a_library(name),
        shortlist=(Shortlisted((name, "b"), "pair", 1, 3, Forecast("sum", 0.1, (0.0, 0.2), 9)),),
        verdict=Verdict("unlikely", "evaluation", (reason,), "uniform", f"use-single:{name}"),
        notes=(f"A note on {name}.",),
    )


NOTHING = dict.fromkeys("scores gains comparisons attribution samples gates coverage".split(), ())
NOTHING |= {"shortlist": ()}  # an audit for which nobody was asked


def rendered(audit: Audit, width: int = 100, explain: bool = True) -> str:
    """What a terminal shows of an audit."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    view = "explained" if explain else "short"
    render(console, heading(audit), sections(audit), view, [footer(audit)])
    return out.getvalue()


def page(audit: Audit) -> str:
    """The page of an audit."""
    return as_page.page(title(audit), sections(audit))


def markdown(audit: Audit) -> str:
    """What a pull request shows of an audit."""
    return as_markdown.markdown(heading(audit), sections(audit))
