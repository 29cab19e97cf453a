"""`--weights search`: few-shot coefficients of a linear merge by a gradient-free optimiser.

LoraHub's idea (arXiv 2307.13269), for causal models: the weights w of sum_i w_i dW_i minimise

    mean over tasks and items of nats a token of the gold answer  +  0.05 * mean_i |w_i|

within [-1.5, 1.5], by CMA-ES (package `cma`). If several answers are accepted, the one with the
smallest loss counts. The average, the sum and each adapter alone are tried first, and CMA-ES starts
from the best of them, so the result is at least as good as they are on these items. Weights have
four decimals, as they are printed.

A part of each task's items is used for the search alone; items of one cluster or of equal prompts
stay together. Verdict, controls and scores come from the rest. Every method that takes weights uses
the result, although it minimises the loss of the weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import unroutable
from loraprobe.composition import Composition, RowGates, Rows
from loraprobe.errors import UsageError
from loraprobe.evaluation.kept import MOST_LOSS, JsonLines
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer, with_better_template
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import TaskSplit, split
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import Progress, WeightSearch
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import score_rows
from loraprobe.tasks import Task

BOUND = 1.5
SHRINK = 0.05
STEP = 0.3  # of CMA-ES at its start

Weights = tuple[float, ...]
Losses = Callable[[Sequence[Weights]], list[float]]


class _Line(BaseModel):
    """A line of the file: weights that were tried, and their loss."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    weights: list[Annotated[float, Field(ge=-BOUND, le=BOUND)]]
    loss: Annotated[float, Field(ge=0, le=MOST_LOSS)]


def tried_weights(path: Path, resume: bool = False) -> JsonLines[tuple[Weights, float]]:
    """Weights that were tried and their losses, in a file: an interrupted search repeats nothing.

    Raises OutputError as `JsonLines` does.
    """

    def parse(row: Any) -> tuple[Weights, float]:
        line = _Line.model_validate(row)
        return tuple(line.weights), line.loss

    return JsonLines(path, resume, {}, parse)


def chosen_weights(
    inputs: Inputs, prepared: Prepared, session: Session
) -> tuple[tuple[float, ...] | None, WeightSearch | None, list[str]]:
    """The weights of a merge or a route: those given, those that a search finds, or None for the
    method's own. Returns the weights, what the search found, and notes.

    The search is the one of an evaluation. The base is loaded in the dtype of its device, since
    the --dtype of a merge is that of its file. Raises UsageError without a base or a task.
    """
    options = session.options
    if options.weights != "search":
        return options.given_weights, None, []
    if inputs.base is None or not inputs.tasks:
        raise UsageError(
            "--weights search asks the base model on a task: add --base DIR (or auto) and "
            "--task FILE."
        )
    parts, experts = split(inputs.tasks, options), prepared.adapters
    scorer, notes = open_scorer(inputs.base, "auto", session)
    scorer, why, _ = with_better_template(scorer, session, experts, parts.apart, "answer_loss")
    with session.stage("search"):
        found = find_weights(scorer, experts, parts, options, progress=session.progress)
    notes += [*why, note(found, "an evaluation"), scorer.batcher.note()]
    return tuple(found.weights.values()), found, notes


def find_weights(
    scorer: Any,
    experts: Sequence[Adapter],
    parts: TaskSplit,
    options: Options,
    *,
    memory: JsonLines[tuple[Weights, float]] | None = None,
    progress: Progress | None = None,
) -> WeightSearch:
    """Searches with at most options.search_budget candidates; reproducible by the seed."""
    budget, n = options.search_budget, len(experts)
    known = dict(memory.rows) if memory is not None else {}
    compute = answer_losses(scorer, experts, parts.apart)
    tried: dict[Weights, float] = {}  # weights -> loss

    def try_all(candidates: Sequence[Weights]) -> bool:
        """Computes the losses of new candidates; False if the budget does not allow all of them."""
        fresh = list(dict.fromkeys(w for w in candidates if w not in tried))
        allowed = fresh[: budget - len(tried)]
        if new := [weights for weights in allowed if weights not in known]:
            known.update(zip(new, compute(new), strict=True))
            if memory is not None:
                memory.append({"weights": weights, "loss": known[weights]} for weights in new)
        if allowed:
            tried.update((weights, known[weights]) for weights in allowed)
            if progress is not None:
                progress("search weights", len(tried), budget)
        return len(allowed) == len(fresh)

    alone = [tuple(float(i == j) for j in range(n)) for i in range(n)]
    try_all([(round(1 / n, 4),) * n, (1.0,) * n, *alone])
    strategy = _strategy(_best(tried), options.seed)
    while len(tried) < budget and not strategy.stop():
        points = strategy.ask()
        candidates = [_rounded(point) for point in points]
        if not try_all(candidates):
            break
        strategy.tell(points, [_objective(weights, tried[weights]) for weights in candidates])
    return _result(tried, experts, parts)


def _result(
    tried: Mapping[Weights, float], experts: Sequence[Adapter], parts: TaskSplit
) -> WeightSearch:
    """The best of the tried weights; the first tried are 1/n each."""
    best, average = _best(tried), next(iter(tried))
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


def _objective(weights: Weights, loss: float) -> float:
    return loss + SHRINK * sum(map(abs, weights)) / len(weights)


def _best(tried: Mapping[Weights, float]) -> Weights:
    """The weights of the smallest objective; of equally good ones the smallest weights."""
    return min(tried, key=lambda weights: (_objective(weights, tried[weights]), weights))


def _strategy(start: Weights, seed: int) -> Any:
    """CMA-ES from these weights within the bounds."""
    import cma
    import numpy

    options = {
        "bounds": [-BOUND, BOUND],
        # A generator of its own: cma would otherwise seed numpy's for the whole process.
        "randn": numpy.random.RandomState(seed).randn,
        "seed": math.nan,
        "verbose": -9,
        "verb_log": 0,
    }
    return cma.CMAEvolutionStrategy(list(start), STEP, options)


def note(found: WeightSearch, left_for: str = "everything else") -> str:
    """A sentence for the report."""
    weights = listing([f"{name} {weight:g}" for name, weight in found.weights.items()])
    return (
        f"Weights were searched for on {found.items} items ({found.clusters} clusters) that served "
        f"nothing else; {found.left} were left for {left_for}. Found in {found.evaluations} "
        f"evaluations: {weights} (objective {found.objective:.3f}, {found.uniform:.3f} for 1/n "
        "each)."
    )


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
    if mixed or any(map(unroutable, experts)):
        return lambda candidates: [mean(_alone(scorer, experts, w, flat)) for w in candidates]
    rows = Rows()
    composition = Composition("search", tuple(experts), RowGates(rows))  # prepared once

    def side_by_side(candidates: Sequence[Weights]) -> list[float]:
        with scorer.with_composition(composition):
            found = score_rows(scorer, flat, candidates, rows.set)
        return [mean(dict(zip(flat, row, strict=True))) for row in found]

    return side_by_side


def _alone(
    scorer: Any, experts: Sequence[Adapter], weights: Weights, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    composition = Composition("search", tuple(experts), ConstantGates(weights))
    with scorer.with_composition(composition):
        found = scorer.loglikelihood(pairs)
    return {pair: likely.logprob for pair, likely in zip(pairs, found, strict=True)}
