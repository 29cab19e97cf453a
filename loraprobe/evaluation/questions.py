"""What is asked of whom and when: systems, the questions of tasks, and the rounds of these.

A round adds whole clusters in a seeded order, so that its items are a random sample. After each
round the decision may be made. The chance of a wrong one is spent over these rounds: by the round
with the share t of the clusters t^2 of alpha is spent (Kim and DeMets 1987). The alpha of a round
follows from Armitage, McPherson and Rowe's recursion (1969) for a Brownian motion. A decision at
the last round then needs intervals that are 2 to 4 % wider than those of a single round
(examples/calibration/rule-simulated.md compares the two).

`inspect` looks first, at a sample (`pilot_round`). Where that is the first round, both decide by
the same intervals. Where it is smaller, it is a look of its own before the rounds, for which these
leave a part of alpha, whether `inspect` was run or not.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from loraprobe.defaults import (
    ALPHA,
    FIRST_ROUND,
    LOSS,
    PILOT_ITEMS,
    PLAIN_TOKENS,
    ROUNDS_FROM,
    WORKED_TOKENS,
)
from loraprobe.errors import TaskError
from loraprobe.records import QUESTION, STEPS, Coverage, ItemPart, ItemResult, hop_part
from loraprobe.results import digest
from loraprobe.tasks import METRICS, Item, Task, is_generated, normalize_answer
from loraprobe.tasks.metrics import LONGEST_REPLY, answer_end, asked_marks

if TYPE_CHECKING:
    from loraprobe.composition import Composition

BASE = "base"  # the name of the base without an adapter
EXPONENT = 2.0  # of the share of alpha that is spent by a share of the clusters
FEW_EXPONENT = 4.0  # the same where the first round has more than half of the clusters
DIGITS = 12  # of a digest
SAME_LOOK = 0.99  # of the share of the first round: a look at more is no other one
GRID = 801  # points of the recursion
WIDEST = 8.0  # standard errors that the grid covers


@dataclass(frozen=True)
class System:
    """One system of the evaluation.

    composition: it is put into the base; None for the base alone. chain: for kind "chain", the
    compositions of the single adapters, named after them, which answer the hops together with the
    base. compression_error: the relative error of a merge that is due to its rank. artifact: the
    `adapters.Composed` that is written of it, such as the `merging.Merged` of a method that needs
    new weights; None where it has none, or none yet. content: a digest of all that decides what
    the system computes, by which its answers are kept; "" where only the same run may use them.
    method: the merge method or the router by which adapters are composed; spec: its text. members:
    the adapters that it consists of, where the run has others. of: of a control that depends on a
    composition, the name of that one, which alone is compared with it. contents: those of the
    adapters that a composition chooses from by the text of a prompt, where they are as they were
    trained, so that what they answered alone counts.
    """

    name: str
    kind: str
    composition: Composition | None = None
    chain: tuple[Composition, ...] = ()
    compression_error: float | None = None
    artifact: Any = None
    content: str = ""
    spec: str = ""
    method: Any = None
    members: tuple[str, ...] = ()
    of: str = ""
    contents: tuple[str, ...] = ()

    def answering(self, prompt: str) -> System:
        """What answers a prompt: an adapter or the base where the router reads the text, under the
        name of this system; else this system itself."""
        routed = self.composition
        if routed is None or not routed.router.reads_text:
            return self
        chosen = routed.answering(prompt)
        if not chosen.experts:
            return replace(self, composition=None, content=BASE)
        at = next(k for k, one in enumerate(routed.experts) if one is chosen.experts[0])
        own = f"{self.content} {at}" if self.content else ""
        return replace(
            self, composition=chosen, content=self.contents[at] if self.contents else own
        )

    @classmethod
    def alone(cls, composition: Composition) -> System:
        """A single adapter, which is the only expert of a composition."""
        name, (adapter,) = composition.name, composition.experts
        return cls(name, "adapter", composition, content=adapter.content)


@functools.cache  # questions with the same marks are asked together
def has_answer(marks: tuple[str, ...]) -> Callable[[str], bool]:
    """Tells whether a worked text has given its answer in a form that the prompt asks for."""
    return lambda text: answer_end(text, marks) is not None


@dataclass(frozen=True)
class Question:
    """One prompt, the right answers, and the metric that judges the reply."""

    task: str
    part: ItemPart
    item: Item
    prompt: str
    answers: tuple[str, ...]
    metric: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, part and item."""
        return self.task, self.part, self.item.id

    @property
    def worked(self) -> bool:
        """Whether the answer is a text of several lines with worked steps."""
        return self.part == STEPS

    @property
    def generated(self) -> bool:
        """Whether a reply is generated; else continuations are scored."""
        return is_generated(self.metric)

    @property
    def most_tokens(self) -> int:
        """The longest reply, where `--max-new-tokens` sets no limit for all."""
        return WORKED_TOKENS if self.worked else PLAIN_TOKENS

    @property
    def one_line(self) -> bool:
        """Whether the first line of a reply is all that counts."""
        return not self.worked and METRICS[self.metric].one_line(self.answers)

    @property
    def ended(self) -> Callable[[str], bool] | None:
        """Tells of a text, up to the end of a line, whether what follows cannot count.

        None where it may count up to the limit of tokens.
        """
        if self.worked:
            marks = asked_marks(self.prompt)
            return has_answer(marks) if marks else None
        return METRICS[self.metric].ended

    def result(
        self, system: str, value: float, text: str, contains: bool = False, cut: bool = False
    ) -> ItemResult:
        item, metric = self.item, self.metric
        of = system, self.task, self.part, item.id
        return ItemResult(*of, metric, value, text, item.cluster, contains, cut)

    def judged(self, system: str, text: str, cut: bool = False) -> ItemResult:
        """The result of a generated text. cut: it ended at the limit of tokens.

        A worked text counts up to the first answer in a form that the prompt asks for, and no text
        beyond LONGEST_REPLY. Raises TaskError if the item's pattern takes too long.
        """
        text = text[:LONGEST_REPLY]
        if self.worked:
            text = text[: answer_end(text, asked_marks(self.prompt))]
        pattern = self.item.answer_pattern
        try:
            metric = METRICS[self.metric]
            judged = metric.judge(text, self.answers, cot=self.worked, pattern=pattern)
        except TaskError as error:
            raise error.at(f"Task {self.task}, item {self.item.id!r}") from None
        return self.result(system, float(judged.right), judged.text, judged.contains, cut)

    @property
    def continuations(self) -> tuple[str, ...]:
        """The texts that are scored if the question is judged by likelihood."""
        metric = METRICS.get(self.metric)
        return self.answers if metric is None else metric.texts(self.item.choices, self.answers)

    def scored(self, system: str, scores: Sequence[tuple[float, int]]) -> ItemResult:
        """The result of the scores of all continuations: log-probability and number of tokens."""
        value, text = METRICS[self.metric].scored(scores, self.continuations, self.answers)
        return self.result(system, value, text)


