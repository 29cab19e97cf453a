"""What `screen --own` adds to an audit; field names are those of the JSON document."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.records import Audit, Interval


@dataclass(frozen=True)
class Skill:
    """What an adapter does with its own task alone.

    n: items that were asked. base, alone: scores of the base and of the adapter. curve: a gate, the
    retention of the adapter alone at that gate, and its standard error by the items. keeps: the
    mean of its forecasts beside each other adapter; None where the adapter gains too little over
    the base to lose it. interference: how much less it keeps beside others than alone at its share;
    None where no merge with it was measured. known: the file of an earlier result that says so, ""
    where the adapter was asked now; such a result may lack the scores.
    """

    adapter: str
    task: str
    n: int
    base: float | None
    alone: float | None
    curve: tuple[tuple[float, float, float], ...] = ()
    keeps: float | None = None
    interference: float | None = None
    sha256: str = ""
    known: str = ""


@dataclass(frozen=True)
class RetentionForecast:
    """The retention of an adapter in the uniform merge with others, forecast or measured.

    share: how much of the adapter the merge contains, what partners have alike included. value: its
    retention alone at that gate, less its interference. ci95: with the error of the items and that
    of such forecasts.
    """

    adapter: str
    partners: tuple[str, ...]
    share: float
    value: float
    ci95: Interval
    measured: bool = False


@dataclass(frozen=True)
class SkillGroup:
    """Adapters, and the smallest retention among them in their uniform merge, as it is forecast.

    ci95: of that one. kept: the retention of each, in order. proved: whether it was composed and
    asked.
    """

    adapters: tuple[str, ...]
    least: float
    ci95: Interval
    kept: tuple[float, ...]
    proved: bool = False


@dataclass(frozen=True)
class SkillKept:
    """What a uniform merge that was asked keeps of the skill of an adapter.

    The adapter is the best one on the task. share: as in `RetentionForecast`. value, ci95: the
    retention. n: items that were asked.
    """

    adapter: str
    sha256: str
    task: str
    share: float
    value: float
    ci95: Interval
    n: int


@dataclass(frozen=True)
class Together:
    """Skills of single adapters, what each keeps beside each other one, and the largest groups.

    keeps: what the uniform merge keeps of them, where it was asked.
    """

    skills: tuple[Skill, ...] = ()
    retentions: tuple[RetentionForecast, ...] = ()
    groups: tuple[SkillGroup, ...] = ()
    keeps: tuple[SkillKept, ...] = ()


def together(audit: Audit) -> Together:
    """What an audit has of it."""
    return audit.of_extension(Together)
