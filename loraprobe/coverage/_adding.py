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


def asked(study: Study, part: Part, items: int) -> tuple[Question, ...]:
    """A sample of a part's questions; none where nobody was measured as right or wrong."""
    if not any(study.right(system, part) for system in study.systems):
        return ()
    return study.sample(part, items)


def gates_of(n: int) -> tuple[float, float]:
    """The constant gates looked at: those of `uniform` and of `sum`."""
    return 1 / n, 1.0


def rights(
    study: Study,
    models: Models,
    part: Part,
    questions: Sequence[Question],
    voices: Sequence[Voice],
    *,
    routed: bool = False,
) -> list[list[float]]:
    """1.0 or 0.0 for each question, a list a voice; judged as evaluation judged the part."""
    closed = study.by_choice(part)
    free = [q for q in questions if q.item not in closed]
    chosen = [q for q in questions if q.item in closed]
    found: list[dict[str, float]] = [{} for _ in voices]
    if free:
        for own, texts in zip(
            found, models.texts(study, part, free, voices, routed=routed), strict=True
        ):
            for q, written in zip(free, texts, strict=True):
                right = answered(written.text, q.answers, cot=part.worked, pattern=q.pattern)
                own[q.item] = float(right)
    if chosen:
        for own, taken in zip(found, models.choices(chosen, voices, routed=routed), strict=True):
            own.update({q.item: float(c in q.answers) for q, c in zip(chosen, taken, strict=True)})
    return [[own[q.item] for q in questions] for own in found]


def added(
    study: Study, models: Models, items: int
) -> Iterator[tuple[Part, float, list[Question], list[Written]]]:
    """Texts that the adapters' added effects write: part, gate, questions, texts.

    Nothing for one adapter; questions that are judged by choices have no text.
    """
    if models.n < 2:
        return
    voices = [Voice.added(models.n, gate) for gate in gates_of(models.n)]
    for part in composed_parts(study):
        closed = study.by_choice(part)
        questions = [q for q in asked(study, part, items) if q.item not in closed]
        if questions:
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
