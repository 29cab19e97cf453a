"""`--weights search`: few-shot coefficients of a linear merge by a gradient-free optimiser.

LoraHub's idea (arXiv 2307.13269), for causal models: the weights w of sum_i w_i dW_i minimise

    mean over tasks and items of nats a token of the gold answer  +  0.05 * mean_i |w_i|

within [-1.5, 1.5], by CMA-ES (package `cma`). Of several accepted answers the one with the smallest
loss counts. The average, the sum and each adapter alone are tried first, and CMA-ES starts from the
best of them, so the result is never worse than they are on these items. Weights have four decimals,
as they are printed.

Whole clusters of items (and equal prompts) are set apart from each task for the search before
anything is scored; verdict, controls and scores come from the rest. Every method that takes
weights uses the result, although it minimises the loss of the weighted sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.composition import Composition, RowGates, Rows
from loraprobe.defaults import SEARCH_LEAST, SEARCH_MOST, SEARCH_SHARE
from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation.ledger import MOST_LOSS, JsonLines
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs, load_scorer
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import Progress, WeightSearch
from loraprobe.routing.constant import ConstantGates

if TYPE_CHECKING:
    from loraprobe.tasks import Item, Task

BOUND = 1.5
SHRINK = 0.05
STEP = 0.3  # of CMA-ES at its start

Weights = tuple[float, ...]
Losses = Callable[[Sequence[Weights]], list[float]]


@dataclass(frozen=True)
class TaskSplit:
    """Tasks in two parts that share no cluster and no prompt."""

    searched: tuple[Task, ...]
    left: tuple[Task, ...]

    @property
    def items(self) -> tuple[int, int]:
        """How many items went where."""
        return tuple(sum(len(task.items) for task in part) for part in (self.searched, self.left))  # type: ignore[return-value]

    @property
    def clusters(self) -> int:
        """Clusters of the part that is searched on."""
        return len({_key(item) for task in self.searched for item in task.items})


def split(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets items apart: whole clusters, drawn by the seed, the same for the same call.

    Raises TaskError where a task is too small to be split.
    """
    keys = sorted({_key(item) for task in tasks for item in task.items})
    random.Random(f"search:{options.seed}").shuffle(keys)
    apart: set[str] = set()
    for task in tasks:
        wanted = options.search_items or min(SEARCH_MOST, math.ceil(SEARCH_SHARE * len(task.items)))
        if wanted < SEARCH_LEAST and options.search_items is None:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items, too few to search "
                f"weights on a part of them; give at least {int(SEARCH_LEAST / SEARCH_SHARE)}, or "
                "--search-items."
            )
        own = [_key(item) for item in task.items]
        for key in keys:
            if sum(k in apart for k in own) >= wanted:
                break
            if key in own:
                apart.add(key)
        if len(set(own) - apart) < 2:
            raise TaskError(
                f"Task {task.name} has {len(own)} items in {len(set(own))} clusters, so nothing "
                f"is left to judge by once {wanted} are set apart for --weights search; give "
                "more items or fewer --search-items."
            )
    return TaskSplit(
        *(tuple(_part(task, apart, inside) for task in tasks) for inside in (True, False))
    )


def _key(item: Item) -> str:
    """Items of one key stay together: the key is the group, or else the prompt, in any task."""
    return f"group:{item.group}" if item.group is not None else f"prompt:{item.prompt}"


def _part(task: Task, apart: set[str], inside: bool) -> Task:
    return replace(task, items=tuple(i for i in task.items if (_key(i) in apart) == inside))


class TriedWeights:
    """Losses of weights that were tried. A file keeps them, if one is given, so that an interrupted
    search repeats nothing. Raises OutputError as `JsonLines` does."""

    def __init__(self, path: Path | None = None, resume: bool = False) -> None:
        self._lines = None if path is None else JsonLines(path, resume, {}, _tried)
        self.known: dict[Weights, float] = dict(self._lines.rows) if self._lines else {}

    def losses(self, candidates: Sequence[Weights], ask: Losses) -> list[float]:
        """The losses of candidates; `ask` gives those that are not known, and they are kept."""
        fresh = list(dict.fromkeys(w for w in candidates if w not in self.known))
        if fresh:
            found = dict(zip(fresh, ask(fresh), strict=True))
            if self._lines is not None:
                self._lines.append({"weights": w, "loss": loss} for w, loss in found.items())
            self.known |= found
        return [self.known[w] for w in candidates]