def questions(tasks: Iterable[Task]) -> list[Question]:
    """The questions of all parts of all items.

    The worked form has the metric of the composed question, except that choices belong to the plain
    form: under "choice" a worked answer is generated and judged by exact match. So are hops under
    every metric but "answer_loss", which has no worked form, since a task holds no worked text.
    """
    return [question for task in tasks for item in task.items for question in _of_item(task, item)]


def _of_item(task: Task, item: Item) -> list[Question]:
    metric = item.judge
    hops = LOSS if metric == LOSS else "exact_match"
    found = [Question(task.name, QUESTION, item, item.prompt, item.answers, metric)]
    for k, hop in enumerate(item.hops):
        found.append(Question(task.name, hop_part(k), item, item.hop_prompt(k), hop.answers, hops))
    if item.cot_prompt is not None and metric != LOSS:
        worked = "exact_match" if metric == "choice" else metric
        found.append(Question(task.name, STEPS, item, item.cot_prompt, item.answers, worked))
    return found


def guessing(tasks: Iterable[Task]) -> tuple[Coverage, ...]:
    """What guessing would score on the composed question, a row a task; none for losses.

    A choice is guessed at random. For other items the commonest right answer is always given.
    """
    rows = []
    for task in tasks:
        items = task.items
        if not items or any(item.judge == LOSS for item in items):
            continue
        if any(item.examiner and not item.choices for item in items):
            continue
        golds = Counter(
            gold
            for item in items
            if is_generated(item.judge)
            for gold in {normalize_answer(answer) for answer in item.answers}
        )
        chances = [
            sum(choice in item.answers for choice in item.choices) / len(item.choices)
            for item in items
            if item.judge == "choice" or item.examiner
        ]
        right = sum(chances) + max(golds.values(), default=0)
        rows.append(Coverage("guessing", task.name, right / len(items), len(items)))
    return tuple(rows)


