"""What is fitted before systems are asked, on items and prompts on which no system is scored.

*Routers* are fitted to prompts of each adapter. The user gives them in files; or they are the
questions of items that were set apart, each task's for the adapter that knows its answers best; or
the adapter generates them. A card keeps no prompt: it names each file with its sha256 and the
places of the prompts in it, so that `verify` can read them again.

*Weights* (`--weights learn`) are fitted to items that were set apart (`routing._learned`). Every
method that takes weights uses them, although they minimise the loss of the weighted sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.cache import file_hash
from loraprobe.composition import Composition, Router
from loraprobe.composition.router import unroutable
from loraprobe.defaults import LOSS, PROMPTS_WRITTEN
from loraprobe.errors import LoraprobeError, TaskError, UnsupportedAdapter, UsageError
from loraprobe.evaluation.questions import questions
from loraprobe.formatting import listing
from loraprobe.options import Options, table
from loraprobe.pipeline.evaluator import open_scorer, with_better_template
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import WHY_ADDED, Fitted, Plan
from loraprobe.pipeline.task_files import open_reference, read_prompts
from loraprobe.pipeline.transforms import PreparedAdapters, check_scalable
from loraprobe.probes import generated_prompts
from loraprobe.records import LearnedWeights, display_name
from loraprobe.results import JsonLines
from loraprobe.routing import ROUTERS
from loraprobe.routing._learned import fit_weights
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer
from loraprobe.session import Session
from loraprobe.tasks import Task, judged_by
from loraprobe.tasks.splits import TaskSplit, split_for_weights

WRITTEN = "it wrote itself"  # the source of prompts that an adapter generated


def fit(
    inputs: Inputs,
    prepared: PreparedAdapters,
    plan: Plan,
    scorer: ModelScorer,
    session: Session,
    path: Path | None = None,
) -> Fitted:
    """Fits the routers and the weights of a plan.

    path: a file for the weights, which is read with --resume. Raises OutputError where it is
    damaged, and what `fit_routers` raises.
    """
    with session.stage("fit"):
        fitted = fit_routers(inputs.adapters, prepared, session.options, scorer, plan)
        record = record_of(fitted.prompts, inputs.tasks, session, scorer.chat_template)
    weights = None
    if plan.parts is not None and session.options.learns:
        weights = learned_weights(prepared.adapters, plan.parts, scorer, session, path)
    return replace(fitted, record=record, weights=weights)


def learned_weights(
    experts: Sequence[Adapter],
    parts: TaskSplit,
    scorer: ModelScorer,
    session: Session,
    path: Path | None = None,
) -> LearnedWeights:
    """The weights that are fitted to the items that were set apart, or those of the file."""
    plain = TypeAdapter(LearnedWeights)
    with (
        session.stage("learn"),
        contextlib.closing(JsonLines(path, session.resume, {}, plain.validate_python)) as kept,
    ):
        if not kept.rows:
            kept.rows.append(fit_weights(scorer, experts, parts, session.options.learns_layers))
            kept.append(map(plain.dump_python, kept.rows))
        return kept.rows[0]


def fit_for_merge(inputs: Inputs, prepared: PreparedAdapters, session: Session) -> Fitted:
    """The weights of a merge or a route, fitted as an evaluation would.

    The base is loaded in the dtype of its device, since the --dtype of a merge is that of its file.
    Raises UsageError without a base or a task.
    """
    if inputs.base is None or not inputs.tasks:
        raise UsageError(
            "--weights=learn asks the base model on a task:",
            "add --base=DIR (or auto) and --task=FILE.",
        )
    options, experts = session.options, prepared.adapters
    check_learnable(experts, options)
    parts = split_for_weights(inputs.tasks, options)
    scorer, notes = open_scorer(inputs.base, "auto", session)
    of_losses = [judged_by(task, LOSS) for task in parts.apart]
    scorer, why, _ = with_better_template(scorer, session, experts, of_losses)
    weights = learned_weights(experts, parts, scorer, session)
    notes += [*why, learned_note(weights, "an evaluation"), scorer.note()]
    return Fitted(weights, notes=tuple(notes))


def fit_for_route(
    spec: str,
    inputs: Inputs,
    prepared: PreparedAdapters,
    session: Session,
    again: Fitted | None = None,
) -> tuple[Router, Fitted]:
    """The router of a composition that is saved, with weights given or fitted, or fitted itself.

    again: the prompts to which it was fitted before. Raises UsageError where options do not go with
    the router, UnsupportedAdapter for modules that its gates cannot weigh.
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
    if not router.needs_prompts:
        fitted = fit_for_merge(inputs, prepared, session) if options.learns else Fitted()
        weights = fitted.factors(options)
        return router if weights is None else ConstantGates(weights), fitted
    if inputs.base is None:
        raise UsageError(
            f"Router {spec} learns from prompts of each adapter, which the base reads:",
            "add --base=DIR or --base=auto.",
        )
    dtype = again.record["dtype"] if again and again.record else "auto"
    scorer, notes = open_scorer(inputs.base, dtype, session)
    if again is None:
        plan = Plan((spec,), tuple(inputs.tasks), learning={spec: router})
        fitted = fit(inputs, prepared, plan, scorer, session)
        router = fitted.routers[spec]
    else:
        with session.stage("fit"):
            fitted, router = again, router.fit(scorer, prepared.adapters, again.prompts)
    return router, replace(fitted, notes=(*notes, *fitted.notes, scorer.note()))


