"""All probes on all tasks: what is missing is measured, what is asked is asked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.coverage._contract import BASE, CoverageProbe, Part, Request, Study
from loraprobe.coverage._models import WORKED_TOKENS, Models
from loraprobe.coverage._names import MadeUpNames, words_of
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Task, answered, read_answer

if TYPE_CHECKING:
    from loraprobe.adapter import Adapter
    from loraprobe.composition import Router

Progress = Callable[[str, int, int], None]
Single = Callable[[Any], Any]  # an adapter -> its composition


def cover_tasks(
    probes: Sequence[CoverageProbe],
    scorer: Any,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    single: Single,
    results: Sequence[ItemResult] | None,
    router: Router | None,
    max_new_tokens: int | None,
    seed: int,
    progress: Progress | None,
) -> tuple[Coverage, ...]:
    """See `loraprobe.coverage.cover`."""
    known = list(results or ())
    worked = any(type(probe).measure is not CoverageProbe.measure for probe in probes)
    known += _missing(scorer, adapters, tasks, single, known, worked)
    studies = [_study(scorer, adapters, task, known, seed) for task in tasks]
    requests = [r for probe in probes for study in studies for r in probe.requests(study)]
    likely = ask(scorer, adapters, requests, single, progress)

    def ask_more(more: Sequence[Request]) -> dict[Request, Any]:
        return ask(scorer, adapters, more, single)

    models = Models(scorer, adapters, ask_more, router, max_new_tokens)
    return tuple(
        row
        for study in studies
        for probe in probes
        for row in (*probe.rows(study, likely), *probe.measure(study, models))
    )


def ask(
    scorer: Any,
    adapters: Sequence[Adapter],
    requests: Sequence[Request],
    single: Single,
    progress: Progress | None = None,
) -> dict[Request, Any]:
    """A Likelihood for each distinct request: one call of the scorer for each model and form."""
    by_name = {adapter.name: adapter for adapter in adapters}
    groups: dict[tuple[str, bool], dict[Request, None]] = {}
    for request in requests:
        raw = request.raw and scorer.chat_template
        groups.setdefault((request.of, raw), {})[request] = None
    likely: dict[Request, Any] = {}
    total = sum(len(group) for group in groups.values())
    for (of, raw), group in groups.items():
        asked = list(group)
        plain = scorer.with_template(False) if raw else scorer
        composition = None if of == BASE else single(by_name[of])
        with plain.with_composition(composition):
            found = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, found, strict=True))
        if progress is not None:
            progress("cover", len(likely), total)
    return likely


def _study(
    scorer: Any, adapters: Sequence[Adapter], task: Task, results: Sequence[ItemResult], seed: int
) -> Study:
    texts = [
        text
        for item in task.items
        for text in (item.prompt, *item.answers, *(hop.prompt for hop in item.hops))
    ]
    names = MadeUpNames(scorer.tokenizer, seed, words_of(texts))
    own = tuple(row for row in results if row.task == task.name)
    return Study(task, tuple(adapter.name for adapter in adapters), own, names, seed)


def _missing(
    scorer: Any,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    single: Single,
    known: Sequence[ItemResult],
    worked: bool,
) -> list[ItemResult]:
    """Right or wrong of base and single adapters on parts that nobody has measured yet.

    worked: whether the form that is asked step by step is wanted too; a task that is measured by
    losses has none.
    """
    losses = {row.task for row in known if row.metric == "answer_loss"}
    measured = {(row.system, row.task, row.part) for row in known}
    compositions: Mapping[str, Any] = {BASE: None} | {a.name: single(a) for a in adapters}
    found: list[ItemResult] = []
    for system, composition in compositions.items():
        for task in tasks:
            study = Study(task, (), (), MadeUpNames(scorer.tokenizer))
            parts = study.all_parts if worked and task.name not in losses else study.parts
            open_ = [p for p in parts if (system, task.name, p.name) not in measured]
            if not open_:
                continue
            with scorer.with_composition(composition):
                for part in open_:
                    found += _measure(scorer, system, task.name, part)
    return found


def _measure(scorer: Any, system: str, task: str, part: Part) -> list[ItemResult]:
    """One part by exact match, or by choices where a question has them."""
    free = [question for question in part.questions if not question.choices]
    closed = [question for question in part.questions if question.choices]
    prompts, rows = [q.prompt for q in free], []
    if part.worked:
        texts = scorer.generate(prompts, max_new_tokens=WORKED_TOKENS) if free else []
    else:
        texts = scorer.generate(prompts, until_newline=True) if free else []
    for q, text in zip(free, texts, strict=True):
        right = float(answered(text, q.answers, cot=part.worked, pattern=q.pattern))
        said = read_answer(text, cot=part.worked, pattern=q.pattern)
        rows.append(
            ItemResult(system, task, part.name, q.item, "exact_match", right, said, q.cluster)
        )
    likely = iter(scorer.loglikelihood([(q.prompt, c) for q in closed for c in q.choices]))
    for q in closed:
        scores = {choice: next(likely).per_character for choice in q.choices}
        taken = max(q.choices, key=scores.__getitem__)
        rows.append(
            ItemResult(
                system,
                task,
                part.name,
                q.item,
                "choice",
                float(taken in q.answers),
                taken,
                q.cluster,
            )
        )
    return rows
