"""What the stages return: plain frozen data, no torch, no I/O.

A stage measures, a record says what was measured. The verdict is a pure function of records and
the report a pure function of the `Audit` that holds them all. Field names are the names of the
JSON document (schema_version 2).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loraprobe.defaults import MARGIN

SCHEMA_VERSION = 2

Severity = Literal["error", "warning", "note"]
Decision = Literal["likely", "unlikely", "inconclusive", "incompatible"]
EvidenceLevel = Literal["weights", "probes", "base", "evaluation"]
SystemKind = Literal["base", "adapter", "merge", "router", "chain", "control"]
Interval = tuple[float, float]
Progress = Callable[[str, int, int], None]  # called with (stage, done, total)


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


@dataclass(frozen=True)
class Compatibility:
    """All findings; compatible means that none of them is an error."""

    issues: tuple[Issue, ...] = ()

    @property
    def compatible(self) -> bool:
        return all(issue.severity != "error" for issue in self.issues)


@dataclass(frozen=True)
class Measurement:
    """One figure of one diagnostic: of one adapter or a pair, of one module or the whole.

    `chance` is what unrelated adapters of these shapes would show; `stderr` is the standard error
    of a sampled figure; `side` is "in" (A), "out" (B) or None.
    """

    name: str
    adapters: tuple[str, ...]
    value: float | None
    module: str | None = None
    side: Literal["in", "out"] | None = None
    chance: float | None = None
    stderr: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Coverage:
    """One figure of one coverage probe. `adapters` is empty where the base alone was asked.

    `hop` counts from 1; None means the composed question. `baseline` is what guessing would give,
    or what the probe compares with.
    """

    name: str
    task: str
    value: float | None
    n: int
    hop: int | None = None
    adapters: tuple[str, ...] = ()
    ci95: Interval | None = None
    baseline: float | None = None


@dataclass(frozen=True)
class ItemResult:
    """The answer of one system to one item in one part of one task.

    `value` is 1.0 for right and 0.0 for wrong; under the metric "answer_loss" it is nats per token
    of the gold answer. `text` is the answer that was read, or the choice taken. Items that share
    `group` form one cluster.
    """

    system: str
    task: str
    part: str  # "question" | "hop1" | "hop2" ... | "steps"
    item: str
    metric: str  # "exact_match" | "choice" | "answer_loss"
    value: float
    text: str
    group: str


@dataclass(frozen=True)
class Score:
    """How one system did on one part of one task."""

    system: str
    kind: SystemKind
    task: str
    part: str  # "question" | "hop1" | "hop2" ... | "steps"
    metric: str
    value: float
    ci95: Interval
    n: int
    retention: float | None = None
    retention_ci95: Interval | None = None
    compression_error: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A paired difference, system minus against, on the same items.

    `ci95` is the pointwise interval; `adjusted_ci95` covers the choice of the best among all
    systems and singles at once.
    """

    system: str
    against: str
    task: str
    part: str
    difference: float
    ci95: Interval
    n: int
    adjusted_ci95: Interval | None = None


@dataclass(frozen=True)
class Gain:
    """What one composition gains over the best of base and singles, on the same items.

    difference = min over base and singles of (composition - baseline), reached by `against`, which
    answered in the form `against_part`. `adjusted_ci95` covers that choice and the one among
    compositions. `task` is None for the mean over all tasks. `n_needed` items would decide with a
    power of 0.8 if the difference stays; None where no number is likely to.
    """

    task: str | None
    part: str
    system: str
    against: str
    difference: float
    ci95: Interval
    adjusted_ci95: Interval
    n: int
    n_needed: int | None = None
    against_part: str = "question"


@dataclass(frozen=True)
class Forecast:
    """What one composition would gain if the adapters' effects on the next token simply added.

    `gain` is its smallest difference to base and single adapters on the same `n` items, reached by
    `against`, which answered in the form `against_part`; `ci95` is the paired interval. `part` is
    the form of the question on which it gains more. Of several tasks it is the mean. `probability`
    is that some composition gains more than the margin, known for the verdict's forecast only.
    """

    system: str
    gain: float
    ci95: Interval
    n: int
    part: str = "question"
    against: str = "base"
    against_part: str = "question"
    probability: float | None = None


@dataclass(frozen=True)
class Attribution:
    """Where a system's answers fail: how many items fall to the first cause that fits."""

    system: str
    task: str
    solved: int = 0
    step_by_step: int = 0
    unknown: int = 0
    interference: int = 0
    not_composed: int = 0


@dataclass(frozen=True)
class Reply:
    """What one system answered to one question.

    `text` is the answer as it was read, or the choice taken. `cause` is the field of `Attribution`
    under which the item counts; None for systems that are no composition and for items without
    hops.
    """

    system: str
    text: str
    right: bool
    cause: str | None = None