def _tried(row: Any) -> tuple[Weights, float]:
    """Weights and their loss from a JSON value. Raises ValueError for what no search writes."""
    if not (isinstance(row, dict) and row.keys() == {"weights", "loss"}):
        raise ValueError("other keys")
    weights, loss = row["weights"], row["loss"]
    if not isinstance(weights, list) or any(type(x) is not float for x in [*weights, loss]):
        raise ValueError("another type")
    if not (all(abs(w) <= BOUND for w in weights) and 0 <= loss <= MOST_LOSS):
        raise ValueError("beyond the bounds")
    return tuple(weights), loss


def search_without_evaluation(
    experts: Sequence[Adapter], base: Base | None, tasks: Sequence[Task], session: Session
) -> tuple[WeightSearch, list[str]]:
    """`--weights search` of merge and route: the same split and search as in an evaluation.

    Returns what was found, and notes. The base is loaded in the dtype of its device, since the
    --dtype of a merge is that of its file. Raises UsageError without a base or a task.
    """
    from loraprobe.evaluation import choose_template

    if base is None or not tasks:
        raise UsageError(
            "--weights search asks the base model on a task: add --base DIR (or auto) and "
            "--task FILE."
        )
    options = session.options
    parts = split(tasks, options)
    scorer, notes = load_scorer(base, "auto", session)
    if options.chat_template == "auto":
        singles = [Composition(e.name, (e,), ConstantGates.ones(1)) for e in experts]
        chosen, why, _ = choose_template(scorer, singles, parts.searched, metric="answer_loss")
        scorer = scorer.with_template(chosen)
        notes.append(why)
    with session.stage("search"):
        found = find_weights(scorer, experts, parts, options, progress=session.progress)
    return found, [*notes, note(found, "an evaluation"), scorer.batcher.note()]


def chosen_weights(
    inputs: Inputs, prepared: Prepared, session: Session
) -> tuple[tuple[float, ...] | None, WeightSearch | None, list[str]]:
    """The weights of a merge: those given, those that a search finds, or None for the method's own.

    Returns the weights, what the search found, and notes.
    """
    options = session.options
    if options.weights != "search":
        return options.given_weights, None, []
    found, notes = search_without_evaluation(prepared.adapters, inputs.base, inputs.tasks, session)
    return tuple(found.weights.values()), found, notes


def find_weights(
    scorer: Any,
    experts: Sequence[Adapter],
    parts: TaskSplit,
    options: Options,
    *,
    memory: TriedWeights | None = None,
    progress: Progress | None = None,
) -> WeightSearch:
    """Searches with at most options.search_budget candidates; reproducible by the seed."""
    memory, budget = memory or TriedWeights(), options.search_budget
    ask = answer_losses(scorer, experts, parts.searched)
    tried: dict[Weights, float] = {}
    steps = _candidates(len(experts), budget, options.seed)
    batch = next(steps)
    while batch:
        found = memory.losses(batch, ask)
        tried |= dict(zip(batch, found, strict=True))
        if progress is not None:
            progress("search weights", len(tried), budget)
        try:
            batch = steps.send([_objective(w, loss) for w, loss in zip(batch, found, strict=True)])
        except StopIteration:
            break
    best = min(tried, key=lambda w: (_objective(w, tried[w]), w))
    average = next(iter(tried))
    return WeightSearch(
        weights=dict(zip((expert.name for expert in experts), best, strict=True)),
        objective=_objective(best, tried[best]),
        loss=tried[best],
        uniform=_objective(average, tried[average]),
        evaluations=len(tried),
        items=parts.items[0],
        clusters=parts.clusters,
        left=parts.items[1],
    )


