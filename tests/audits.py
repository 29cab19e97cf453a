"""An audit with one of everything, what renderers make of it, and hostile strings in its texts."""

import dataclasses
import importlib
import io
import math
from collections.abc import Mapping

import making
from markdown_it import MarkdownIt
from rich.console import Console

from loraprobe.records import (
    QUESTION,
    Action,
    AdapterSummary,
    Attribution,
    Audit,
    BaseSummary,
    Command,
    Comparison,
    Compatibility,
    Coverage,
    EvaluationRecords,
    Gain,
    Issue,
    LayerGroup,
    Measurement,
    Provenance,
    Reason,
    Reply,
    Sample,
    Score,
    Verdict,
)
from loraprobe.report.sections import footer, heading, sections
from loraprobe.report.terminal import render

HOSTILE = "ev\x1b[31mil\u202e[red]<script>|`"


def an_audit(name: str = "a") -> Audit:
    """One of everything."""
    summary = AdapterSummary(
        name, f"./{name}", "c" * 40, "gpt2", {"min": 8, "max": 16}, 2, 4096, 1.5
    )
    replies = Reply("base", "", False), Reply("uniform", name, False, "interference")
    reason = Reason("gain-below-margin", f"{name} gains 0.02.", 0.02, 0.05, "user", "decisive")
    return Audit(
        command="merge-and-eval",
        provenance=Provenance(
            "0", "2", ("x", "--per-module"), seconds={"load": 1.25}, peak_memory_bytes=1 << 30
        ),
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
        verdict=Verdict("unlikely", "evaluation", (reason,), "uniform", Action("use-single", name)),
        notes=(f"A note on {name}.",),
    )


# An audit for which nobody was asked.
NOTHING = dict.fromkeys("scores gains comparisons attribution samples coverage".split(), ())


def rendered(audit: Audit, width: int = 100, explain: bool = True) -> str:
    """What a terminal shows of an audit."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    view = "explained" if explain else "short"
    render(console, heading(audit), sections(audit), view, [footer(audit)])
    return out.getvalue()


def page(audit: Audit) -> str:
    """The page of an audit; a test that wants one is skipped where nothing makes it."""
    making.skip_without("--html")
    return importlib.import_module("loraprobe.extensions.reports.page").page(audit)


def markdown(audit: Audit) -> str:
    """What a pull request shows of an audit; the test is skipped where nothing makes it."""
    making.skip_without("--markdown")
    return importlib.import_module("loraprobe.extensions.reports.markdown").markdown(audit)


READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b onclick="x">',
    "</code></pre>",
    "[here](http://e.vil/x)",
    "![i](http://e.vil/i.png)",
    "<http://e.vil>",
    "http://e.vil/x",
    "www.e.vil",
    "a@e.vil",
    "**b** *i* __b__ _i_ ~~s~~",
    "`c`",
    "``",
    "a | b",
    "# h",
    "- x",
    "+ x",
    "1. x",
    "---",
    "===",
    "> q",
    "&lt;b&gt; &#60;i&#62;",
    "[r]: http://e.vil",
    "$x$ {{ x }} {% x %}",
    "\\*x\\* \\",
    "[bold]x[/bold]",
    "[link=http://e.vil]x[/link]",
]
OURS = frozenset(
    "command kind side part severity decision evidence metric device dtype commit sha256 state "
    "outcome".split()
)


def changed(document, path, value):
    """Puts a value at a place of a JSON document."""
    *steps, last = path
    for step in steps:
        document = document[step]
    document[last] = value


def structure(text):
    """What a reader of Markdown makes of a text: its blocks, links, tables ...; text and code are
    left out, since whether a string stands as code depends on what it holds."""
    plain = ("text", "text_special", "softbreak", "code_inline")
    parts = [part for token in READER.parse(text) for part in (token, *(token.children or ()))]
    return [part.type for part in parts if part.type not in plain]


def planted(record, text):
    """The record with `text` in place of every string that somebody else may have chosen."""
    if isinstance(record, Command):
        return Command("inspect", (text,), (("--base", text),))
    if isinstance(record, str):
        return text
    if isinstance(record, tuple):
        return tuple(planted(held, text) for held in record)
    if isinstance(record, Mapping):  # of names, but for the ranks of an adapter
        ranks = record.keys() == {"min", "max"}
        return dict(record) if ranks else {text + k: held for k, held in record.items()}
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record) if field.name not in OURS]
        held = {name: planted(getattr(record, name), text) for name in names}
        return dataclasses.replace(record, **held)
    return record
