"""The questions with the answers of all systems, for `--save-samples` and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loraprobe.evaluation.attribution import causes
from loraprobe.evaluation.kept import Key
from loraprobe.evaluation.plan import Question, System, questions
from loraprobe.records import ItemResult, Reply, Sample
from loraprobe.secrets import map_texts
from loraprobe.tasks import Task

EXAMPLES = 3  # wrong answers that an audit carries
LONGEST = 400  # characters of a text in such an example


@dataclass(frozen=True)
class Samples:
    """The questions of all tasks with the results of the systems, made one at a time.

    `cause_of` gives the first cause of (system, task) and item, as `attribute` counts them. A loss
    is no answer, so questions under the metric "answer_loss" have no samples.
    """

    results: Mapping[Key, ItemResult]
    systems: Sequence[str]
    tasks: Sequence[Task]
    metric: str | None
    cause_of: Mapping[tuple[str, str], Mapping[str, str]]

    @classmethod
    def of(
        cls,
        results: Sequence[ItemResult],
        systems: Sequence[System],
        tasks: Sequence[Task],
        metric: str | None,
    ) -> Samples:
        """The samples of an evaluation. results: what `run_systems` gave for these systems."""
        found = {(name, task): of for name, task, of in causes(results, systems, tasks)}
        by_key = {row.key: row for row in results}
        return cls(by_key, [system.name for system in systems], tasks, metric, found)

    def __iter__(self) -> Iterator[Sample]:
        for question in questions(self.tasks, self.metric):
            if question.metric != "answer_loss":
                yield self._sample(question)

    def wrong(self, system: str, part: str, most: int = EXAMPLES) -> tuple[Sample, ...]:
        """Questions that the system answered wrongly, shortened, the commonest causes first.

        As many causes as possible are shown. part: the form of the question.
        """
        kept: dict[tuple[str, str | None], list[Question]] = {}
        for question in questions(self.tasks, self.metric):
            reply = self._reply(system, question) if question.part == part else None
            if reply is not None and not reply.right:
                kept.setdefault((question.task, reply.cause), []).append(question)
        by_count = sorted(kept.values(), key=len, reverse=True)
        turns = [group[turn] for turn in range(most) for group in by_count if turn < len(group)]
        return tuple(_shortened(self._sample(question)) for question in turns[:most])

    def _sample(self, question: Question) -> Sample:
        replies = (self._reply(system, question) for system in self.systems)
        return Sample(
            question.task,
            question.part,
            question.item.id,
            question.prompt,
            question.answers,
            tuple(reply for reply in replies if reply is not None),
        )

    def _reply(self, system: str, question: Question) -> Reply | None:
        """The system's answer; None if it was not asked, as a chain step by step."""
        found = self.results.get((system, *question.key))
        if found is None or found.metric == "answer_loss":
            return None
        cause = self.cause_of.get((system, question.task), {}).get(question.item.id)
        right = found.value == 1.0
        return Reply(system, found.text, right, cause, found.stands, found.cut)


def _shortened(sample: Sample) -> Sample:
    """The sample with few right answers and with no text longer than LONGEST."""
    few = dataclasses.replace(sample, gold=sample.gold[:EXAMPLES])
    made: Sample = map_texts(few, lambda t: t if len(t) <= LONGEST else t[: LONGEST - 1] + "…")
    return made