def note(found: WeightSearch, left_for: str = "everything else") -> str:
    """A sentence for the report."""
    weights = listing([f"{name} {weight:g}" for name, weight in found.weights.items()])
    return (
        f"Weights were searched for on {found.items} items ({found.clusters} clusters) that served "
        f"nothing else; {found.left} were left for {left_for}. Found in {found.evaluations} "
        f"evaluations: {weights} (objective {found.objective:.3f}, {found.uniform:.3f} for 1/n "
        "each)."
    )


def _objective(weights: Weights, loss: float) -> float:
    return loss + SHRINK * sum(map(abs, weights)) / len(weights)


def _candidates(n: int, budget: int, seed: int) -> Generator[list[Weights], list[float], None]:
    """Batches of candidates, new ones only, at most `budget` in all; takes their objectives."""
    import cma
    import numpy

    usual = [(round(1 / n, 4),) * n, (1.0,) * n]
    usual += [tuple(float(i == j) for j in range(n)) for i in range(n)]
    batch = list(dict.fromkeys(usual))[:budget]
    known = dict(zip(batch, (yield batch), strict=True))
    # A generator of its own: cma would otherwise seed numpy's for the whole process.
    options = {
        "bounds": [-BOUND, BOUND],
        "randn": numpy.random.RandomState(seed).randn,
        "seed": math.nan,
        "verbose": -9,
        "verb_log": 0,
    }
    start: Weights = min(known, key=lambda w: (known[w], w))
    strategy = cma.CMAEvolutionStrategy(list(start), STEP, options)
    while len(known) < budget and not strategy.stop():
        points = strategy.ask()
        rounded = [_rounded(point) for point in points]
        fresh = list(dict.fromkeys(w for w in rounded if w not in known))[: budget - len(known)]
        if fresh:
            known |= dict(zip(fresh, (yield fresh), strict=True))
        if any(w not in known for w in rounded):
            return  # the budget ended within a generation
        strategy.tell(points, [known[w] for w in rounded])


def _rounded(point: Sequence[float]) -> Weights:
    """Four decimals; never all zero, which would be the base and no merge."""
    weights = tuple(round(float(x), 4) + 0.0 for x in point)
    return weights if any(weights) else (1e-4, *weights[1:])


def answer_losses(scorer: Any, experts: Sequence[Adapter], tasks: Sequence[Task]) -> Losses:
    """A function from weight vectors to losses: nats a token, the mean over tasks of their items.

    Candidates answer side by side, each in rows of its own with its own gates, so that factors are
    put into the model once. Experts that replace whole parameters, and mixtures of experts whose
    layers mix the rows, are put in one candidate at a time.
    """
    from loraprobe.scoring import LogitEnsemble, score_together

    pairs = [
        [[(item.prompt, answer) for answer in item.answers] for item in task.items]
        for task in tasks
    ]
    flat = list(dict.fromkeys(pair for task in pairs for item in task for pair in item))
    encoded = scorer.encoder.pairs(flat)
    tokens = {pair: len(ids) - start for pair, (ids, start) in zip(flat, encoded, strict=True)}

    def mean(logprobs: dict[tuple[str, str], float]) -> float:
        losses = [
            sum(min(-logprobs[pair] / tokens[pair] for pair in item) for item in task) / len(task)
            for task in pairs
        ]
        return sum(losses) / len(losses)

    mixed = any(".experts." in f".{path}." for expert in experts for path in expert.modules)
    if mixed or any(expert.whole for expert in experts):
        return lambda candidates: [mean(_alone(scorer, experts, w, flat)) for w in candidates]
    rows = Rows()
    composition = Composition("search", tuple(experts), RowGates(rows))  # prepared once

    def side_by_side(candidates: Sequence[Weights]) -> list[float]:
        ensembles = [LogitEnsemble((weights,), (1.0,)) for weights in candidates]
        with scorer.with_composition(composition):
            found = score_together(scorer, flat, ensembles, rows.set)
        return [mean(dict(zip(flat, row, strict=True))) for row in found]

    return side_by_side


def _alone(
    scorer: Any, experts: Sequence[Adapter], weights: Weights, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    composition = Composition("search", tuple(experts), ConstantGates(weights))
    with scorer.with_composition(composition):
        found = scorer.loglikelihood(pairs)
    return {pair: likely.logprob for pair, likely in zip(pairs, found, strict=True)}
