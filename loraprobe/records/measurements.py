"""Records of what was measured: diagnostics, probes, answers, scores, gains.

Kinds of systems, the parts of an item, and a figure with its interval come first.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Annotated, Any, Literal

from loraprobe.defaults import BY_PROMPT, BY_TEXT, LEARNING_SHRINK, LOSS, MOST_ITEMS, SPELLED
from loraprobe.records.inputs import Interval
from loraprobe.wiring import claim, extensions

# ---- who is asked, and what ----------------------------------------------------------------------

ActionKind = Literal[
    "merge",
    "route",
    "step-by-step",  # ask a merge or a router with worked steps
    "chain",  # ask the adapters hop after hop
    "use-single",
    "use-base",
    "switch-adapters",  # ask each task's own adapter
    "train-target-adapter",
    "gather-evidence",
    "fix",  # mend the files, or give others
]


@dataclass(frozen=True)
class Kind:
    """What holds for every system of a kind.

    role: what the verdict does with such a system.
        "baseline": a composition has to beat it;
        "composition": the decision is about it;
        "alternative": it composes no weights;
        "reference": an extension adds it (`SystemSource`); it is compared with all others and
            changes no decision;
        "control": it shows what the partners add.
    action: what is advised where such a system is the best; None for a control. For a composition
        that is asked with worked steps the advice is "step-by-step".
    name: the name of the one system that the action uses; "" where any system of the kind may be
        used.
    words: what sentences call the system of that name.
    loadable: whether programs that load LoRA files can answer as such a system. None of them can
        answer as a router, which weighs adapters by the text. For `switch` their client names the
        adapter of each question, and for `chain` it asks hop after hop.
    """

    role: Literal["baseline", "composition", "alternative", "reference", "control"]
    action: ActionKind | None
    name: str = ""
    words: str = ""
    loadable: bool = True


# The simplest first. "switch" asks each task's own adapter; it is made of scores and is not asked.
KINDS: Mapping[str, Kind] = {
    "base": Kind("baseline", "use-base", "base", "the base"),
    "adapter": Kind("baseline", "use-single"),
    "merge": Kind("composition", "merge"),
    "router": Kind("composition", "route", loadable=False),
    "switch": Kind("alternative", "switch-adapters", words="each task's own adapter"),
    "chain": Kind("alternative", "chain", "chain", "a chain"),
    "control": Kind("control", None),
}
BASELINES = tuple(name for name, kind in KINDS.items() if kind.role == "baseline")
COMPOSITIONS = tuple(name for name, kind in KINDS.items() if kind.role == "composition")
MULTI_ADAPTER_KINDS = (*COMPOSITIONS, "chain")  # kinds of systems that put several to use
# The systems that are no method and no router, by the name that asks for them.
FIXED: Mapping[str, str] = {
    "base": "base",
    "chain": "chain",
    "shrunk": "control",
    "random-partner": "control",
}
SHRUNK, PARTNER = "shrunk:", "random-partner"
CALLED = {**SPELLED, BY_PROMPT: BY_PROMPT, BY_TEXT: BY_TEXT, PARTNER: "random partner"}


def kinds() -> Mapping[str, Kind]:
    """All kinds, the simplest first: those of the core, then those of extensions.

    Raises UsageError where an extension adds one of a name that is taken.
    """
    return _kinds_with(extensions())


@functools.cache
def _kinds_with(added: Sequence[Any]) -> Mapping[str, Kind]:
    """KINDS and the kinds of these extensions."""
    taken, found = {f"the kind of systems {name}": __name__ for name in KINDS}, {**KINDS}
    for extension in added:
        own = extension.kinds()
        claim(taken, {f"the kind of systems {name}": extension.__module__ for name in own})
        found |= own
    return found


def references() -> Mapping[str, Kind]:
    """The kinds that extensions add."""
    return {name: kind for name, kind in kinds().items() if name not in KINDS}


def effort(system: str, kind: str, part: ItemPart) -> tuple[int, int, bool]:
    """How much a system asks of its user; less is simpler.

    Of routers that by text is simplest, since any server with the adapters runs it.
    """
    further = kind == "router" and system != BY_TEXT
    return list(kinds()).index(kind), FORMS.index(part), further


def by_change(system: str) -> tuple[int, str]:
    """A key of compositions that measured the same: the one first that changes the base less.

    The average of the deltas is the smallest change of all merges, and their sum the largest.
    Where a run has other adapters, a name is as in `sum(a, b)`.
    """
    return {"uniform": 0, "sum": 2}.get(system.partition("(")[0], 1), system


class _KnownKind:
    """The name of a kind of systems that are asked, for pydantic."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.literal_schema([name for name in kinds() if name != "switch"])


