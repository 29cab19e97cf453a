"""Markdown: the cards of what was made, and the result for a pull request.

Both come from templates, in which no text of other people becomes markup.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, public_name
from loraprobe.formatting import clean, shortened, size
from loraprobe.front_matter import read_front_matter
from loraprobe.records import AdapterSummary, Audit, Verdict
from loraprobe.report import adapter_tables, library, measured, system_tables
from loraprobe.report.answer import COMMANDS, answer
from loraprobe.report.phrases import MOST_REASONS
from loraprobe.report.table import Table
from loraprobe.verdict.next_command import PROGRAM

if TYPE_CHECKING:
    import jinja2

MOST_ROWS, MOST_TABLES, MOST_SOURCES = 18, 2, 6
LONGEST = 300  # characters of one text
LICENCE = ("license", "license_name", "license_link")
WHY = ("why", "watch", "lacks")  # the lines of the answer that are reasons
_SAFE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a base's name as it may stand in code


def markdown(audit: Audit) -> str:
    """At most 60 lines, and a program to copy; texts of other people are escaped."""
    whole, audit = audit.verdict, shortened(audit, LONGEST)
    if whole and audit.verdict and whole.next.startswith(PROGRAM):  # a part of it does not run
        audit = replace(audit, verdict=replace(audit.verdict, next=whole.next))
    found = answer(audit)
    why = [text for label, text in found.lines if label in WHY]
    why = why or [reason.message for reason in (audit.verdict.reasons if audit.verdict else ())]
    lines = [(label, text) for label, text in found.lines if label not in WHY]
    tables = _tables(audit)
    return _filled(
        "result.md.jinja",
        command=audit.command,
        headline=found.headline,
        lines=lines,
        commands=COMMANDS,
        tables=tables,
        most=MOST_ROWS // max(1, len(tables)),
        reasons=why[:MOST_REASONS],
        provenance=list(_provenance(audit)),
    ).rstrip("\n")


def _tables(audit: Audit) -> list[Table]:
    """The short list and scores; without them what a library holds, or what the adapters are."""
    found = [library.shortlist(audit), *system_tables.scores(audit)]
    if not any(table.rows for table in found):
        found = [library.unusable(audit), library.families(audit)]
    if audit.library is None and not any(table.rows for table in found):
        found = [adapter_tables.adapters(audit)]
    return [table for table in found if table.rows][:MOST_TABLES]


def _provenance(audit: Audit) -> Iterator[str]:
    made = audit.provenance
    torch = f", torch {made.torch}" if made.torch else ""
    yield f"loraprobe {made.loraprobe}{torch}, {made.device}, {made.dtype}, seed {made.seed}"
    taken = sum(made.seconds.values())
    yield f"{taken:.0f} s, {size(made.peak_memory_bytes)} peak memory"
    if made.arguments:
        yield f"call: loraprobe {shlex.join(made.arguments)}"
    if audit.base is not None:
        yield f"base: {audit.base.reference} {_pinned(audit.base.commit, audit.base.sha256)}"
    for task in made.tasks:
        yield f"task {task.name}: {task.reference} {_pinned(task.commit, task.sha256)}"
    for row in audit.adapters[:MOST_SOURCES]:
        yield f"{row.name}: {row.reference} {_pinned(row.commit, row.sha256)}"
    if len(audit.adapters) > MOST_SOURCES:
        yield f"{len(audit.adapters) - MOST_SOURCES} more adapters in the JSON document"


def _pinned(commit: str | None, sha256: str | None) -> str:
    return f"commit {commit}" if commit else f"sha256 {sha256}" if sha256 else ""


def model_card(
    *, sources: Sequence[AdapterSummary], weights: Sequence[float] | None, **values: Any
) -> str:
    """README.md of a merge.

    values: `name`, `front_matter`, `method`, `space`, `rank`, `compression_error`,
    `rounding_error`, `dtype` and `seed` of the merge, `serve` (the commands of servers that read
    it), and what `_card` takes.
    """
    return _card(
        "card.md.jinja",
        sources=sources,
        weights=", ".join(f"{w:g}" for w in weights) if weights else None,
        negated=[s.name for s, w in zip(sources, weights or (), strict=False) if w < 0],
        **values,
    )


def composition_card(**values: Any) -> str:
    """README.md of a saved composition: its experts, its router, and how it is loaded.

    values: `name`, `front_matter`, `router`, `sources` (the experts), and what `_card` takes.
    `why_not_peft` says why peft's own Arrow cannot express the composition, None if it can.
    """
    return _card("composition.md.jinja", **values)


def converted_card(
    adapter: Adapter, source: str, card: str | None, changes: str, serve: Sequence[str]
) -> str:
    """README.md of a converted adapter.

    source, card: where it came from and the card there, of which the licence is kept and no text,
    because that may hold any markup. serve: commands of servers.
    """
    import yaml

    kept = {key: text for key, text in read_front_matter(card).items() if key in LICENCE}
    fields = {"library_name": "peft", "base_model_relation": "adapter", "tags": ["lora"]}
    fields |= {key: text[:LONGEST] for key, text in kept.items() if isinstance(text, str)}
    if base := public_name(adapter.base_model):
        fields["base_model"] = base
    values = {"title": adapter.name, "source": source, "changes": changes, "serve": serve}
    values["version"] = __version__
    return f"---\n{yaml.safe_dump(fields)}---\n{_filled('converted.md.jinja', **values)}"


def _card(
    template: str,
    *,
    name: str,
    front_matter: Mapping[str, Any],
    audit: Audit,
    allowed: Collection[str] = (),
    **values: Any,
) -> str:
    """A card from its template. Text from other people's files never becomes markup in it.

    front_matter: holds how the directory was made, from which `loraprobe verify` makes it again.
    audit: findings, what was done to the adapters first, and scores where they were measured.
    """
    import yaml

    base = front_matter.get("base_model")
    verdict = audit.verdict if audit.evaluation.scores else None
    text = _filled(
        template,
        title=name,
        version=__version__,
        base_model=base,
        base_text=Verbatim(f'"{base if base and _SAFE.fullmatch(base) else "the base"}"'),
        base_used=audit.base is not None,
        issues=audit.compatibility.issues,
        allowed=allowed,
        transformations=audit.transformations,
        search=audit.search,
        scores=system_tables.scores(audit),
        headline=answer(audit).headline,
        decided=_decided(verdict, audit) if verdict else "",
        reasons=[r.message for r in verdict.reasons[:MOST_REASONS]] if verdict else [],
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def _decided(verdict: Verdict, audit: Audit) -> str:
    """The decision, the evidence for it and the gain, in one line."""
    gain = measured.gain(audit, verdict)
    told = f"The decision is {verdict.decision}, on the evidence of the {verdict.evidence}"
    return f"{told}; gain: {gain}." if gain else f"{told}."


@functools.cache
def templates(**options: Any) -> jinja2.Environment:
    """The templates of the reports. options: how jinja2 escapes the texts that they are given."""
    import jinja2  # which most commands do without

    return jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _filled(template: str, **values: Any) -> str:
    """A template filled in, for Markdown: every text that it is given is escaped.

    The filter `code` gives a text as code, `fenced` one as a line of a block of code.
    """
    environment = templates(finalize=_finished)
    environment.filters["code"] = code
    environment.filters["fenced"] = fenced
    return environment.get_template(template).render(values)


def _finished(value: Any) -> Any:
    return inert(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


# These characters start markup, a link or a table cell anywhere in a line.
_MARKS = re.compile(r"[\\`*\[\]|#<>&~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.|@(?=\w)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# At the start of a line these make a list, a heading or a rule.
_START = re.compile(r"^(?:([-+=])(?=\s|\1|$)|(\d+)([.)])(?=\s|$))")


def inert(text: str) -> str:
    """One line of text, escaped so that it is no markup, no link and no end of a table cell."""
    flat = _MARKS.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), _flat(text))
    return _START.sub(lambda start: f"{start[2] or ''}\\{start[1] or start[3]}", flat)


def code(text: str) -> Verbatim:
    """Text as code, or escaped if code cannot hold it. A bar ends a table cell even in code.

    A program becomes a block within an item of a list.
    """
    if text.startswith(PROGRAM):
        lines = clean(text).replace("```", "'''").split("\n")
        return Verbatim("\n".join(["", "  ```python", *(f"  {line}" for line in lines), "  ```"]))
    flat = _flat(text)
    if "<" in flat or "`" in flat or not flat:
        return Verbatim(inert(flat))
    return Verbatim("`" + flat.replace("|", "\\|") + "`")


def fenced(text: str) -> Verbatim:
    """Text as a line of a block of code, which no text of it can end."""
    return Verbatim(_flat(text).replace("```", "'''"))


class Verbatim(str):
    """Markdown that is escaped already."""


def _flat(text: str) -> str:
    return " ".join(clean(text).split())
