"""`--weights learn`: the weights of a merge that minimise the loss of items set apart.

No system is scored on these items. The gates g of sum_i g_i dW_i minimise

    mean over tasks and items of nats a token of the gold answer  +  0.05 * mean_i |g_i|

within [-1.5, 1.5]: LoraHub's objective (arXiv 2307.13269) for causal models. There is one gate an
adapter or, with `learn:per=layer`, one for each adapter in each layer, which is CAT of LoRA Soups
(arXiv 2410.13025; in its code each linear module has gates, which sum to 1). AdamW starts from 1/n
each, and of all gates on its way the best are kept, so the result is at least as good as the
average on these items. If several answers of an item are accepted, the one with the smallest loss
counts. Gates have four decimals, as they are printed. Every method that takes weights uses the
result, although it minimises the loss of the weighted sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from loraprobe.adapters import Adapter, natural, with_below
from loraprobe.adapters.experts import stacks
from loraprobe.composition import Composition, LearnableGates
from loraprobe.defaults import LEARNING_STEPS, LOSS
from loraprobe.errors import UnsupportedAdapter, UsageError
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer, with_better_template
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.transforms import Transformed, check_scalable, layer_of
from loraprobe.records import LearnedWeights, Progress
from loraprobe.results import JsonLines
from loraprobe.scoring import ModelScorer, loss_with_gradients
from loraprobe.session import Session
from loraprobe.tasks.splits import TaskSplit, split_for_weights

BOUND = 1.5
SHRINK = 0.05
RATE = 0.2  # of AdamW at its start; it falls to 0 along a cosine
BETAS = 0.7, 0.9  # AdamW forgets gradients faster than by default, as it takes few steps


def check_learnable(adapters: Sequence[Adapter], options: Options) -> None:
    """Raises UnsupportedAdapter for adapters whose gates a loss cannot be differentiated by, or
    which gates of single layers cannot scale."""
    for adapter in with_below(adapters):
        if stack := next(iter(stacks(adapter.layout).values()), None):
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} changes the parameter of {stack[0]} itself, by whose gate "
                "a loss cannot be differentiated; give --weights as numbers."
            )
    for adapter in adapters if options.learns_layers else ():
        check_scalable(adapter)


def learn_for(
    inputs: Inputs, transformed: Transformed, session: Session
) -> tuple[LearnedWeights, list[str]]:
    """The weights of a merge or a route, learned as an evaluation would, and notes.

    The base is loaded in the dtype of its device, since the --dtype of a merge is that of its file.
    Raises UsageError without a base or a task.
    """
    if inputs.base is None or not inputs.tasks:
        raise UsageError(
            "--weights=learn asks the base model on a task: add --base=DIR (or auto) and "
            "--task=FILE."
        )
    options, experts = session.options, transformed.adapters
    check_learnable(experts, options)
    parts = split_for_weights(inputs.tasks, options)
    scorer, notes = open_scorer(inputs.base, "auto", session)
    scorer, why, _ = with_better_template(scorer, session, experts, parts.apart, LOSS)
    with session.stage("learn"):
        learned = learn(scorer, experts, parts, options, progress=session.progress)
    note = learned_note(learned, "an evaluation")
    return learned, [*notes, *why, note, scorer.note()]


def learn(
    scorer: ModelScorer,
    experts: Sequence[Adapter],
    parts: TaskSplit,
    options: Options,
    *,
    path: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> LearnedWeights:
    """The gates that AdamW finds in LEARNING_STEPS passes over the items that were set apart.

    path: a file for the result, which is read with `resume`. Raises OutputError where it is
    damaged.
    """
    kept = JsonLines(path, resume, {}, TypeAdapter(LearnedWeights).validate_python)
    with contextlib.closing(kept):
        if not kept.rows:
            learned = _descend(scorer, experts, parts, options, progress)
            kept.append([TypeAdapter(LearnedWeights).dump_python(learned)])
            return learned
    return kept.rows[0]


def _descend(
    scorer: ModelScorer,
    experts: Sequence[Adapter],
    parts: TaskSplit,
    options: Options,
    progress: Progress | None,
) -> LearnedWeights:
    """The best gates on the way of AdamW from 1/n each."""
    paths = [path for expert in experts for path in (*expert.layout, *expert.whole)]
    layers = sorted(set(map(layer_of, paths)), key=natural) if options.learns_layers else [""]
    rows = {layer: row for row, layer in enumerate(layers)}
    gates = torch.full((len(layers), len(experts)), 1 / len(experts), requires_grad=True)
    router = LearnableGates(gates, lambda path: rows.get(layer_of(path), 0))
    composition = Composition("learn", tuple(experts), router)
    tasks = parts.apart
    asked = [(item, 1 / len(task.items) / len(tasks)) for task in tasks for item in task.items]
    items = [[(item.prompt, answer) for answer in item.answers] for item, _ in asked]
    shares = [share for _, share in asked]  # of each item in the loss
    optimiser = torch.optim.AdamW([gates], lr=RATE, betas=BETAS, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, LEARNING_STEPS)
    tried: list[tuple[float, float, Tensor]] = []  # objective, loss, gates
    for step in range(LEARNING_STEPS):
        optimiser.zero_grad()
        _round(gates)
        with scorer.with_composition(composition):
            loss = loss_with_gradients(scorer, items, shares)
        shrinking = SHRINK * gates.abs().mean()
        tried.append((loss + shrinking.item(), loss, gates.detach().clone()))
        shrinking.backward()
        optimiser.step()
        falling.step()
        if progress is not None:
            progress("learn weights", step + 1, LEARNING_STEPS)
    objective, loss, best = min(tried, key=lambda adapter: adapter[0])
    rounded = {layer: tuple(_decimals(best[row])) for layer, row in rows.items()}
    return LearnedWeights(
        weights=dict(
            zip((adapter.name for adapter in experts), _decimals(best.mean(0)), strict=True)
        ),
        objective=objective,
        loss=loss,
        uniform=tried[0][0],
        evaluations=LEARNING_STEPS,
        items=parts.items[0],
        clusters=parts.clusters,
        left=parts.items[1],
        layers=rounded if options.learns_layers else {},
    )


@torch.no_grad()
def _round(gates: Tensor) -> None:
    """Brings gates within the bounds and to four decimals; never all to zero, which is no merge."""
    gates.copy_(gates.clamp(-BOUND, BOUND).round(decimals=4))
    if not gates.any():
        gates[0, 0] = 1e-4


def _decimals(gates: Tensor) -> list[float]:
    return [round(gate, 4) + 0.0 for gate in gates.tolist()]


def learned_note(learned: LearnedWeights, left_for: str = "everything else") -> str:
    """A sentence for the report."""
    weights = listing([f"{name} {weight:g}" for name, weight in learned.weights.items()])
    means = f" (means of {len(learned.layers)} layers)" if learned.layers else ""
    return (
        f"Weights were learned on {learned.items} items ({learned.clusters} clusters) that served "
        f"nothing else; {learned.left} were left for {left_for}. Found in {learned.evaluations} "
        f"steps: {weights}{means}, objective {learned.objective:.3f}, {learned.uniform:.3f} for "
        "1/n each."
    )