SystemKind = Annotated[str, _KnownKind]


def display_name(system: str) -> str:
    """What people call a system, which a command line names by its specification.

    `by-text(a, b)` is by-text (a, b), `shrunk:a` is a, shrunk, and `random-partner:sum` a random
    partner, sum. Methods and routers, also with options, keep their names; of `SPELLED` they get
    the name that stands there.
    """
    if system.startswith(SHRUNK):
        return f"{system.removeprefix(SHRUNK)}, shrunk"
    if system.startswith(f"{PARTNER}:"):
        return f"{CALLED[PARTNER]}, {display_name(system.removeprefix(f'{PARTNER}:'))}"
    spec, members, names = system.partition("(")
    words = CALLED.get(spec)
    return system if words is None else f"{words} {members}{names}".rstrip()


class ItemPart(str):
    """What of an item is asked: "question", a hop ("hop1", "hop2" ...), or "steps", worked steps.

    Documents and kept answers hold the text. Raises ValueError for any other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> ItemPart:
        if not re.fullmatch(r"question|steps|hop[1-9]\d{0,3}", text):
            raise ValueError(f"{text!r} is no part of an item")
        return super().__new__(cls, text)

    @property
    def hop(self) -> int | None:
        """The number of the hop, from 1; None for the composed question in either form."""
        return int(self[3:]) if self.startswith("hop") else None

    @property
    def words(self) -> str:
        """As every report says it: question, hop 1, step by step."""
        return "step by step" if self == STEPS else self.replace("hop", "hop ")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def hop_part(k: int) -> ItemPart:
    """The part of hop k, counted from 0."""
    return ItemPart(f"hop{k + 1}")


QUESTION, STEPS = ItemPart("question"), ItemPart("steps")
FORMS: tuple[ItemPart, ...] = (QUESTION, STEPS)  # the parts that ask the composed question

# ---- a figure with its interval ------------------------------------------------------------------

TestResult = Literal["likely", "inconclusive", "unlikely"]  # whether a figure exceeds a threshold
POWER = 0.8
Z95 = NormalDist().inv_cdf(0.975)  # critical value of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A score, gain, difference or retention with its interval; more is better.

    It was measured on `n` items in `clusters` clusters.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def error(self) -> float:
        """The standard error that a 95 % interval implies."""
        return (self.high - self.low) / 2 / Z95

    def exceeds(self, threshold: float) -> TestResult:
        """Whether the figure exceeds a threshold, as far as its interval shows."""
        if self.low > threshold:
            return "likely"
        return "unlikely" if self.high < threshold else "inconclusive"

    def items_for(self, threshold: float) -> int | None:
        """How many items would show on which side of the threshold the figure lies."""
        half = self.value - self.low if self.value > threshold else self.high - self.value
        return items_needed(self.n, self.value - threshold, half / Z95)

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low, self.n, self.clusters)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference as if the two figures were independent (Zou and Donner 2008)."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(
            value,
            value - below,
            value + above,
            min(self.n, other.n),
            min(self.clusters, other.clusters),
        )


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of figures of different tasks.

    Tasks have items of their own, so the squared distances of the ends from the values add up.
    """
    if len(estimates) == 1:
        return estimates[0]
    count, value = len(estimates), sum(one.value for one in estimates) / len(estimates)
    below = math.sqrt(sum((one.value - one.low) ** 2 for one in estimates)) / count
    above = math.sqrt(sum((one.high - one.value) ** 2 for one in estimates)) / count
    n, clusters = sum(one.n for one in estimates), sum(one.clusters for one in estimates)
    return Estimate(value, value - below, value + above, n, clusters)


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of figures, and of their ends, which is wider than `pooled`."""
    value, low, high = (
        sum(ends) / len(estimates)
        for ends in zip(*((one.value, one.low, one.high) for one in estimates), strict=True)
    )
    n, clusters = sum(one.n for one in estimates), sum(one.clusters for one in estimates)
    return Estimate(value, low, high, n, clusters)


def items_needed(n: int, distance: float, se: float, critical: float = Z95) -> int | None:
    """The number of items with which an undecided interval excludes a threshold.

    n: the items so far. distance: the estimate less the threshold. se: its standard error, which is
    proportional to 1 / sqrt(items). critical: standard errors from the estimate to the end of the
    interval. If the true value is the estimate, new items of that number decide with probability
    POWER: n ((critical + z_POWER) se / distance)^2. None if MOST_ITEMS are not enough, or if the
    interval is unbounded.
    """
    reach = (critical + NormalDist().inv_cdf(POWER)) * se
    if n <= 0 or distance == 0 or not 0 < reach < math.inf:
        return None
    ratio = reach / distance
    needed = n * ratio * ratio  # infinite, unlike ** 2, where it is beyond the largest float
    return max(n + 1, math.ceil(needed)) if needed <= MOST_ITEMS else None


# ---- records -------------------------------------------------------------------------------------


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


TOGETHER = "right_together"  # of Coverage: how often one or the other of two adapters is right
ALONE = "named_alone"  # with a form: how often a system names the right answer and no other one


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
    `group` form one cluster. `contains`: the answer is right, or a right one stands in it in other
    words. `cut`: the reply ended at the limit of tokens, not by itself. `request`: what was asked
    of which system, by content (`evaluation.asking.request_of`).
    """

    system: str
    task: str
    part: ItemPart
    item: str
    metric: str  # one of `tasks.METRICS`, or one of an `Examiner`
    value: float
    text: str
    group: str
    contains: bool = False
    cut: bool = False
    request: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """System, task, part and item."""
        return self.system, self.task, self.part, self.item

    @property
    def is_loss(self) -> bool:
        """Whether `value` is a loss, of which less is better."""
        return self.metric == LOSS

    @property
    def merit(self) -> float:
        """The value, more is better: a loss has its sign turned."""
        return -self.value if self.is_loss else self.value

    @property
    def stands(self) -> bool:
        """Whether the answer is right or a right one stands in it; False for a loss."""
        return not self.is_loss and (self.value == 1.0 or self.contains)


