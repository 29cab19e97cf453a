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
from loraprobe.evaluation import Asker, ResponseCache, Round, System, choose_template
from loraprobe.evaluation.asking import Answers, Open, ask, batches
from loraprobe.evaluation.questions import Question
from loraprobe.extension import Workload, engine_of
from loraprobe.front_matter import prompt_form
from loraprobe.merging import METHODS
from loraprobe.options import Options, affecting
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import Plan
from loraprobe.pipeline.task_files import read_prompts
from loraprobe.records import Coverage, ItemResult
from loraprobe.results import (
    NAME,
    as_plain,
    changes,
    digest,
    kept_files,
    names_in,
    read_fingerprint,
)
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer, Scorer
from loraprobe.session import LocalExecutor, Session
from loraprobe.tasks import Task, given_metric

AnyScorer = TypeVar("AnyScorer", bound=Scorer)
log = logging.getLogger("loraprobe.tasks")

# Beside the results: the weights that were learned, and next tokens of single adapters.
LEARNED, NEXT_TOKENS = "learned.jsonl", "next-tokens"
BY_NAME = "adapters", "tasks"  # the parts of a fingerprint that go by name
# Options that stand in the request of each answer, and that of which the session has the value.
TOLD_ELSEWHERE = "max_new_tokens", "metric", "chat_template", "dtype"


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

    @property
    def asker(self) -> Asker:
        """What asks the questions and finds the answers that are kept."""
        here = isinstance(self.session.executor, LocalExecutor)
        return Asker(
            self.scorer,
            self.responses,
            self.session.options.max_new_tokens,
            self.session.progress,
            None if here else self._by_executor,
        )

    def run(
        self, systems: Sequence[System], parts: Collection[str] | None = None
    ) -> list[ItemResult]:
        """Results of systems on all tasks, or on `parts` of their items.

        What is kept is not asked again.
        """
        with self.session.stage("evaluate"):
            return self.asker.run(systems, self.tasks, parts)

    def told(self) -> list[str]:
        """Notes on what was opened, and on the answers of earlier runs that were used."""
        reused = len(self.responses.reused)
        return [*self.notes, f"{reused} results of earlier runs were kept." if reused else ""]

    def _by_executor(self, to_ask: Open) -> Answers:
        """The answers of the session's executor to batches, as they come. Raises LoraprobeError."""
        sent = [(replace(system, artifact=None), open_) for system, open_ in to_ask]
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
        return ask(scorer, asked, system, evaluator.session.options.max_new_tokens)


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
        responses, changed = open_responses(
            [*adapters, *others], inputs.base, inputs.tasks, session
        )
        stack.callback(responses.close)
        scorer, why, template = with_better_template(
            scorer, session, adapters, plan.tasks, responses, inputs.base
        )
        stack.pop_all()
    notes += [*why, *told, changed]
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
    """The answers of this run and, with --resume, of earlier ones, and a note on what changed."""
    fingerprint = as_plain(
        identity(adapters, base, tasks, session.options)
        | {
            "device": session.device,
            **({"engine": session.engine} if session.engine != Session.engine else {}),
            "dtype": session.dtype,
        }
    )
    path = (session.state or cache_directory() / "runs" / digest(fingerprint)) / NAME
    known = {file: read_fingerprint(file) or {} for file in kept_files() if session.resume}
    same = [file for file, one in known.items() if _environment(one) == _environment(fingerprint)]
    others = [file for file in same if file != path]
    responses = ResponseCache(path, session.resume, fingerprint, others)
    return responses, "" if responses.rows else _what_changed(known.values(), fingerprint)


def _environment(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What decides all answers of a run; the request of each (`request_of`) tells the rest."""
    options = {
        name: value
        for name, value in fingerprint.get("options", {}).items()
        if name not in (*affecting("composition"), *TOLD_ELSEWHERE)
    }
    parts = "versions", "base", "device", "engine", "dtype"
    return {part: fingerprint.get(part) for part in parts} | {"options": options}


def identity(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], options: Options
) -> dict[str, Any]:
    """Everything on which the results of a run depend; an equal run goes on in the same file.

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


def _what_changed(runs: Iterable[Mapping[str, Any]], fingerprint: Mapping[str, Any]) -> str:
    """The differences of this run to the most similar stored one of the same adapters and tasks.

    "" where there is no such run.
    """
    alike = [
        changes(run, fingerprint)
        for run in runs
        if run and all(names_in(run, key) == names_in(fingerprint, key) for key in BY_NAME)
    ]
    nearest = min((phrases for phrases in alike if phrases), key=len, default=None)
    if nearest is None:
        return ""
    more = f" and {len(nearest) - 4} more" if len(nearest) > 4 else ""
    return f"What changed since the kept run is asked anew: {'; '.join(nearest[:4])}{more}."
