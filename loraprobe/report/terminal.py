"""One Audit on a terminal: the findings, then the verdict and its action."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from loraprobe.records import Audit, Reason, Verdict
from loraprobe.report import tables
from loraprobe.report.formatting import clean, size

STYLES = {
    "likely": "bold green",
    "unlikely": "bold red",
    "inconclusive": "bold yellow",
    "incompatible": "bold red",
}
MEANINGS = {
    "likely": "composing these adapters likely works for this task",
    "unlikely": "composing these adapters does not give what the task asks",
    "inconclusive": "this evidence does not decide",
    "incompatible": "these adapters cannot be composed as they are",
}
ACTIONS = {
    "merge": "merge them",
    "route": "route between them",
    "chain": "chain them: ask each hop of its own adapter and put the answer into the next prompt",
    "step-by-step": "ask step by step",
    "use-base": "use the base alone",
    "switch-adapters": "load the adapter of each task by itself",
    "train-target-adapter": "train one adapter on the target task",
    "gather-evidence": "get the evidence that is named below",
    "fix": "apply the cures below",
}
FORECAST = ("forecast", "probability-measured-on")


def render(audit: Audit, console: Console) -> None:
    """Prints the whole audit."""
    heading = f"[bold]loraprobe {audit.command}[/]"
    if audit.base is not None:
        commit = f" @ {audit.base.commit[:10]}" if audit.base.commit else ""
        heading += f"  base {escape(clean(audit.base.reference))}{commit}"
    console.print(heading)
    for line in sources(audit):
        console.print(line, style="dim")
    parts: list[Table | None] = [
        tables.adapters(audit),
        tables.layers(audit),
        tables.issues(audit),
        *tables.diagnostics(audit, console.width),
        *tables.coverage(audit),
        *tables.evaluation(audit),
        tables.attribution(audit),
        tables.gates(audit),
    ]
    for part in parts:
        if part is not None and part.row_count:
            console.print(part)
    for note in audit.notes:
        console.print(f"- {escape(clean(note))}")
    if audit.verdict is not None:
        console.print(verdict_panel(audit.verdict))
    elif len(audit.adapters) > 1 and audit.command == "inspect":
        fits = audit.compatibility.compatible
        console.print(
            "[bold green]Compatible.[/]" if fits else "[bold red]Not compatible; see Findings.[/]"
        )
    console.print(f"[dim]{footer(audit)}[/]")


def sources(audit: Audit) -> list[str]:
    """A line for each adapter whose reference differs from its name, with its commit."""
    lines = []
    for row in audit.adapters:
        if row.reference != row.name or row.commit:
            pinned = f" @ {row.commit}" if row.commit and row.commit not in row.reference else ""
            lines.append(escape(f"{clean(row.name)} = {clean(row.reference)}{pinned}"))
    return lines


def verdict_panel(verdict: Verdict) -> Panel:
    """Decision, action, forecast and reasons in a box."""
    style = STYLES[verdict.decision]
    about = f" ({escape(clean(verdict.system))})" if verdict.system else ""
    lines = [
        f"[{style}]{verdict.decision.upper()}[/]: {MEANINGS[verdict.decision]}{about}.",
        f"[bold]What to do:[/] {escape(action(verdict))}",
    ]
    forecast = [reason for reason in verdict.reasons if reason.code in FORECAST]
    lines += [escape(clean(reason.message)) for reason in forecast]
    lines += ["", *(reason_line(r) for r in verdict.reasons if r not in forecast)]
    title = f"Verdict, from {verdict.evidence}"
    return Panel("\n".join(lines), title=title, title_align="left", border_style=style)


def action(verdict: Verdict) -> str:
    """The action in words, with its name for scripts."""
    head, _, name = verdict.action.partition(":")
    words = f"use {clean(name)} alone" if head == "use-single" else ACTIONS.get(head, head)
    return words if words.replace(" ", "-") == head else f"{words} ({clean(verdict.action)})"


def reason_line(reason: Reason) -> str:
    """One reason as a bullet: the sentence, the code and the source."""
    mark = {"decisive": "[bold]•[/]", "warning": "[yellow]![/]"}.get(reason.severity, "·")
    origin = f": {clean(reason.source)}" if reason.source else ""
    return f"{mark} {escape(clean(reason.message))} [dim]{escape(f'[{reason.code}{origin}]')}[/]"


def footer(audit: Audit) -> str:
    """Time, device, dtype, memory and seed of the run."""
    p = audit.provenance
    seconds = sum(p.seconds.values())
    memory = f", {size(p.peak_memory_bytes)} peak memory" if p.peak_memory_bytes else ""
    return f"{seconds:.1f} s on {p.device} in {p.dtype}{memory}, seed {p.seed}"


def one_line(audit: Audit) -> str:
    """The result in one line, for --quiet."""
    if audit.verdict is not None:
        return clean(f"{audit.verdict.decision} {audit.verdict.action}")
    return "compatible" if audit.compatibility.compatible else "incompatible"


def demo_text(audit: Audit, scenarios: Sequence[str]) -> str:
    """What the demo showed, and the command that does the same on the user's own adapters."""
    *first, last = [clean(row.name) for row in audit.adapters]
    names = f"{', '.join(first)} and {last}"
    systems = len({row.system for row in audit.evaluation})
    decision = audit.verdict.decision if audit.verdict else "no verdict"
    others = ", ".join(scenarios)
    return (
        "[bold]What you just saw[/]\n"
        f"The adapters {names} belong to one small base that ships with loraprobe. They were "
        f"checked and compared without the base. Then {systems} systems answered the same "
        f"questions: the base, each adapter alone, every composition, and controls that a "
        f"composition has to beat. The verdict, {decision}, follows from those figures.\n\n"
        f"[bold]The same on your own adapters[/]\n"
        f"loraprobe merge-and-eval owner/one owner/two --task questions.jsonl\n"
        f"where each line of questions.jsonl is such as\n"
        + escape('{"id": "1", "prompt": "Who is the mayor of Ulm?", "answer": "Bo"}')
        + f"\n\nOther scenarios: loraprobe demo --scenario NAME, NAME one of {others}."
    )
