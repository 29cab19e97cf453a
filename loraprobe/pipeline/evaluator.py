"""The evaluator of a run, and what it opens: the base, the form of prompts, answers that are kept.

An `Evaluator` asks systems on one base and keeps their answers. `evaluate` decides whom it asks
what.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from loraprobe import evaluation, hub, probes
from loraprobe._version import __version__
from loraprobe.adapters import Adapter, Source, public_value
from loraprobe.base import Base, load_base, pick_device, pick_dtype
from loraprobe.cache import cache_directory
from loraprobe.defaults import LOSS, PROBED_ITEMS
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import ResponseCache, Round, System, choose_template, stored_as
from loraprobe.evaluation.asking import Answers, Open, ask, batches
from loraprobe.evaluation.questions import BASE, Question
from loraprobe.extension import Workload, engine_of
from loraprobe.front_matter import prompt_form
from loraprobe.merging import METHODS
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import Plan
from loraprobe.pipeline.task_files import read_prompts
from loraprobe.records import Coverage, ItemResult
from loraprobe.results import (
    NAME,
    JsonLines,
    as_plain,
    changes,
    digest,
    names_in,
    read_fingerprint,
)
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer, Scorer
from loraprobe.session import LocalExecutor, Session
from loraprobe.tasks import Item, Task, given_metric

AnyScorer = TypeVar("AnyScorer", bound=Scorer)
log = logging.getLogger("loraprobe.tasks")

# Beside the results: the weights that were learned, next tokens of single adapters, and what the
# items ask.
LEARNED, NEXT_TOKENS, ASKED = "learned.jsonl", "next-tokens", "asked.jsonl"


@dataclass(frozen=True)
class Evaluator(AbstractContextManager["Evaluator"]):
    """Scores systems on one base in memory; each batch of results is cached at once.

    `tasks` are asked: those of `plan`, or a sample of their items. `local` scores by transformers
    where an engine is the scorer. As a context it closes the response cache.
    """

    inputs: Inputs
    session: Session
    scorer: Scorer
    local: ModelScorer
    responses: ResponseCache
    tasks: Sequence[Task]
    plan: Plan = field(default_factory=Plan)
    notes: Sequence[str] = ()
    template: tuple[Coverage, ...] = ()

    def __exit__(self, *_: object) -> None:
        self.responses.close()
        self.scorer.close()

    def rounds(self) -> tuple[Round, ...]:
        """The rounds in which the tasks and the guards are asked."""
        options, guards = self.session.options, self.inputs.guards
        return evaluation.rounds(
            self.tasks, options.seed, all_items=options.all_items, guards=guards
        )

    def run(
        self, systems: Sequence[System], parts: Collection[str] | None = None
    ) -> list[ItemResult]:
        """Results of systems on all tasks, or on `parts` of their items.

        Results in the response cache are not computed again.
        """
        options = self.session.options
        here = isinstance(self.session.executor, LocalExecutor)
        with self.session.stage("evaluate"):
            return evaluation.run_systems(
                self.scorer,
                systems,
                self.tasks,
                self.responses,
                max_new_tokens=options.max_new_tokens,
                progress=self.session.progress,
                parts=parts,
                asking=None if here else self._by_executor,
            )

    def _by_executor(self, to_ask: Open) -> Answers:
        """The answers of the session's executor to batches, as they come. Raises LoraprobeError."""
        sent = [(replace(system, merged=None), open_) for system, open_ in to_ask]
        parts = [(system, batch) for system, open_ in sent for batch in batches(open_)]
        for at, rows in self.session.executor.map(answer_questions, self, parts):
            if isinstance(rows, LoraprobeError):
                raise rows
            yield parts[at][0], rows

    def probe_tasks(
        self, results: Sequence[ItemResult], every: bool = False
    ) -> tuple[Coverage, ...]:
        """The accuracies with and without the template, and the coverage probes on the tasks.

        every: all probes, as --explain asks for; else those that a verdict reads.
        """
        with self.session.stage("cover"):
            found = probes.cover(
                self.local,
                self.inputs.adapters,
                self.tasks,
                results=results,
                probes=None if every or self.session.explain else probes.READ_BY_VERDICT,
                items=PROBED_ITEMS,
                seed=self.session.options.seed,
                progress=self.session.progress,
            )
        return self.template + found


def answer_questions(
    evaluator: Evaluator, system: System, asked: Sequence[Question]
) -> list[ItemResult]:
    """The answers of a system to a batch of questions, in any process."""
    with evaluator.scorer.with_composition(system.composition) as scorer:
        return ask(scorer, asked, system.key, evaluator.session.options.max_new_tokens)