@dataclass(frozen=True)
class Reply:
    """What one system answered to one question.

    `text` is the answer as it was read, or the choice taken. `cause` is the field of `Attribution`
    under which the item counts; None for systems that are no composition and for items without
    hops. `contains` and `cut` are those of `ItemResult`.
    """

    system: str
    text: str
    right: bool
    cause: str | None = None
    contains: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Sample:
    """One question with its right answers and what every system answered."""

    task: str
    part: ItemPart
    item: str
    question: str
    gold: tuple[str, ...]
    replies: tuple[Reply, ...]


def judged_elsewhere(metric: str) -> bool:
    """Whether a `tasks.Examiner` judges by the metric of a score, as "suite:accuracy"."""
    return ":" in metric


@dataclass(frozen=True)
class Score:
    """How one system did on one part of one task.

    Of generated replies, `contains` is the share in which a right answer stands, whether or not it
    is right by the metric, and `cut` the share that ended at the limit of tokens.
    `clusters` is the number of clusters of the `n` items, None if every item is its own.
    """

    system: str
    kind: SystemKind
    task: str
    part: ItemPart
    metric: str
    value: float
    ci95: Interval
    n: int
    retention: float | None = None
    retention_ci95: Interval | None = None
    compression_error: float | None = None
    contains: float | None = None
    contains_ci95: Interval | None = None
    cut: float | None = None
    clusters: int | None = None

    @property
    def is_loss(self) -> bool:
        """Whether `value` is a loss, of which less is better."""
        return self.metric == LOSS

    @property
    def estimate(self) -> Estimate:
        """The score, more is better: a loss has its sign turned."""
        found = Estimate(self.value, *self.ci95, self.n, self.clusters or self.n)
        return -found if self.is_loss else found

    @property
    def kept(self) -> Estimate | None:
        """The retention with its interval."""
        if self.retention is None or self.retention_ci95 is None:
            return None
        return Estimate(self.retention, *self.retention_ci95, self.n, self.clusters or self.n)


@dataclass(frozen=True)
class Comparison:
    """A paired difference, system minus against, on the same items.

    `ci95` is the pointwise interval; `adjusted_ci95` covers the choice of the best among all
    systems and singles at once. `against_part` is the form in which `against` answered, None if it
    is `part`.
    """

    system: str
    against: str
    task: str
    part: ItemPart
    difference: float
    ci95: Interval
    n: int
    adjusted_ci95: Interval | None = None
    against_part: ItemPart | None = None

    @property
    def estimate(self) -> Estimate:
        """The difference with its pointwise interval."""
        return Estimate(self.difference, *self.ci95, self.n, self.n)

    @property
    def adjusted(self) -> Estimate:
        """The difference with the interval that covers the choice of the best, if there is one."""
        return Estimate(self.difference, *(self.adjusted_ci95 or self.ci95), self.n, self.n)