def fit_routers(
    adapters: Sequence[Adapter],
    prepared: PreparedAdapters,
    options: Options,
    scorer: ModelScorer,
    plan: Plan,
) -> Fitted:
    """Fits every router of a plan that learns from prompts.

    Of each learner the first router is fitted, and the others get its state. A router that the user
    did not name is left out, with a note, where it cannot be fitted to given prompts or to items
    set apart. Raises UsageError for a prompt file of an unknown adapter, and for an adapter without
    a prompt.
    """
    _check_names("--router-prompts", [name for name, _ in options.router_prompts], adapters)
    learning, added, parts = plan.learning, plan.added, plan.parts
    if not learning:
        unused = ("--router-prompts: no router asked for learns from prompts.",)
        return Fitted(notes=unused if options.router_prompts else ())
    named = not learning.keys() <= {*added}
    try:
        each = parts is not None and len(plan.tasks) >= len(adapters)  # a task of its own
        own = questions_of_each(adapters, scorer, parts.apart) if parts and each else {}
        prompts, origin = gather_prompts(adapters, options, scorer, plan.tasks, own, write=named)
    except (UsageError, UnsupportedAdapter) as error:
        if named:
            raise
        return Fitted(notes=(f"{listing(map(display_name, learning))} is left out: {error}",))
    states, routers = dict[type[Router], dict[str, Tensor]](), dict[str, Router]()
    question, notes = next(iter(prompts.values()))[0], list[str]()
    for spec, router in learning.items():
        try:
            if router.learner not in states:
                states[router.learner] = router.fit(scorer, prepared.adapters, prompts).state()
            routers[spec] = router.with_state(states[router.learner])
            routed = Composition(spec, tuple(prepared.adapters), routers[spec])
            if not named:  # it begins an answer
                with scorer.with_composition(routed.answering(question)):
                    scorer.generate([question], max_new_tokens=2)
        except (UsageError, UnsupportedAdapter) as error:
            if named:
                raise
            routers.pop(spec, None)
            notes.append(f"{display_name(spec)} is left out: {error}")
    if not routers:
        return Fitted(notes=tuple(notes))
    notes += [WHY_ADDED[spec] for spec in added if spec in routers]
    notes.append(f"{listing(map(display_name, routers))} learned from {origin}")
    if parts and own:
        apart, left = parts.items
        notes.append(f"No system is scored on {apart} items that were set apart; {left} are left.")
    return Fitted(routers=routers, prompts=prompts, notes=tuple(notes))


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
            f"Router {router.name} learns from prompts of each adapter:",
            f"give prompts={{{', '.join(f'{a.name!r}: [...]' for a in adapters)}}} and the model's "
            "tokenizer.",
        )
    texts = {
        name: [lines] if isinstance(lines, str) else list(lines) for name, lines in prompts.items()
    }
    return router.fit(ModelScorer(model, tokenizer), adapters, texts)


def _check_names(where: str, given: Iterable[str], adapters: Sequence[Adapter]) -> None:
    """Raises UsageError for prompts of an adapter that does not exist."""
    names = [adapter.name for adapter in adapters]
    for name in given:
        if name not in names:
            raise UsageError(
                f"{where} names {name!r}, which is none of the adapters:",
                f"there are {listing(names)}.",
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


# ---- where prompts stand -------------------------------------------------------------------------


def record_of(
    prompts: Mapping[str, Sequence[str]], tasks: Sequence[Task], session: Session, chat: bool
) -> Mapping[str, Any] | None:
    """How and where prompts were read, as plain data of a card.

    `chat`: whether they were user turns; `dtype`: that of the base; `files`: of each file its name,
    `sha256`, the `fields` by which a task is read (None for a file with a prompt a line) and, under
    `places`, where each adapter's prompts stand in it, from 0.

    None without prompts, where an adapter wrote some itself, for a task that is no local file, and
    for a quantised base. chat: whether they were read as user turns.
    """
    options, rows = session.options, list[dict[str, Any]]()
    if not prompts or options.quantize != "none":
        return None
    own = {name: Path(file) for name, file in options.router_prompts}
    left = {name: list(lines) for name, lines in prompts.items()}
    of_tasks = [(Path(t.path), t.layout) for t in tasks if t.path and t.commit is None]
    for file, fields in dict.fromkeys([*((file, None) for file in own.values()), *of_tasks]):
        with contextlib.suppress(LoraprobeError):
            at = {line: place for place, line in enumerate(prompt_lines(file, fields))}
            places = {
                name: [at[line] for line in lines if line in at]
                for name, lines in left.items()
                if own.get(name) == (file if fields is None else None)
            }
            left |= {name: [x for x in left[name] if x not in at] for name in places}
            if places := {name: some for name, some in places.items() if some}:
                row = {"file": file.name, "sha256": file_hash(file), "fields": fields}
                rows.append({**row, "places": places})
    if any(left.values()):
        return None
    return {"chat": chat, "dtype": session.dtype, "files": rows}


def prompt_lines(file: Path, fields: str | None) -> list[str]:
    """The prompts of a file, as they are read for a router. Raises LoraprobeError."""
    if fields is None:
        return read_prompts(file)
    if fields and "fields" not in table():
        raise UsageError(f"{file} was read with --fields, which is not installed; install it.")
    options = Options.of({"fields": fields} if fields else {})
    return [item.prompt for task in open_reference(file, options) for item in task.items]