def open_evaluator(
    inputs: Inputs,
    plan: Plan,
    session: Session,
    others: Sequence[Adapter] = (),
    together: int | None = None,
) -> Evaluator:
    """Loads the base, chooses the chat template and opens the results of earlier runs.

    others: adapters on which the results depend too, beside those that choose the template.
    together: how many are composed at most; None for all.
    """
    assert inputs.base is not None
    adapters = inputs.adapters
    told = task_notes(plan.tasks, session.options.metric)
    local, notes = open_scorer(inputs.base, session.options.dtype, session)
    scorer: Scorer = local
    if (engine := engine_of(session.options)) is not None:
        asked = plan.tasks, inputs.guards, others, together
        merges = any(spec in METHODS for spec in plan.specs)
        scorer = engine.open(Workload(inputs.base, adapters, *asked, merges), session, local)
        notes.append(
            f"Questions were answered by {session.engine}; coverage and gates, where they are "
            "measured, by transformers here."
        )
    with contextlib.ExitStack() as stack:
        stack.callback(scorer.close)
        responses, kept = open_responses([*adapters, *others], inputs.base, inputs.tasks, session)
        stack.callback(responses.close)
        scorer, why, template = with_better_template(
            scorer, session, adapters, plan.tasks, responses, inputs.base
        )
        # Answers in the chosen form are results of the adapters.
        names = {stored_as(one.name, scorer.chat_template): one.name for one in adapters}
        known = [row for row in responses if row.system in names]
        responses.add_missing([replace(row, system=names[row.system]) for row in known])
        elsewhere = _with_answers_elsewhere(responses, inputs.tasks, plan, session, scorer)
        stack.pop_all()
    notes += [*why, *told, kept, elsewhere]
    local = local.with_template(scorer.chat_template)
    return Evaluator(inputs, session, scorer, local, responses, plan.tasks, plan, notes, template)


def task_notes(tasks: Sequence[Task], metric: str | None) -> list[str]:
    """Notes on tasks that a reader of the figures needs; those on chosen metrics are logged too."""
    notes = []
    if metric == LOSS:
        notes.append("Differences of losses are signed so that a lower loss is a gain.")
    for task in tasks:
        why = task.summary().metric_why
        if why and given_metric(task.name, metric) is None:
            notes.append(
                f"Task {task.name} is judged by {task.metric}: {why}. --metric overrides it."
            )
            log.warning(notes[-1])
        if task.examiner is not None:
            notes.append(task.examiner.told(task.name))
        if len(task.items) > 1 and len({item.cluster for item in task.items}) == 1:
            notes.append(
                f"All {len(task.items)} items of task {task.name} share one group, so they count "
                "as one observation and decide nothing: add items of other groups."
            )
    return notes


def open_scorer(base: Base, dtype: str, session: Session) -> tuple[ModelScorer, list[str]]:
    """A scorer of the base, and notes. The session records device and dtype."""
    options = session.options
    with session.stage("load"):
        device = pick_device(options.device)
        kind = pick_dtype(dtype, device)
        session.device, session.dtype = str(device), str(kind).removeprefix("torch.")
        loaded = load_base(
            base,
            device=device,
            dtype=kind,
            trust_remote_code=options.trust_remote_code,
            quantize=options.quantize,
            device_map=options.device_map,
        )
    scorer = ModelScorer(
        loaded.model,
        loaded.tokenizer,
        batch_size=options.batch_size,
        chat_template=options.chat_template == "on",
        progress=session.progress,
    )
    notes = []
    if options.quantize != "none":
        bits = options.quantize.removesuffix("bit")
        notes.append(
            f"The base was quantised to {bits} bits on loading (bitsandbytes); scores hold for it "
            "as it ran."
        )
    if options.trust_remote_code:
        notes.append("Code from the base's repository was allowed to run.")
    return scorer, notes


def with_better_template(
    scorer: AnyScorer,
    session: Session,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    kept: ResponseCache | None = None,
    base: Base | None = None,
) -> tuple[AnyScorer, list[str], tuple[Coverage, ...]]:
    """The scorer in the better form of prompts; notes; the accuracies with and without template.

    With `--chat-template auto` the single adapters answer a sample of the tasks with and without
    the template; another value is kept as it is. kept: the response cache of their answers. base:
    its card may tell the form where the answers do not.
    """
    options = session.options
    if options.chat_template != "auto" or not tasks:
        return scorer, [], ()
    with session.stage("template"):
        chosen, why, figure = choose_template(
            scorer,
            [single(adapter) for adapter in adapters],
            tasks,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            kept=kept,
            known=lambda: known_form(adapters, base),
            progress=session.progress,
        )
    return scorer.with_template(chosen), [why], () if figure is None else (figure,)


def known_form(adapters: Sequence[Adapter], base: Base | None) -> tuple[bool, str]:
    """Whether prompts are known to be user turns of a chat template, and from what.

    The first that shows a form counts: the adapters' cards, chat templates and
    `tokenizer_config.json` beside them, the base's card. What cannot be read shows none.
    """
    files = {"README.md": "the card of", "chat_template.jinja": "the chat template beside"}
    files["tokenizer_config.json"] = "the tokenizer beside"
    places = [(f"{t} {a.name}", a.source, f) for f, t in files.items() for a in adapters]
    if base is not None:
        source = Source(base.reference, base.path, base.commit)
        places.append(("the card of the base", source, "README.md"))
    for what, source, file in places:
        with contextlib.suppress(LoraprobeError):
            form = prompt_form(hub.beside(source, file))
            if form is not None:
                return form, f"{what} shows {'user turns' if form else 'plain prompts'}"
    return False, "no card and no tokenizer of theirs shows a form"


