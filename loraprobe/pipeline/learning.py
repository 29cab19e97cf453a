"""What is learned before systems are asked, on items and prompts on which no system is scored.

*Routers* learn from prompts of each adapter. The user gives them in files; or they are the
questions of items that were set apart, each task's for the adapter that knows its answers best; or
the adapter generates them.

*Weights* (`--weights learn`) minimise the loss of items set apart. The gates g of sum_i g_i dW_i
minimise

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
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from loraprobe.adapters import Adapter, natural
from loraprobe.composition import Composition, LearnableGates, Router
from loraprobe.composition.router import unroutable
from loraprobe.defaults import (
    LEARNING_BOUND,
    LEARNING_SHRINK,
    LEARNING_STEPS,
    LOSS,
    PROMPTS_WRITTEN,
)
from loraprobe.errors import TaskError, UnsupportedAdapter, UsageError
from loraprobe.evaluation.questions import questions
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer, with_better_template
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import WHY_PER_PROMPT, Plan
from loraprobe.pipeline.task_files import read_prompts
from loraprobe.pipeline.taught import Taught, taught_by
from loraprobe.pipeline.transforms import PreparedAdapters, check_scalable, layer_of
from loraprobe.probes import generated_prompts
from loraprobe.records import LearnedWeights, Progress, called
from loraprobe.results import JsonLines
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer, loss_with_gradients, read_texts
from loraprobe.session import Session
from loraprobe.tasks import Task, judged_by
from loraprobe.tasks.splits import TaskSplit, split_for_weights

RATE = 0.2  # of AdamW at its start; it falls to 0 along a cosine
BETAS = 0.7, 0.9  # AdamW forgets gradients faster than by default, as it takes few steps
WRITTEN = "it wrote itself"  # the source of prompts that an adapter generated


def chosen_router(
    spec: str,
    inputs: Inputs,
    prepared: PreparedAdapters,
    session: Session,
    again: Taught | None = None,
) -> tuple[Router, LearnedWeights | None, Taught | None, list[str]]:
    """The router of a composition that is saved: with weights given or learned, or fitted.

    again: prompts that it was fitted to before. Returns the router, the learned weights, the
    prompts, and notes. Raises UsageError where options do not go with the router,
    UnsupportedAdapter for modules that its gates cannot weigh.
    """
    options, router = session.options, ROUTERS.make(spec)
    if options.router_prompts and not router.needs_prompts:
        raise UsageError(f"Router {spec} learns nothing from prompts; leave --router-prompts out.")
    if options.weights is not None and not isinstance(router, ConstantGates):
        raise UsageError(
            f"{spec} gives each token gates of its own, so it takes no --weights; they go "
            "with --router=constant."
        )
    for holder in prepared.adapters if not router.weighs_whole else ():
        if what := unroutable(holder):
            raise UnsupportedAdapter(
                f"Adapter {holder.name} {what}, which the gates of {spec} cannot weigh; use "
                "--router=constant, or leave that adapter out."
            )
    if options.learns:
        learned, notes = learn_for(inputs, prepared, session)
        return ConstantGates(learned.factors), learned, None, notes
    if options.weights is not None:
        return ConstantGates(options.given_weights), None, None, []
    if not router.needs_prompts:
        return router, None, None, []
    if inputs.base is None:
        raise UsageError(
            f"Router {spec} learns from prompts of each adapter, which the base reads: add "
            "--base=DIR or --base=auto."
        )
    dtype = again.record.dtype if again and again.record else "auto"
    scorer, notes = open_scorer(inputs.base, dtype, session)
    with session.stage("fit"):
        if again is not None:
            fitted = fitted_to(router, scorer, prepared.adapters, again.prompts)
            return fitted, None, again, [*notes, scorer.note()]
        plan = Plan((spec,), tuple(inputs.tasks), learning={spec: router})
        prompts = dict[str, list[str]]()
        routers, more = fit_routers(inputs.adapters, prepared, options, scorer, plan, prompts)
        taught = taught_by(prompts, inputs.tasks, session, scorer.chat_template)
    return routers[spec], None, taught, [*notes, *more, scorer.note()]


def fit_routers(
    adapters: Sequence[Adapter],
    prepared: PreparedAdapters,
    options: Options,
    scorer: ModelScorer,
    plan: Plan,
    taught: dict[str, list[str]] | None = None,
) -> tuple[dict[str, Router], list[str]]:
    """Fits every router of a plan that learns from prompts: fitted routers by spec, and notes.

    taught: gets the prompts of each adapter.

    Of each learner the first router is fitted, and the others get its state. A router that the user
    did not name is left out, with a note, where it cannot be fitted to given prompts or to items
    set apart. Raises UsageError for a prompt file of an unknown adapter, and for an adapter without
    a prompt.
    """
    _check_names("--router-prompts", [name for name, _ in options.router_prompts], adapters)
    learning, added, parts = plan.learning, plan.added, plan.parts
    if not learning:
        unused = ["--router-prompts: no router asked for learns from prompts."]
        return {}, unused if options.router_prompts else []
    named = not learning.keys() <= {*added}
    try:
        each = parts is not None and len(plan.tasks) >= len(adapters)  # a task of its own
        own = questions_of_each(adapters, scorer, parts.apart) if parts and each else {}
        prompts, origin = gather_prompts(adapters, options, scorer, plan.tasks, own, write=named)
        if taught is not None:
            taught |= prompts
        states = dict[type[Router], dict[str, Tensor]]()
        for router in learning.values():
            if router.learner not in states:
                first = fitted_to(router, scorer, prepared.adapters, prompts)
                states[router.learner] = first.state()
        fitted = {spec: one.with_state(states[one.learner]) for spec, one in learning.items()}
        question = next(iter(prompts.values()))[0]
        for spec, router in fitted.items() if not named else ():  # each begins an answer
            with scorer.with_composition(Composition(spec, tuple(prepared.adapters), router)):
                scorer.generate([question], max_new_tokens=2)
    except (UsageError, UnsupportedAdapter) as error:
        if named:
            raise
        return {}, [f"{listing(map(called, learning))} is left out: {error}"]
    notes = [f"{listing(map(called, learning))} learned from {origin}"]
    if parts and own:
        apart, left = parts.items
        notes.append(f"No system is scored on {apart} items that were set apart; {left} are left.")
    return fitted, [*(WHY_PER_PROMPT for spec in added if spec in fitted), *notes]


def questions_of_each(
    adapters: Sequence[Adapter], scorer: ModelScorer, tasks: Sequence[Task]
) -> dict[str, dict[str, list[str]]]:
    """Adapter -> task -> its questions, for the tasks of which it knows the answers best.

    The best is the adapter under which the gold answers are likeliest, of equal ones the first.
    """
    questions: dict[str, dict[str, list[str]]] = {}
    for task in tasks:
        losses = [loss_of_answers(scorer, adapter, task) for adapter in adapters]
        best = adapters[losses.index(min(losses))].name
        questions.setdefault(best, {})[task.name] = [item.prompt for item in task.items]
    return questions


def loss_of_answers(scorer: ModelScorer, adapter: Adapter, task: Task) -> float:
    """Nats a token of the likeliest gold answer, summed over the items, under one adapter."""
    pairs = [(item.prompt, answer) for item in task.items for answer in item.answers]
    with scorer.with_composition(single(adapter)):
        likelihoods = dict(zip(pairs, scorer.loglikelihood(pairs), strict=True))
    return -sum(
        max(likelihoods[item.prompt, answer].per_token for answer in item.answers)
        for item in task.items
    )


def gather_prompts(
    adapters: Sequence[Adapter],
    options: Options,
    scorer: ModelScorer,
    tasks: Sequence[Task],
    own: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    write: bool = True,
) -> tuple[dict[str, list[str]], str]:
    """Prompts of each adapter, and a phrase that says where they come from.

    tasks: those on which systems are scored; no line that holds the prompt of an item is taken.
    own: adapter -> task -> questions set apart, for adapters without a file. write: whether an
    adapter without any writes its prompts itself.
    """
    asked = {_plain(question.prompt) for question in questions(tasks)}
    long = [prompt for prompt in asked if len(prompt) > 8]
    prompts, sources, dropped = dict[str, list[str]](), list[str](), 0
    for adapter in adapters:
        name = adapter.name
        lines, source = _lines_for(adapter, options, scorer, own or {}, write)
        plain = {line: _plain(line) for line in lines}
        prompts[name] = [
            line
            for line in lines
            if plain[line] not in asked and not any(prompt in plain[line] for prompt in long)
        ]
        if not prompts[name]:
            raise UsageError(
                f"Every prompt of adapter {name} is an item of the task, from which a router must "
                f"not learn; give others by --router-prompts={name}=FILE."
            )
        dropped += len(lines) - len(prompts[name])
        sources.append(f"{len(prompts[name])} prompts for {name} ({source})")
    origin = listing(sources)
    if dropped:
        origin += f"; {dropped} that are items of the tasks were left out"
    if any(WRITTEN in source for source in sources):
        origin += (
            ". Prompts in the form in which the adapters are asked, by --router-prompts NAME=FILE, "
            "tell a router more than what they write themselves"
        )
    return prompts, f"{origin}."


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _lines_for(
    adapter: Adapter,
    options: Options,
    scorer: ModelScorer,
    own: Mapping[str, Mapping[str, Sequence[str]]],
    write: bool,
) -> tuple[list[str], str]:
    """The prompts of one adapter, and where they come from."""
    name, files = adapter.name, dict(options.router_prompts)
    if name in files:
        return read_prompts(files[name]), f"of {files[name].name}"
    if name in own:
        lines = [prompt for questions in own[name].values() for prompt in questions]
        return lines, f"questions of {listing(own[name])}"
    if not write:
        raise UsageError(
            f"Adapter {name} is the best at no task, so there are no questions that show when it "
            f"is meant; give some by --router-prompts={name}=FILE."
        )
    try:
        probe = generated_prompts(scorer, [adapter], {}, seed=options.seed, wanted=PROMPTS_WRITTEN)
    except TaskError:
        raise UsageError(
            f"Adapter {name} writes no prompt of itself; give some by --router-prompts={name}=FILE."
        ) from None
    return list(probe.answers), WRITTEN


def fitted_to(
    router: Router,
    scorer: ModelScorer,
    adapters: Sequence[Adapter],
    prompts: Mapping[str, Sequence[str]],
) -> Router:
    """The router with what it learns from prompts of each adapter, read by the scorer's base."""
    read = functools.partial(read_texts, scorer, whole=True)
    return router.fitted(scorer.model, read, adapters, prompts)