@dataclass(frozen=True)
class Gain:
    """What one composition gains over the best of base and singles, on the same items.

    difference = min over base and singles of (composition - baseline), reached by `against`, which
    answered in the form `against_part`. `adjusted_ci95` covers that choice and the one among
    compositions. `task` is None for the mean over all tasks. `n_needed` items would decide with a
    power of 0.8 if the difference stays; None if these are more than anybody has
    (`defaults.MOST_ITEMS`). `clusters` is that of `Score`. Where exact match was chosen although
    the gold answers need another metric, `checked` is the difference by that one, `checked_ci95`
    its adjusted interval.
    """

    task: str | None
    part: ItemPart
    system: str
    against: str
    difference: float
    ci95: Interval
    adjusted_ci95: Interval
    n: int
    n_needed: int | None = None
    against_part: ItemPart = QUESTION
    clusters: int | None = None
    checked: float | None = None
    checked_ci95: Interval | None = None

    @property
    def estimate(self) -> Estimate:
        """The gain with its pointwise interval."""
        return Estimate(self.difference, *self.ci95, self.n, self.clusters or self.n)

    @property
    def adjusted(self) -> Estimate:
        """The gain with the interval that covers the choice of the best."""
        return Estimate(self.difference, *self.adjusted_ci95, self.n, self.clusters or self.n)


@dataclass(frozen=True)
class GuardScore:
    """How one system did on a guard, which must not get worse than it is for the base.

    `value` and `base` are the scores of the two on the same items, in the form in which the base
    scores more. `difference` is system minus base, of losses with its sign turned, so more is
    better. The lower end of `ci95` shows that the guard is kept, the upper end that it is lost, of
    more than `margin`; the upper end covers all guards together. `clusters` is that of `Score`.
    """

    task: str
    system: str
    part: ItemPart
    metric: str
    value: float
    base: float
    difference: float
    ci95: Interval
    margin: float
    n: int
    clusters: int | None = None

    @property
    def estimate(self) -> Estimate:
        """The difference with its interval."""
        return Estimate(self.difference, *self.ci95, self.n, self.clusters or self.n)

    @property
    def outcome(self) -> TestResult:
        """Whether the guard is kept: no more is lost than the margin."""
        return self.estimate.exceeds(-self.margin)


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
    said_otherwise: int = 0
    cut_off: int = 0


@dataclass(frozen=True)
class ChainHop:
    """Who answers one hop of a chain on one task, with a question as an example.

    `hop` counts from 1. `adapter` is "base" where no adapter is in the model. `prompt` is that of
    `item`, with `{1}` for the answer to hop 1; it is a user's turn of the chat template if `chat`.
    The hops of `items` items go to the same members as those of `item`: where a task names adapters
    for its hops, there may be several such groups, the largest first.
    """

    task: str
    hop: int
    adapter: str
    prompt: str
    item: str
    items: int
    chat: bool = False


def example(chain: Sequence[ChainHop]) -> list[ChainHop]:
    """The hops of one question, of those that most questions of the first task are like."""
    return [row for row in chain if (row.task, row.item) == (chain[0].task, chain[0].item)]


@dataclass(frozen=True)
class Rounds:
    """How far an evaluation by rounds went.

    `used` of `planned` rounds were asked, which are `items` of all `total` items. `level` is that
    of the intervals that decide, so that all rounds together have 0.95. `dropped` maps systems that
    could no longer win to the last round in which they were asked.
    """

    used: int
    planned: int
    items: int
    total: int
    level: float
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def early(self) -> bool:
        """Whether the run stopped before all items were asked."""
        return self.used < self.planned


@dataclass(frozen=True)
class EvaluationRecords:
    """The records measured on the base model, which stand beside each other in the document."""

    coverage: tuple[Coverage, ...] = ()
    scores: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()
    attribution: tuple[Attribution, ...] = ()
    chain: tuple[ChainHop, ...] = ()
    guards: tuple[GuardScore, ...] = ()
    rounds: Rounds | None = None

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that systems were asked, in their order."""
        return list(dict.fromkeys(score.task for score in self.scores))

    @property
    def unsafe(self) -> set[str]:
        """The systems that are shown to lose a guard."""
        return {row.system for row in self.guards if row.outcome == "unlikely"}


@dataclass(frozen=True)
class LearnedWeights:
    """Weights learned on items that served nothing else (`--weights learn`).

    `objective` = `loss` (mean over tasks of nats per token of the gold answers on the `items` set
    apart) + 0.05 * mean |w|; `uniform` is the objective of 1/n each. `left` items were evaluated.
    `layers`, with `learn:per=layer`, has for each layer one weight an adapter, in the order of
    `weights`, which are then their means.
    """

    weights: Mapping[str, float]
    objective: float
    loss: float
    uniform: float
    evaluations: int
    items: int
    clusters: int
    left: int
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[float, ...]:
        """The weights of the merge; 1 each where the layers' own are multiplied into it first."""
        return (1.0,) * len(self.weights) if self.layers else tuple(self.weights.values())

    @property
    def uniform_loss(self) -> float:
        """The loss of 1/n each on the same items."""
        return self.uniform - LEARNING_SHRINK / len(self.weights)
