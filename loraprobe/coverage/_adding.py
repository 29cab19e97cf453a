"""What the probes of added effects share: which questions, which gates, what an answer scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraprobe.coverage._contract import Part, Question, Study
from loraprobe.coverage._models import Models
from loraprobe.coverage._statistics import share_interval
from loraprobe.records import Coverage
from loraprobe.scoring import Voice, Written
from loraprobe.tasks import answered


def composed_parts(study: Study) -> tuple[Part, ...]:
    """The composed question, and its form asked step by step where there is one."""
    return (study.parts[0], *((study.worked,) if study.worked is not None else ()))


def asked(study: Study, part: Part, items: int) -> list[Question]:
    """A sample of the questions that are answered in words; none where no one was measured so."""
    if not any(study.right(system, part) for system in study.systems):
        return []
    return [question for question in study.sample(part, items) if not question.choices]


def gates_of(n: int) -> tuple[float, float]:
    """The constant gates looked at: those of `uniform` and of `sum`."""
    return 1 / n, 1.0


def hits(part: Part, questions: Sequence[Question], written: Sequence[Written]) -> list[float]:
    """1.0 or 0.0 for each answer, read as evaluation reads it."""
    return [
        float(answered(w.text, q.answers, cot=part.worked, pattern=q.pattern))
        for q, w in zip(questions, written, strict=True)
    ]


def added(
    study: Study, models: Models, items: int
) -> Iterator[tuple[Part, float, list[Question], list[Written]]]:
    """What the adapters' added effects write: part, gate, questions, texts; nothing for one."""
    if models.n < 2:
        return
    for part in composed_parts(study):
        questions = asked(study, part, items)
        if questions:
            voices = [Voice.added(models.n, gate) for gate in gates_of(models.n)]
            texts = models.texts(study, part, questions, voices)
            for gate, written in zip(gates_of(models.n), texts, strict=True):
                yield part, gate, questions, written


def score_row(
    name: str,
    study: Study,
    part: Part,
    questions: Sequence[Question],
    right: Sequence[float],
    *,
    adapters: tuple[str, ...],
    gate: float | None,
    against: Sequence[str],
) -> Coverage:
    """The row of a score. `baseline`: the best of the systems `against`, on the same items."""
    items = [question.item for question in questions]
    scores = [study.score(system, part, items) for system in against]
    known = [score for score in scores if score is not None]
    return Coverage(
        name,
        study.task.name,
        sum(right) / len(right),
        len(right),
        part.hop,
        adapters,
        share_interval(right, [question.cluster for question in questions]),
        max(known) if len(known) == len(scores) else None,
        part.name,
        gate,
    )