@dataclass(frozen=True)
class Sample:
    """One question with its right answers and what every system answered."""

    task: str
    part: str
    item: str
    question: str
    gold: tuple[str, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class GateStatistics:
    """How a token router shared its gates among the adapters while it read the tasks' prompts.

    Means over `n` tokens and the `modules` of one layer that at least two adapters have; `layer`
    None stands for all layers. `share` is each adapter's mean gate, `entropy` that of the gates in
    nats, `entropy_share` the same over the logarithm of the number of adapters present: 0 is one
    adapter a token, 1 all alike.
    """

    system: str
    layer: str | None
    share: Mapping[str, float]
    entropy: float
    entropy_share: float
    modules: int
    n: int


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict: what was measured, against which threshold, and whose it is.

    A "decisive" reason carries the decision, a "warning" limits it, "info" is neither.
    """

    code: str
    message: str
    value: float | None = None
    threshold: float | None = None
    source: str = ""
    severity: Literal["decisive", "warning", "info"] = "info"


@dataclass(frozen=True)
class DecisiveGain:
    """The gain that the decision is about: one composition against the best of base and singles.

    `form` is the form of the question, "question" or "steps"; `ci95` covers the choice of the best
    among systems. Of several tasks the difference is the mean.
    """

    system: str
    form: str
    against: str
    difference: float
    ci95: Interval
    n: int


@dataclass(frozen=True)
class Verdict:
    """The decision, the kind of evidence for it, its reasons, and what to do.

    `action` is `merge`, `route`, `step-by-step`, `chain`, `use-single:NAME`, `use-base`,
    `switch-adapters`, `train-target-adapter`, `gather-evidence` or `fix`. `probability` is that of
    this very decision, for a share `prior` of compositions that gain; it is None where the
    calibration says nothing about it. `margin` is the gain that was asked for. `next` is the
    command to run next; local directories stand in it by their names. `reasons` stand in the order
    of what they change for the reader.
    """

    decision: Decision
    evidence: EvidenceLevel
    reasons: tuple[Reason, ...] = ()
    system: str | None = None
    action: str = "gather-evidence"
    probability: float | None = None
    prior: float | None = None
    forecast: Forecast | None = None
    gain: DecisiveGain | None = None
    margin: float = MARGIN
    next: str = ""


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
class Check:
    """One check of a merged or routed directory: whether it passed, and what was found."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verification:
    """All checks of one merged directory (`loraprobe verify`)."""

    directory: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class WeightSearch:
    """Weights found on items that served nothing else (`--weights search`).

    `objective` = `loss` (mean over tasks of nats per token of the gold answers on the `items` set
    apart) + 0.05 * mean |w|; `uniform` is the objective of 1/n each. `left` items were evaluated.
    """

    weights: Mapping[str, float]
    objective: float
    loss: float
    uniform: float
    evaluations: int
    items: int
    clusters: int
    left: int


@dataclass(frozen=True)
class Provenance:
    """What made this document."""

    loraprobe: str
    torch: str | None
    arguments: tuple[str, ...]
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Audit:
    """All records of one run, in the order of its stages."""

    command: str
    provenance: Provenance
    adapters: tuple[AdapterSummary, ...] = ()
    base: BaseSummary | None = None
    layers: tuple[LayerGroup, ...] = ()
    compatibility: Compatibility = Compatibility()
    transformations: tuple[Transformation, ...] = ()
    search: WeightSearch | None = None
    diagnostics: tuple[Measurement, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    evaluation: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()
    attribution: tuple[Attribution, ...] = ()
    samples: tuple[Sample, ...] = ()
    gates: tuple[GateStatistics, ...] = ()
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain data; every number is finite or None."""
        document = {"schema_version": SCHEMA_VERSION, **plain(self)}
        document["compatibility"]["compatible"] = self.compatibility.compatible
        return document

    def to_json(self) -> str:
        """The JSON document, a record a line; the line feed at the end is left to the caller.

        Control characters in names, which could drive a terminal, become JSON escapes; half of a
        surrogate pair becomes U+FFFD.
        """
        lines = (f' "{key}": {_lines(value)}' for key, value in self.to_dict().items())
        return _DRIVING.sub(_escaped, "{\n" + ",\n".join(lines) + "\n}")


_SCALARS = frozenset((str, int, bool, type(None)))


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """The fields of a record."""
    return tuple(field.name for field in dataclasses.fields(kind))


def plain(value: Any) -> Any:
    """Frozen records as dicts and lists; NaN and infinities become None."""
    if type(value) in _SCALARS:  # most values by far
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = value.__dict__
        return {
            name: held[name] if type(held[name]) in _SCALARS else plain(held[name])
            for name in _names(type(value))
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lines(value: Any) -> str:
    """JSON with the items of a list on lines of their own, each as json's fast encoder has it."""
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_encode, value)) + "\n ]"
    return _encode(value)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{0xFFFD if 0xD800 <= code <= 0xDFFF else code:04x}"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# json escapes what lies below a space; these drive terminals too, or turn the direction of text.
_DRIVING = re.compile(r"[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
