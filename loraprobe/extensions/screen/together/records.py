"""What `screen --own` adds to an audit; field names are those of the JSON document."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.records import Audit, Interval


@dataclass(frozen=True)
class Skill:
    """What an adapter does with its own task alone.

    n: items that were asked. base, alone: scores of the base and of the adapter. curve: pairs of a
    gate and the retention of the adapter alone at that gate. keeps: the mean of its forecasts
    beside each other adapter; None where the adapter gains too little over the base to lose it.
    """

    adapter: str
    task: str
    n: int
    base: float
    alone: float
    curve: tuple[tuple[float, float], ...] = ()
    keeps: float | None = None


@dataclass(frozen=True)
class RetentionForecast:
    """The retention of an adapter in the uniform merge with others, forecast.

    share: how much of the adapter the merge contains, the coefficient of its update in the least
    squares fit of the merge. value: its retention alone at that gate. ci95: with the error of the
    items and that of such forecasts.
    """

    adapter: str
    partners: tuple[str, ...]
    share: float
    value: float
    ci95: Interval


@dataclass(frozen=True)
class SkillGroup:
    """Adapters, and the smallest retention that is forecast among them in their uniform merge.

    ci95: of that one. kept: the retention of each, in order. proved: whether it was composed and
    asked.
    """

    adapters: tuple[str, ...]
    least: float
    ci95: Interval
    kept: tuple[float, ...]
    proved: bool = False


@dataclass(frozen=True)
class Together:
    """Skills of single adapters, what each keeps beside each other one, and the largest groups."""

    skills: tuple[Skill, ...] = ()
    retentions: tuple[RetentionForecast, ...] = ()
    groups: tuple[SkillGroup, ...] = ()


def together(audit: Audit) -> Together:
    """What an audit has of it."""
    return audit.of_extension(Together)