def fitted_in(
    router: Router,
    model: Any,
    tokenizer: Any,
    adapters: Sequence[Adapter],
    prompts: Mapping[str, Sequence[str]],
) -> Router:
    """The router, fitted in a loaded model. Raises UsageError, saying what is missing."""
    _check_names("prompts", prompts, adapters)
    if not router.needs_prompts:
        raise UsageError(f"Router {router.name} learns nothing from prompts; leave them out.")
    if not prompts or tokenizer is None:
        raise UsageError(
            f"Router {router.name} learns from prompts of each adapter: give prompts="
            f"{{{', '.join(f'{a.name!r}: [...]' for a in adapters)}}} and the model's tokenizer."
        )
    texts = {
        name: [lines] if isinstance(lines, str) else list(lines) for name, lines in prompts.items()
    }
    return fitted_to(router, ModelScorer(model, tokenizer), adapters, texts)


def _check_names(where: str, given: Iterable[str], adapters: Sequence[Adapter]) -> None:
    """Raises UsageError for prompts of an adapter that does not exist."""
    names = [adapter.name for adapter in adapters]
    for name in given:
        if name not in names:
            raise UsageError(
                f"{where} names {name!r}, which is none of the adapters: there are "
                f"{listing(names)}."
            )


def check_learnable(adapters: Sequence[Adapter], options: Options) -> None:
    """Raises UnsupportedAdapter for adapters whose gates a loss cannot be differentiated by, or
    which gates of single layers cannot scale."""
    for adapter in adapters:
        if stack := next(iter(adapter.stacks), None):
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} changes the parameter of {stack} itself, by whose gate "
                "a loss cannot be differentiated; give --weights as numbers."
            )
    for adapter in adapters if options.learns_layers else ():
        check_scalable(adapter)


def learn_for(
    inputs: Inputs, prepared: PreparedAdapters, session: Session
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
    options, experts = session.options, prepared.adapters
    check_learnable(experts, options)
    parts = split_for_weights(inputs.tasks, options)
    scorer, notes = open_scorer(inputs.base, "auto", session)
    of_losses = [judged_by(task, LOSS) for task in parts.apart]
    scorer, why, _ = with_better_template(scorer, session, experts, of_losses)
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
        shrinking = LEARNING_SHRINK * gates.abs().mean()
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
        clusters=parts.groups,
        left=parts.items[1],
        layers=rounded if options.learns_layers else {},
    )


@torch.no_grad()
def _round(gates: Tensor) -> None:
    """Brings gates within the bounds and to four decimals; never all to zero, which is no merge."""
    gates.copy_(gates.clamp(-LEARNING_BOUND, LEARNING_BOUND).round(decimals=4))
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