# ---- rounds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Round `number` of `planned`: the tasks with all items asked by then, and the round's alpha.

    alpha: both sides together; intervals of level 1 - alpha decide after this round. guards: what
    must not get worse, likewise; a name ends in a digest of the guard's items, by which answers are
    kept, so that a guard of other items under the same name gets none of them.
    """

    number: int
    planned: int
    tasks: tuple[Task, ...]
    alpha: float
    guards: tuple[Task, ...] = ()

    @property
    def last(self) -> bool:
        return self.number == self.planned

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.tasks)


def rounds(
    tasks: Sequence[Task], seed: int, *, all_items: bool = False, guards: Sequence[Task] = ()
) -> tuple[Round, ...]:
    """The rounds of these tasks, the last one with all items.

    The first has FIRST_ROUND clusters of the smallest task, each further one about twice as many as
    the one before; every task and every guard gives the same share of its clusters. There is one
    round if the smallest task has fewer than ROUNDS_FROM clusters, and with `all_items`. A first
    round of more items than `pilot_round` leaves to that what it spends.
    """
    named = [replace(one, name=f"{one.name}@{digest(one.items)[:DIGITS]}") for one in guards]
    orders = [list(clusters_in_order(task, seed)) for task in (*tasks, *named)]
    fewest = min(map(len, orders[: len(tasks)]))
    shares = (1.0,) if all_items or fewest < ROUNDS_FROM else round_shares(fewest)
    look = pilot_share(tasks)
    looks = shares if look > SAME_LOOK * shares[0] else (look, *shares)
    alphas = round_alphas(looks)[-len(shares) :]
    found = []
    for number, (share, alpha) in enumerate(zip(shares, alphas, strict=True), 1):
        parts = [
            _part(task, order[: math.ceil(share * len(order) - 1e-9)])
            for task, order in zip((*tasks, *named), orders, strict=True)
        ]
        own, kept = tuple(parts[: len(tasks)]), tuple(parts[len(tasks) :])
        found.append(Round(number, len(shares), own, alpha, kept))
    return tuple(found)


def pilot_round(tasks: Sequence[Task], seed: int) -> Round:
    """The look of `inspect`, at PILOT_ITEMS items of each task, with the alpha that it spends.

    The first round has these items too. It has no others where tasks are equally long and no item
    shares its cluster, so the two are one look.
    """
    few = tuple(spread_sample(task, PILOT_ITEMS, seed) for task in tasks)
    look = pilot_share(tasks)
    planned = 1 if look == 1 else max(2, rounds(tasks, seed)[0].planned)
    return Round(1, planned, few, spent_by(look, look))


def pilot_share(tasks: Sequence[Task]) -> float:
    """The share of the information on the mean over the tasks that their first PILOT_ITEMS items
    hold, for independent items; of items in clusters it is more."""
    whole = sum(Fraction(1, len(task.items)) for task in tasks)
    return float(whole / sum(Fraction(1, min(len(task.items), PILOT_ITEMS)) for task in tasks))


def lot(seed: int, items: Iterable[Item]) -> str:
    """A random place in an order, from the seed and from what is asked and not the file's name.

    The others keep their order where a task gets more items.
    """
    return digest([seed, [(item.id, item.prompt, item.answers) for item in items]])


def clusters_in_order(task: Task, seed: int) -> dict[str, list[Item]]:
    """Cluster -> its items, in a random order, the same for the same seed and the same items."""
    held: dict[str, list[Item]] = {}
    for item in task.items:
        held.setdefault(item.cluster, []).append(item)
    return dict(sorted(held.items(), key=lambda one: lot(seed, one[1])))


def spread_sample(task: Task, items: int, seed: int) -> Task:
    """At most `items` items from as many clusters as possible, in the file's order.

    Clusters give an item each in turn, because items of one cluster tell less than items of
    several. The order is that of the rounds, so where no item shares its cluster, a first round has
    the same items.
    """
    turns = [
        (turn, place, item.id)
        for place, held in enumerate(clusters_in_order(task, seed).values())
        for turn, item in enumerate(sorted(held, key=lambda one: lot(seed, [one])))
    ]
    chosen = {item for _, _, item in sorted(turns)[:items]}
    return replace(task, items=tuple(item for item in task.items if item.id in chosen))


def round_shares(clusters: int) -> tuple[float, ...]:
    """The share of the clusters in each round: from FIRST_ROUND to all, nearly doubling."""
    steps = max(1, round(math.log2(clusters / FIRST_ROUND)))
    return tuple((FIRST_ROUND / clusters) ** (1 - k / steps) for k in range(steps + 1))


def _part(task: Task, clusters: Collection[str]) -> Task:
    chosen = set(clusters)
    return replace(task, items=tuple(item for item in task.items if item.cluster in chosen))


@functools.cache
def round_alphas(shares: tuple[float, ...]) -> tuple[float, ...]:
    """The alpha of each round at these shares of the information; the last share is 1."""
    return boundaries(shares, tuple(spent_by(share, shares[0]) for share in shares))


def spent_by(share: float, first: float) -> float:
    """The part of ALPHA that is spent by this share of the information. first: that of round 1."""
    return ALPHA * share ** (EXPONENT if first <= 0.5 else FEW_EXPONENT)


def boundaries(shares: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """The two-sided alpha of each round, so that `spent` is spent by each.

    A Brownian motion leaves the boundaries of either side by share t with the probability spent.
    """
    grid = np.linspace(-WIDEST, WIDEST, GRID)
    step, found = grid[1] - grid[0], [float(spent[0])]
    bound = -special.ndtri(spent[0] / 2) * math.sqrt(shares[0])
    density = np.exp(-(grid**2) / shares[0] / 2) / math.sqrt(2 * math.pi * shares[0])
    density = np.where(np.abs(grid) < bound, density, 0.0)
    for share, length, part in zip(shares[1:], np.diff(shares), np.diff(spent), strict=True):
        spread = math.sqrt(length)
        moves = np.exp(-(((grid[:, None] - grid) / spread) ** 2) / 2) * step
        density = moves @ density / (spread * math.sqrt(2 * math.pi))
        beyond = np.cumsum(density[::-1])[::-1] * step  # probability at this point or above
        bound = np.interp(part / 2, beyond[::-1], grid[::-1] - step / 2)
        density = np.where(np.abs(grid) < bound, density, 0.0)
        found.append(2 * float(special.ndtr(-bound / math.sqrt(share))))
    return tuple(found)
