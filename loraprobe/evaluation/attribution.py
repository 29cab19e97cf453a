"""Why answers are wrong: one cause of each item of a composition, and examples for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from loraprobe.defaults import LOSS
from loraprobe.evaluation.questions import System, questions
from loraprobe.records import (
    BASELINES,
    FORMS,
    MULTI_ADAPTER_KINDS,
    QUESTION,
    Attribution,
    ItemPart,
    ItemResult,
    Reply,
    Sample,
    hop_part,
)
from loraprobe.secrets import map_texts
from loraprobe.tasks import Item, Task

EXAMPLES = 3  # wrong answers that an audit carries
LONGEST = 400  # characters of a text in such an example


def attribute(
    results: Iterable[ItemResult], systems: Sequence[System], tasks: Sequence[Task]
) -> tuple[Attribution, ...]:
    """Counts for every composition (merge, router, chain) on every task with hops.

    *solved*: the answer is right. *step_by_step*: it is right only in the worked form.
    *said_otherwise*: it stands in the reply, but is not right by the metric. *unknown*: neither a
    single adapter nor the base knows some hop. *cut_off*: the reply to a hop that the composition
    misses, or else to the question, ended at the limit of tokens. *interference*: each hop is known
    to one of them, but the composition lost one. *not_composed*: the composition knows all hops,
    but not the answer. A hop is known if its answer stands in the reply, in whatever words.

    Items without hops and losses (which are neither right nor wrong) do not count. A system has no
    row until the base, every single adapter and the system itself were asked all hops.
    """
    return tuple(
        Attribution(system, task, **Counter(cause_of.values()))
        for system, task, cause_of in causes_of_errors(results, systems, tasks)
    )


def causes_of_errors(
    results: Iterable[ItemResult], systems: Sequence[System], tasks: Sequence[Task]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The names of each composition and task of `attribute`, and the cause of each item."""
    results = list(results)
    known_by = [system.name for system in systems if system.kind in BASELINES]
    for task in tasks:
        answers = {
            (r.system, r.part, r.item): r for r in results if r.task == task.name and not r.is_loss
        }
        items = [item for item in task.items if item.hops]
        for system in systems:
            if system.kind not in MULTI_ADAPTER_KINDS or not items or not known_by:
                continue
            needed_systems = (*known_by, system.name)
            needed = {
                (name, part, i.id) for i in items for part in _hops(i) for name in needed_systems
            }
            needed |= {(system.name, QUESTION, item.id) for item in items}
            if needed <= answers.keys():
                of = {item.id: _cause(answers, system.name, known_by, item) for item in items}
                yield system.name, task.name, of


def _hops(item: Item) -> list[ItemPart]:
    return [hop_part(k) for k in range(len(item.hops))]


def _cause(
    answers: Mapping[tuple[str, ItemPart, str], ItemResult],
    system: str,
    known_by: Sequence[str],
    item: Item,
) -> str:
    asked, steps = (answers.get((system, part, item.id)) for part in FORMS)
    assert asked is not None
    if asked.value == 1.0:
        return "solved"
    if steps is not None and steps.value == 1.0:
        return "step_by_step"
    if asked.stands:
        return "said_otherwise"
    hops = _hops(item)
    if not all(any(answers[name, part, item.id].stands for name in known_by) for part in hops):
        return "unknown"
    missed = [row for part in hops if not (row := answers[system, part, item.id]).stands]
    if any(row.cut for row in missed or [asked]):
        return "cut_off"
    return "interference" if missed else "not_composed"


def samples_of(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    tasks: Sequence[Task],
) -> tuple[Sample, ...]:
    """Every question with the answer of each system that was asked it.

    results: what `Asker.run` gave for these systems. A loss is no answer, so questions under the
    metric "answer_loss" have no samples.
    """
    cause_of = {(name, task): of for name, task, of in causes_of_errors(results, systems, tasks)}
    answers = {row.key: row for row in results if not row.is_loss}
    samples = []
    for question in questions(tasks):
        if question.metric == LOSS:
            continue
        task, item, replies = question.task, question.item.id, list[Reply]()
        for system in systems:
            if row := answers.get((system.name, *question.key)):
                cause = cause_of.get((system.name, task), {}).get(item)
                right = row.value == 1.0
                replies.append(Reply(system.name, row.text, right, cause, row.stands, row.cut))
        gold = question.answers
        samples.append(Sample(task, question.part, item, question.prompt, gold, tuple(replies)))
    return tuple(samples)


def wrong_samples(
    samples: Iterable[Sample], system: str, part: ItemPart, most: int = EXAMPLES
) -> tuple[Sample, ...]:
    """Questions that the system answered wrongly, shortened, the commonest causes first.

    As many causes as possible are shown. part: the form of the question.
    """
    kept: dict[tuple[str, str | None], list[Sample]] = {}
    for sample in samples:
        for reply in sample.replies if sample.part == part else ():
            if reply.system == system and not reply.right:
                kept.setdefault((sample.task, reply.cause), []).append(sample)
    by_count = sorted(kept.values(), key=len, reverse=True)
    turns = [group[turn] for turn in range(most) for group in by_count if turn < len(group)]
    return tuple(map(_shortened, turns[:most]))


def _shortened(sample: Sample) -> Sample:
    """The sample with few right answers and with no text longer than LONGEST."""
    few = replace(sample, gold=sample.gold[:EXAMPLES])
    made: Sample = map_texts(few, lambda t: t if len(t) <= LONGEST else t[: LONGEST - 1] + "…")
    return made
