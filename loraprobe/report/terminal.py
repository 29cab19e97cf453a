"""One Audit on a terminal: findings, scores, and the answer last.

`explain` prints every figure and reason instead, also before the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rich.console import Console, Group
from rich.text import Text

from loraprobe.formatting import clean, count, ended, listing, size, wrapped
from loraprobe.records import Audit, Issue, Reason, Verdict
from loraprobe.report import (
    adapter_tables,
    bars,
    library,
    system_tables,
)
from loraprobe.report.adapter_tables import first_sentence
from loraprobe.report.answer import MOST_LINES, Answer, answer
from loraprobe.report.layout import fits, fitted, side_by_side
from loraprobe.report.phrases import LICENCE
from loraprobe.verdict.reasons import CODES

STYLES = {
    "likely": "bold green",
    "unlikely": "bold red",
    "inconclusive": "bold yellow",
    "incompatible": "bold red",
    "verified": "bold green",
    "not verified": "bold red",
}
MARKS = {"error": "x", "warning": "!", "note": "·"}
MOST_FINDINGS = 3  # without --explain


def render(
    audit: Audit,
    console: Console,
    *,
    explain: bool = False,
    remark: str = "",
    typed: Mapping[str, str] = {},
) -> None:
    """Prints an audit, the answer last.

    remark: lines before the answer. typed: published name of a reference -> the reference as the
    user typed it, for the command to run next.
    """
    width = console.width
    console.print(Text(_heading(audit), "bold"), no_wrap=True, overflow="ellipsis")
    for part in _everything(audit, width) if explain else _most_important(audit, width):
        if isinstance(part, Group):
            console.print()
            console.print(part)
        elif part is not None:
            console.print(part, style="dim", markup=False)
    if explain and audit.verdict is not None:
        for line in _reasons(audit.verdict, width):
            console.print(line)
    if remark:
        console.print("\n".join(["", *wrapped(remark, width)]), markup=False)
    told = answer(audit).typed(typed)
    whole = told.in_full(width)
    if len(whole) > MOST_LINES and audit.verdict is not None:
        console.print("\nThe whole command, with all adapters, is verdict.next of --json.")
    elif len(whole) > MOST_LINES:
        console.print("\nTo go on with so many adapters, list them in a file, one a line: @FILE")
    elif whole:
        console.print("\nTo copy, what the answer has no room for:")
        console.print("\n".join(whole), markup=False, soft_wrap=True)
    console.print(f"\n{footer(audit, explain)}\n", style="dim", no_wrap=True, overflow="ellipsis")
    print_answer(console, told)


def print_answer(console: Console, told: Answer) -> None:
    """Prints the answer with its headline and its labels in colour."""
    head = len(wrapped(told.headline, console.width))
    for at, line in enumerate(told.laid_out(console.width)):
        text = Text.assemble((line[:12], "bold"), line[12:])
        if at < head:
            text = Text(line, STYLES.get(told.decision, "bold"))
        console.print(text, soft_wrap=True)


def _heading(audit: Audit) -> str:
    heading = f"loraprobe {audit.command}"
    if audit.base is not None:
        commit = f" @ {audit.base.commit[:10]}" if audit.base.commit else ""
        heading += f" on {audit.base.reference}{commit}"
    return clean(heading)


def _most_important(audit: Audit, width: int) -> Iterator[Group | str | None]:
    """What a reader needs to check the answer."""
    if not library.screened(audit):
        yield from _adapters(audit, width)
    if audit.command == "inspect" and audit.compatibility.compatible:
        yield fitted(adapter_tables.nearest_pairs(audit), width)
    yield from _findings(audit, width)
    yield from _unusable(audit, width)
    yield fitted(library.families(audit, library.SHORT), width)
    yield fitted(library.shortlist(audit), width)
    if not library.screened(audit):
        yield fitted(bars.scores(audit, width), width)
        yield from _controls(audit, width)


def _adapters(audit: Audit, width: int) -> Iterator[Group | str | None]:
    """What each adapter is, its targets, and of one adapter its layers."""
    yield fitted(adapter_tables.adapters(audit), width)
    for line in _targets(audit):
        yield "\n".join(wrapped(clean(line), width))
    yield fitted(adapter_tables.layers(audit), width)


def _targets(audit: Audit) -> list[str]:
    """What the adapters target, a line for each set of modules."""
    found: dict[str, list[str]] = {}
    for row in audit.adapters:
        if row.targets:
            found.setdefault(" ".join(row.targets), []).append(row.name)
    if len(found) == 1:
        return [f"targets: {next(iter(found))}"]
    return [f"targets of {listing(names)}: {text}" for text, names in found.items()]


def _controls(audit: Audit, width: int) -> Iterator[str]:
    """What the controls among the scores are."""
    if told := system_tables.controls(audit):
        yield "\n".join(wrapped(clean(told), width))


def _findings(audit: Audit, width: int) -> Iterator[str]:
    """The first findings, errors first, each with its cure, and how many more there are."""
    found = adapter_tables.by_severity(audit.compatibility.issues)
    if audit.verdict is not None and audit.verdict.decision == "incompatible":
        found = [i for i in found if i.severity != "error"]  # the answer says them
    told = {text for _, text in answer(audit).kept(width)}
    found = [i for i in found if not any(t.startswith(clean(first_sentence(i))) for t in told)]
    found = [i for i in found if i.code != "serve-ok" and not i.code.startswith(LICENCE)]
    found = list({issue.code: issue for issue in reversed(found)}.values())[::-1]  # one of a code
    for issue in found[:MOST_FINDINGS]:
        pairs = audit.command == "inspect" and audit.compatibility.compatible  # they take lines
        most = 1 if pairs and issue.severity == "note" else 2
        text = f"{issue.code}: {first_sentence(issue)}"
        yield _marked(MARKS[issue.severity], text, width, most)
    if len(found) > MOST_FINDINGS:
        yield f"  and {count(len(found) - MOST_FINDINGS, 'more finding')}: --explain"


def _unusable(audit: Audit, width: int) -> Iterator[str]:
    """Why adapters of a library cannot be used, with the cure: the first of each kind."""
    kinds: dict[str, list[Issue]] = {}
    for issue in filter(None, map(library.reason, library.unusable_of(audit))):
        kinds.setdefault(issue.code, []).append(issue)
    for code, (issue, *others) in kinds.items():
        more = f" ({len(others)} more)" if others else ""
        text = f"{code}{more}: {first_sentence(issue)} {issue.cure}"
        yield _marked(MARKS["error"], text, width, most=3)


def _marked(mark: str, text: str, width: int, most: int) -> str:
    """A text of at most so many lines behind a mark."""
    lines = wrapped(clean(text), width - 2)
    if len(lines) > most:
        lines = [*lines[: most - 1], ended(lines[most - 1], width - 2)]
    return f"{mark} " + "\n  ".join(lines)


def _everything(audit: Audit, width: int) -> Iterator[Group | str | None]:
    """Every table and note."""
    for line in sources(audit):
        yield "\n".join(wrapped(line, width))
    yield from _adapters(audit, width)
    yield fitted(adapter_tables.findings(audit), width)
    for table in (library.adapters, library.findings, library.families, library.shortlist):
        yield fitted(table(audit), width)
    for diagnostics in (adapter_tables.singles, adapter_tables.pairs, adapter_tables.modules):
        yield from side_by_side(diagnostics(audit), width)
    for covered in system_tables.coverage(audit):
        yield fitted(covered, width)
    short = system_tables.scores(audit, intervals=False)
    for scores, narrow in zip(system_tables.scores(audit), short, strict=True):
        yield fitted(scores if fits(scores, width) else narrow, width)
    yield fitted(bars.scores(audit, width), width)
    yield from _controls(audit, width)
    yield fitted(system_tables.causes(audit), width)
    yield from _wrong_answers(audit, width)
    yield fitted(bars.gates(audit), width)
    for note in audit.notes:
        yield "\n  ".join(wrapped(f"- {clean(note)}", width - 2))


def _wrong_answers(audit: Audit, width: int) -> Iterator[Group | None]:
    """A few questions that a composition got wrong, with what every system answered."""
    for sample in audit.samples:
        gold = f"right: {clean(' or '.join(sample.gold))}"
        title = f"{sample.task}, item {sample.item}: {sample.question} ({gold})"
        table = system_tables.replies(sample)
        yield fitted(replace(table, caption=" ".join(title.split())), width)


def sources(audit: Audit) -> list[str]:
    """A line for each adapter whose reference differs from its name, with its commit."""
    lines = []
    for row in audit.adapters:
        if row.reference != row.name or row.commit:
            pinned = f" @ {row.commit}" if row.commit and row.commit not in row.reference else ""
            lines.append(f"{clean(row.name)} = {clean(row.reference)}{pinned}")
    return lines


def _reasons(verdict: Verdict, width: int) -> Iterator[Text]:
    """Every reason with its code and source, in three groups."""
    sure = [r for r in verdict.reasons if r.code in CODES and CODES[r.code].sure]
    why = [r for r in verdict.reasons if r not in sure and r.severity != "info"]
    rest = [r for r in verdict.reasons if r not in sure and r not in why]
    groups = {"Why": why, "What was measured": rest, "How sure": sure}
    for title, reasons in groups.items():
        if reasons:
            yield Text(f"\n{title}", "bold")
        for reason in reasons:
            yield from _reason(reason, width)


def _reason(reason: Reason, width: int) -> Iterable[Text]:
    mark, style = ("!", "yellow") if reason.severity == "warning" else ("·", "")
    for at, line in enumerate(wrapped(clean(reason.message), width - 2)):
        yield Text.assemble((mark if at == 0 else " ", style), f" {line}")
    source = f"{reason.code}: {reason.source}" if reason.source else reason.code
    for line in wrapped(clean(source), width - 4):
        yield Text(f"    {line}", "dim")


def footer(audit: Audit, explain: bool = False) -> str:
    """Time, device, dtype, memory and seed of the run."""
    p = audit.provenance
    memory = f", {size(p.peak_memory_bytes)}" if p.peak_memory_bytes else ""
    more = "" if explain else "; all: --explain"
    seconds = sum(p.seconds.values())
    return f"{seconds:.1f} s, {p.device}, {p.dtype}{memory}, seed {p.seed}{more}"


def one_line(audit: Audit) -> str:
    """The result in one line, for --quiet."""
    verdict = audit.verdict
    if verdict is not None and verdict.evidence != "weights":
        return clean(f"{verdict.decision} {verdict.action}")
    if audit.library is not None:
        return library.one_line(audit.library)
    return "compatible" if audit.compatibility.compatible else "incompatible"


def demo_text(audit: Audit, scenarios: Sequence[str]) -> str:
    """What the demo showed, and where the other scenarios are."""
    systems = len({row.system for row in audit.evaluation.scores})
    others = ", ".join(scenarios)
    return (
        f"You saw {systems} systems answer the same questions: the base, each adapter alone, every "
        "composition, and controls that a composition has to beat. Your own questions stand in a "
        'file with lines such as {"prompt": "Who is the mayor of Ulm?", "answer": "Bo"}. Other '
        f"scenarios: --scenario {others}."
    )
