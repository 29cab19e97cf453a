"""The tables of what systems answered: scores, gains, causes of failure, what is known alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraprobe.formatting import interval, listing, measured, number
from loraprobe.records import Audit, Interval, Sample, Score
from loraprobe.report.table import Column, Table, figures, tabulated, text
from loraprobe.verdict import formatting as fmt

GROUPS = (("base", "adapter"), ("merge", "router"), ("chain",), ("control",))
CAUSES = {  # the field of Attribution, its name, and a colour on which white text is readable
    "solved": ("solved", "#1a7a4a"),
    "step_by_step": ("step by step", "#2f6f9f"),
    "said_otherwise": ("said otherwise", "#4f7a1a"),
    "unknown": ("unknown", "#666666"),
    "cut_off": ("cut off", "#8a6100"),
    "interference": ("interference", "#b3452c"),
    "not_composed": ("not composed", "#7a5aa0"),
}
PARTS = {"question": "question", "steps": "step by step"}


def form(part: str) -> str:
    """The part of a task in the words of every report."""
    return PARTS.get(part, part.replace("hop", "hop "))


def signed(value: float | None) -> str:
    """A difference with its sign, as a verdict quotes it."""
    return fmt.signed(value) if measured(value) else "-"


def bounds(ci95: Interval | None) -> str:
    """The interval of a difference, as a verdict quotes it."""
    return fmt.interval(*ci95) if ci95 is not None and all(map(measured, ci95)) else "-"


def in_order(rows: Sequence[Score]) -> list[str]:
    """The names of systems: base and single adapters, compositions, chain, controls."""
    return [
        system
        for group in GROUPS
        for system in dict.fromkeys(s.system for s in rows if s.kind in group)
    ]


def _part_order(part: str) -> tuple[int, str]:
    """The question, then its hops, then the worked form."""
    return {"question": 0, "steps": 2}.get(part, 1), part


def scores(audit: Audit, intervals: bool = True) -> list[Table]:
    """Systems down, forms of the question across, a table a task."""
    tasks = dict.fromkeys(row.task for row in audit.evaluation.scores)
    return [
        _scores([row for row in audit.evaluation.scores if row.task == t], intervals) for t in tasks
    ]


def _scores(rows: Sequence[Score], intervals: bool) -> Table:
    parts = sorted({row.part for row in rows}, key=_part_order)
    retained = any(row.retention is not None for row in rows)
    cells = {(row.system, row.part): row for row in rows}
    lines = []
    for system in in_order(rows):
        own = [cells.get((system, part)) for part in parts]
        kept = next((row.retention for row in own if row and row.retention is not None), None)
        line = [system, *(_score(row, intervals) for row in own)]
        lines.append([*line, number(kept)] if retained else line)
    items = max(row.n for row in rows)
    metric = min(rows, key=lambda row: _part_order(row.part)).metric  # that of the question
    columns = [text("system"), *figures(*map(form, parts), *["retention"][:retained])]
    caption = f"Evaluation: {rows[0].task} ({items} items, {metric}){fewer(rows)}"
    return Table(caption, columns, lines)


def _score(row: Score | None, intervals: bool) -> str:
    if row is None:
        return "-"
    ci95 = interval(row.ci95) if intervals and not row.part.startswith("hop") else ""
    return f"{number(row.value)} {ci95}".strip()


def fewer(rows: Sequence[Score]) -> str:
    """Which systems answered fewer questions than the others, in brackets; "" if none did."""
    kinds = {s.system: "composition" if s.kind in ("merge", "router") else s.kind for s in rows}
    groups = dict[str, list[str]]()
    for system in kinds:
        groups.setdefault(most_asked([s for s in rows if s.system == system]), []).append(system)
    groups.pop(most_asked(rows), None)
    told = [f"{_together(names, kinds)}: {asked}" for asked, names in groups.items()]
    return f" ({'; '.join(told)})" if told else ""


def most_asked(rows: Sequence[Score]) -> str:
    """How many questions of each task were asked at most, such as 200 + 100."""
    tasks = dict.fromkeys(s.task for s in rows)
    return " + ".join(str(max(s.n for s in rows if s.task == task)) for task in tasks)


def _together(names: Sequence[str], kinds: Mapping[str, str]) -> str:
    """Names of systems, with one word for all compositions or all controls."""
    found = []
    for kind in dict.fromkeys(kinds[name] for name in names):
        own = [name for name in names if kinds[name] == kind]
        every = len(own) == list(kinds.values()).count(kind) > 1
        found += [f"{kind}s"] if every else own
    return listing(found)


def controls(audit: Audit) -> str:
    """What the controls among the scored systems are, in one sentence; "" without controls."""
    named = dict.fromkeys(row.system for row in audit.evaluation.scores if row.kind == "control")
    told = []
    for name in named:
        kind, _, single = name.partition(":")
        if kind == "shrunk":
            share = f"by 1/{len(audit.adapters)}" if not audit.shortlist else "as in an average"
            told.append(f"{name} ({single} alone, scaled {share})")
        elif name == "random-partner":
            told.append(f"{name} (random adapters as large as the partners)")
    return f"Controls, which a composition has to beat: {listing(told)}." if told else ""


def gains(audit: Audit) -> Table:
    """What every composition gains over the best of base and single adapters, largest first."""
    return tabulated(
        "Gains over the best of base and single adapters",
        sorted(audit.evaluation.gains, key=lambda gain: -gain.difference),
        (text("system"), lambda gain: gain.system),
        (text("asked as"), lambda gain: form(gain.part)),
        (Column("gain"), lambda gain: signed(gain.difference)),
        (Column("95 %"), lambda gain: bounds(gain.ci95)),
        (Column("95 % for the choice"), lambda gain: bounds(gain.adjusted_ci95)),
        (text("against"), lambda gain: gain.against),
        (text("task"), lambda gain: gain.task or "all tasks"),
        (Column("items"), lambda gain: str(gain.n)),
        (Column("items to decide"), lambda gain: str(gain.n_needed or "-")),
    ).without("task")


def comparisons(audit: Audit) -> Table:
    """Paired differences: of compositions to base, singles and controls, and of the best to all."""
    return tabulated(
        "Paired differences between systems",
        audit.evaluation.comparisons,
        (text("system"), lambda row: row.system),
        (text("against"), lambda row: row.against),
        (text("asked as"), lambda row: form(row.part)),
        (text("against asked as"), lambda row: form(row.against_part or row.part)),
        (text("task"), lambda row: row.task),
        (Column("difference"), lambda row: signed(row.difference)),
        (Column("95 %"), lambda row: bounds(row.ci95)),
        (Column("95 % for the choice"), lambda row: bounds(row.adjusted_ci95)),
        (Column("items"), lambda row: str(row.n)),
    ).without("task")


def causes(audit: Audit) -> Table:
    """How many items of each composition fall to which cause."""
    columns = [text("system"), text("task"), *figures(*(name for name, _ in CAUSES.values()))]
    lines = [
        [row.system, row.task, *(str(getattr(row, cause)) for cause in CAUSES)]
        for row in audit.evaluation.attribution
    ]
    caption = "Where the answers went, by the first cause that fits"
    return Table(caption, columns, lines).without("task")


def coverage(audit: Audit) -> list[Table]:
    """What the base and each adapter alone know, a table a task."""
    return [
        tabulated(
            f"Coverage: {task}",
            [row for row in audit.evaluation.coverage if row.task == task],
            (text("probe"), lambda row: row.name.replace("_", " ")),
            (text("of"), lambda row: " → ".join(row.adapters) or "base"),
            (text("part"), lambda row: f"hop {row.hop}" if row.hop else "question"),
            (Column("value"), lambda row: number(row.value)),
            (Column("guess", drop=3), lambda row: number(row.baseline)),
            (Column("95 %", drop=1), lambda row: interval(row.ci95) or "-"),
            (Column("items", drop=2), lambda row: str(row.n)),
        )
        for task in dict.fromkeys(row.task for row in audit.evaluation.coverage)
    ]


def forecasts(audit: Audit) -> Table:
    """What was forecast before anything was composed."""
    return tabulated(
        "Forecast gains, if the adapters' effects on the next token simply added",
        audit.evaluation.forecasts,
        (text("system"), lambda row: row.system),
        (text("asked as"), lambda row: form(row.part)),
        (text("against"), lambda row: row.against),
        (Column("forecast gain"), lambda row: signed(row.gain)),
        (Column("95 %"), lambda row: bounds(row.ci95)),
        (Column("items"), lambda row: str(row.n)),
    )


def reasons(audit: Audit) -> Table:
    """Every reason of the verdict with its figure, its threshold and where that comes from."""
    return tabulated(
        "Reasons",
        audit.verdict.reasons if audit.verdict is not None else (),
        (text("code"), lambda row: row.code),
        (text("weight"), lambda row: row.severity),
        (text("what was measured"), lambda row: row.message),
        (text("where the threshold comes from"), lambda row: row.source or "-"),
        (Column("value"), lambda row: number(row.value)),
        (Column("threshold"), lambda row: number(row.threshold)),
    )


def replies(sample: Sample) -> Table:
    """What each system answered to one question, and why compositions fail it."""
    return tabulated(
        "What each system answered",
        sample.replies,
        (text("system"), lambda reply: reply.system),
        (text("answer", prose=True), lambda reply: reply.text or "(nothing)"),
        (text("right or wrong"), lambda reply: "right" if reply.right else "wrong"),
        (text("first cause", drop=1), lambda reply: CAUSES.get(reply.cause or "", "-")[0]),
    )


def gates(audit: Audit) -> Table:
    """How each token router shared its gates, over all layers and layer by layer."""
    names = list(dict.fromkeys(name for row in audit.gates for name in row.share))
    lines = [
        [
            row.system,
            row.layer or "all layers",
            *(number(row.share.get(name)) for name in names),
            f"{number(row.entropy)} ({number(row.entropy_share)})",
        ]
        for row in audit.gates
    ]
    evenness = "entropy in nats (share of the largest)"
    columns = [text("router"), text("layer"), *figures(*names, evenness)]
    return Table("Mean share of each adapter's gate on the prompts", columns, lines)
