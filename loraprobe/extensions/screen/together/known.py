"""What uniform merges that were asked keep of each skill: told in their results, and read again.

A uniform merge that was asked the tasks of several adapters has measured a point of the curve of
each: its retention at the gate that equals its share of the merge. So a forecast may begin with
results of somebody else, and of merges with other partners: the adapter, by the sha256 of its file,
and the base have to be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError
from loraprobe.extension import CardPart
from loraprobe.extensions.screen.defaults import LEAST_GAIN
from loraprobe.extensions.screen.together.forecast import Curve, inner_products, shares
from loraprobe.extensions.screen.together.records import SkillKept, Together, together
from loraprobe.formatting import listing, number
from loraprobe.front_matter import KEY, read_front_matter
from loraprobe.hub import read_card
from loraprobe.hub.client import CARD
from loraprobe.records import Audit, BaseSummary, Estimate, EvaluationRecords, plain

KEEPS = "keeps"  # under which a card has its rows
UNIFORM = "uniform"
TITLE = "What is kept of each skill"
TEXT = """Each adapter's score above the base on its own task, as a share of its score alone.

| adapter | task | kept | 95 % | questions |
| --- | --- | --- | --- | --- |
"""


def kept_in(adapters: Sequence[Adapter], measured: EvaluationRecords) -> Together:
    """What the uniform merge keeps of the best adapter of each task, where several were asked.

    adapters: those that were merged.
    """
    named = {adapter.name: at for at, adapter in enumerate(adapters)}
    rows = [
        (row, owner)
        for row in measured.scores
        if row.system == UNIFORM and row.kept is not None and np.isfinite(row.kept.error)
        if (owner := _best(measured, row.task, row.part)) in named
    ]
    if not rows:
        return Together()
    share = shares(inner_products(adapters))
    return Together(
        keeps=tuple(
            SkillKept(
                owner,
                adapters[named[owner]].sha256 or "",
                row.task,
                share[named[owner]],
                row.retention or 0.0,
                row.retention_ci95 or (0.0, 0.0),
                row.n,
            )
            for row, owner in rows
        )
    )


def _best(measured: EvaluationRecords, task: str, part: str) -> str:
    """The single adapter with the best score on a task, if that is a skill; else ""."""
    rows = [row for row in measured.scores if (row.task, row.part) == (task, part)]
    base = max((row.estimate.value for row in rows if row.kind == "base"), default=0.0)
    alone = max(
        (row for row in rows if row.kind == "adapter"),
        key=lambda row: row.estimate.value,
        default=None,
    )
    return "" if alone is None or alone.estimate.value - base < LEAST_GAIN else alone.system


def card_part(audit: Audit) -> list[CardPart]:
    """The section of a card, with rows in its front matter that `read_known` reads."""
    rows = together(audit).keeps
    if audit.verdict is None or audit.verdict.system != UNIFORM:
        return []
    lines = (
        f"| {row.adapter} | {row.task} | {number(row.value)} "
        f"| {number(row.ci95[0])} to {number(row.ci95[1])} | {row.n} |"
        for row in rows
    )
    return [CardPart(TITLE, TEXT + "\n".join(lines), facts={KEEPS: plain(rows)})]


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownSkill:
    """The curve of an adapter, and its interference where that was measured, from earlier results.

    file: the name of the first of these. beside: what it kept beside others that are here, by their
    names: the retention and its standard error.
    """

    task: str
    n: int
    base: float | None
    alone: float | None
    curve: Curve
    interference: float | None
    file: str
    beside: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def read_known(
    places: Sequence[str | Path], adapters: Sequence[Adapter], base: BaseSummary
) -> dict[str, KnownSkill]:
    """The skills of adapters that earlier results on the same base tell, by the adapters' names.

    places: documents of --json, cards, or directories with a card. Raises UsageError for one that
    cannot be read, and for one that says nothing of these adapters.
    """
    found: dict[str, KnownSkill] = {}
    for place in places:
        file = Path(place) / CARD if Path(place).is_dir() else Path(place)
        on, told = _read(file)
        of_this = [adapter for adapter in adapters if adapter.sha256] if _same(on, base) else []
        new = {
            one.name: skill for one in of_this if (skill := _skill(one, of_this, told, file.name))
        }
        if not new:
            names = listing([adapter.name for adapter in adapters])
            what = "is about another base" if not _same(on, base) else f"tells no skill of {names}"
            raise UsageError(f"--known={place} {what}; leave it out.")
        found = new | found
    return found


def _read(file: Path) -> tuple[BaseSummary | None, Together]:
    """The base and the skills of a document or a card. Raises UsageError."""
    if file.suffix == ".json":
        from loraprobe.report.documents import read_audit

        audit = read_audit(file)
        return audit.base, together(audit)
    if not file.is_file():
        raise UsageError(f"--known={file} is no file; give a document of --json or a card.")
    matter = read_front_matter(read_card(file, str(file))).get(KEY)
    matter = matter if isinstance(matter, dict) else {}
    try:
        base = TypeAdapter(BaseSummary | None).validate_python(matter.get("base"))
        keeps = TypeAdapter(tuple[SkillKept, ...]).validate_python(matter.get(KEEPS, ()))
    except ValidationError:
        raise UsageError(
            f"--known={file} has rows under {KEY} that loraprobe did not write; leave it out."
        ) from None
    return base, Together(keeps=keeps)


def _same(one: BaseSummary | None, other: BaseSummary) -> bool:
    """Whether two bases are one, by their weights where both are hashed."""
    if one is None:
        return False
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    return (one.reference, one.commit) == (other.reference, other.commit)


def _skill(
    adapter: Adapter, here: Sequence[Adapter], told: Together, file: str
) -> KnownSkill | None:
    """What a result tells of an adapter, None where it tells nothing. here: all that are given."""
    for row in told.skills:
        if row.sha256 == adapter.sha256 and row.curve:
            points = {gate: (kept, error) for gate, kept, error in row.curve}
            scores, curve = (row.base, row.alone), Curve.through(points)
            beside = _beside(row.adapter, here, told)
            return KnownSkill(row.task, row.n, *scores, curve, row.interference, file, beside)
    rows = [row for row in told.keeps if row.sha256 == adapter.sha256]
    points = {
        row.share: (row.value, Estimate(row.value, *row.ci95, row.n, row.n).error)
        for row in rows
        if 0 < row.share < 1
    }
    if not points:
        return None
    # Such a point was measured beside others: what they take is in it.
    return KnownSkill(rows[0].task, rows[0].n, None, None, Curve.through(points), 0.0, file)


def _beside(name: str, here: Sequence[Adapter], told: Together) -> dict[str, tuple[float, float]]:
    """What an adapter kept in the pairs that a result measured, by the names that others have here.

    name: of the adapter in the result.
    """
    names = {adapter.sha256: adapter.name for adapter in here}
    others = {row.adapter: names[row.sha256] for row in told.skills if row.sha256 in names}
    return {
        others[row.partners[0]]: (row.value, Estimate(row.value, *row.ci95, 0, 0).error)
        for row in told.retentions
        if row.measured and row.adapter == name and row.partners[0] in others
    }
