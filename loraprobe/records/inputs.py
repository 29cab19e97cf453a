"""Records of what a run was given: adapters, the base, what was found about them, what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Interval = tuple[float, float]  # [low, high]
Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Issue:
    """A finding about adapters (and base) before anything is run.

    `code` is stable and what `--allow` takes; `cure` says what to do.
    """

    severity: Severity
    code: str
    adapters: tuple[str, ...]
    message: str
    cure: str = ""
    module: str | None = None


def by_severity(issues: Iterable[Issue]) -> list[Issue]:
    """Findings, errors first."""
    return sorted(issues, key=lambda issue: SEVERITIES.index(issue.severity))


@dataclass(frozen=True)
class Compatibility:
    """All findings; compatible means that none of them is an error."""

    issues: tuple[Issue, ...] = ()

    @property
    def errors(self) -> list[Issue]:
        """The findings that forbid a composition."""
        return [issue for issue in self.issues if issue.severity == "error"]

    @property
    def compatible(self) -> bool:
        return not self.errors


@dataclass(frozen=True)
class AdapterSummary:
    """What an adapter is, in one row. `norm` is the Frobenius norm of all deltas together.

    `targets` are the shortest endings of module paths that tell its kinds of modules apart;
    `scaling` is [smallest, largest]; `variant` is lora, rslora or dora.
    """

    name: str
    reference: str
    commit: str | None
    base_model: str | None
    rank: Mapping[str, int]  # {"min": 16, "max": 16}
    modules: int
    parameters: int
    norm: float | None
    extras: tuple[str, ...] = ()
    sha256: str | None = None
    license: str | None = None  # as its card declares it, where the command reads cards
    targets: tuple[str, ...] = ()
    scaling: Interval | None = None
    variant: str = "lora"


@dataclass(frozen=True)
class LayerGroup:
    """Modules of one adapter that repeat in every layer, such as `model.layers.*.mlp.up_proj`.

    Ranges are [smallest, largest] over the `modules` of the group; `norm` is of single deltas.
    """

    adapter: str
    pattern: str
    kind: str
    modules: int
    rank: tuple[int, int]
    in_features: tuple[int, int]
    out_features: tuple[int, int]
    scaling: Interval
    norm: Interval | None = None


@dataclass(frozen=True)
class BaseSummary:
    """The base model that was used, if any."""

    reference: str
    commit: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Transformation:
    """What was done to one adapter before it was merged or routed: subtraction, then a factor.

    `subtracted` names the general adapters whose mean delta was taken out; `modules_added` counts
    modules that only those change. Norms are Frobenius norms of all deltas together.
    """

    adapter: str
    factor: float
    norm_before: float
    norm_after: float
    subtracted: tuple[str, ...] = ()
    modules_added: int = 0


@dataclass(frozen=True)
class TaskSummary:
    """Where the questions of a task come from, and how their answers are judged.

    `sha256` is that of the whole file or files. `metric_why` says which gold answers call
    for another metric than exact match. `repeated` items ask a question again: copies count as one.
    """

    name: str
    reference: str
    commit: str | None
    sha256: str
    items: int
    metric: str = ""
    metric_why: str | None = None
    repeated: int = 0


@dataclass(frozen=True)
class Provenance:
    """What made this document. engine: what answered the questions, with its version."""

    loraprobe: str
    torch: str | None
    arguments: tuple[str, ...]
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    engine: str = "transformers"
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    tasks: tuple[TaskSummary, ...] = ()
    guards: tuple[TaskSummary, ...] = ()