def open_responses(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], session: Session
) -> tuple[ResponseCache, str]:
    """The response cache of this run, and a note on the results that --resume found, or why none.

    With `--chat-template auto` it also holds the answers that choose the form of prompts, which
    follows from them.
    """
    options = session.options
    decides = identity(adapters, base, tasks, options) | {
        "device": session.device,
        **({"engine": session.engine} if session.engine != Session.engine else {}),
        "dtype": session.dtype,
        "template": options.chat_template,
    }
    runs = cache_directory() / "runs"
    place = session.state or runs / digest(decides)
    responses = ResponseCache(place, session.resume, fingerprint=decides)
    if not session.resume:
        return responses, ""
    if len(responses):
        return responses, f"{len(responses)} results of an earlier run of this call were kept."
    return responses, _what_changed(runs, decides)


def identity(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], options: Options
) -> dict[str, Any]:
    """Everything on which the result of an item depends; results of an equal identity are reused.

    Paths in configs are left out but for their last part, because the files are known by hash.
    Batch size and threads are left out. They change only the order of sums, which matters only
    between two equally likely tokens (docs/determinism.md), and a run that ran out of memory
    continues with a smaller batch.
    """
    packages = ["torch", "transformers", "tokenizers"]
    packages += ["bitsandbytes"] if options.quantize != "none" else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "adapters": {
            a.name: {"config": public_value(dict(a.config)), "weights": a.sha256} for a in adapters
        },
        "order": [a.name for a in adapters],  # which weights go by
        "versions": {"loraprobe": __version__, **versions},
        "base": public_value(dict(base.identity)),
        "tasks": {task.name: digest(task.items) for task in tasks},
        "router_prompts": {
            name: digest(read_prompts(Path(file))) for name, file in options.router_prompts
        },
        "options": options.fingerprint(),
    }


def _with_answers_elsewhere(
    responses: ResponseCache, tasks: Sequence[Task], plan: Plan, session: Session, scorer: Scorer
) -> str:
    """Adds the answers that runs on other items kept to the same questions; a note on them, or "".

    The runs differ in their tasks alone and asked in the same form. Systems that learn from items
    are left out: of other items they learn something else.
    """
    if responses.path is None:
        return ""
    places = {_asked(i): (task.name, i.id, i.cluster) for task in tasks for i in task.items}
    items = {task.name: {item.id: _asked(item) for item in task.items} for task in tasks}
    asked = {"form": scorer.chat_template, "items": items}
    JsonLines(responses.path.parent / ASKED, False, asked, dict).close()
    rows = list[ItemResult]()
    for file in sorted((cache_directory() / "runs").glob(f"*/{NAME}")) if session.resume else ():
        with contextlib.suppress(LoraprobeError):
            rows += _answers_in(file, responses, places, scorer.chat_template)
    if session.options.learns:
        rows = [row for row in rows if row.system in {BASE, *responses.fingerprint["order"]}]
    learned = [f"{start}{spec}" for spec in plan.learning for start in ("", "random-partner:")]
    before = len(responses)
    responses.add_missing(row for row in rows if not row.system.startswith((*learned,)))
    return f"{len(responses)} results of earlier runs were kept." if len(responses) > before else ""


def _answers_in(
    file: Path, responses: ResponseCache, places: Mapping[str, tuple[str, str, str]], form: bool
) -> list[ItemResult]:
    """The answers of another run to the same questions, none where it asked other systems.

    places: what an item asks -> its task, its id and its cluster.
    """
    known = read_fingerprint(file) or {}
    asked = read_fingerprint(file.parent / ASKED) or {}
    same = {**known, "tasks": None} == {**responses.fingerprint, "tasks": None}
    if file == responses.path or not same or asked.get("form") != form:
        return []
    rows = []
    with contextlib.closing(ResponseCache(file, True, fingerprint=known)) as other:
        for row in other:
            place = places.get(asked["items"].get(row.task, {}).get(row.item, ""))
            if place is not None:
                rows.append(replace(row, task=place[0], item=place[1], group=place[2]))
    return rows


def _asked(item: Item) -> str:
    """What an item asks, by content, whatever its name and its place are."""
    return digest(replace(item, id="", group=None))


def _what_changed(runs: Path, decides: Mapping[str, Any]) -> str:
    """The differences of this run to the most similar stored one of the same adapters and tasks.

    "" where there is no such run.
    """
    new = as_plain(decides)
    fingerprints: Iterable[dict[str, Any] | None] = map(
        read_fingerprint, sorted(runs.glob(f"*/{NAME}"))
    )
    alike = [
        changes(old, new)
        for old in fingerprints
        if old and all(names_in(old, key) == names_in(new, key) for key in ("adapters", "tasks"))
    ]
    nearest = min((phrases for phrases in alike if phrases), key=len, default=None)
    if nearest is None:
        return ""
    more = f" and {len(nearest) - 4} more" if len(nearest) > 4 else ""
    return f"Kept results were not used, for this run differs: {'; '.join(nearest[:4])}{more}."
