"""The texts of a task that a screen reads, in rows that are read once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from loraprobe.evaluation.plan import Question, questions
from loraprobe.records import ItemResult
from loraprobe.scoring.states import States, TokenRow, linear_head, read_states
from loraprobe.tasks import Task

MOST_ANSWERS = 4  # of a question that are read
WHOLE = ("exact_match", "strict")  # metrics by which more than the right answer is wrong


@dataclass(frozen=True)
class Text:
    """One answer or choice of a question: the row that holds it, and its tokens.

    stopped: whether the answer has to end behind it.
    """

    question: int
    row: int
    tokens: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class ScreenedTexts:
    """All texts that are read of some tasks, in rows that are read once."""

    questions: tuple[Question, ...]
    rows: tuple[TokenRow, ...]
    texts: tuple[Text, ...]

    @classmethod
    def of(cls, scorer: Any, tasks: Sequence[Task], metric: str | None) -> ScreenedTexts | None:
        """What to read; None where the model's head is not one matrix or nothing can be read."""
        asked = [
            q
            for q in questions(tasks, metric)
            if q.part != "steps"
            and (q.part == "question" or q.item.cot_prompt is not None)
            and q.item.source is None
            and q.metric != "regex"
        ]
        pairs = [(k, q.prompt, text) for k, q in enumerate(asked) for text in _texts(q)]
        if not pairs or linear_head(scorer.model) is None:
            return None
        rows: dict[TokenRow, int] = {}
        texts = []
        encoded = scorer.encoded([(prompt, text) for _, prompt, text in pairs])
        for (k, _, _), (ids, start) in zip(pairs, encoded, strict=True):
            generated = asked[k].generated
            row = tuple(ids if generated else ids[:-1]), start
            stopped = generated and asked[k].metric in WHOLE
            texts.append(Text(k, rows.setdefault(row, len(rows)), tuple(ids[start:]), stopped))
        return cls(tuple(asked), tuple(rows), tuple(texts))

    @classmethod
    def joined(cls, parts: Sequence[ScreenedTexts]) -> ScreenedTexts:
        """Several readings as one, in their order."""
        asked: list[Question] = []
        rows: list[TokenRow] = []
        texts: list[Text] = []
        for part in parts:
            before, above = len(asked), len(rows)
            texts += [
                replace(text, question=text.question + before, row=text.row + above)
                for text in part.texts
            ]
            asked += part.questions
            rows += part.rows
        return cls(tuple(asked), tuple(rows), tuple(texts))

    @property
    def mark(self) -> str:
        """What states of this reading are stored under."""
        return hashlib.sha256(repr((self.rows, self.texts)).encode()).hexdigest()

    def read(self, scorer: Any, system: str) -> tuple[States, list[ItemResult]]:
        """The states of the system in the scorer's model, and its results of scored questions."""
        states, logprobs = self.read_rows(scorer)
        scores: list[list[tuple[float, int]]] = [[] for _ in self.questions]
        for t, text in enumerate(self.texts):
            scores[text.question].append((logprobs[t], len(text.tokens)))
        answered = zip(self.questions, scores, strict=True)
        return states, [q.scored(system, own) for q, own in answered if not q.generated]

    def read_rows(self, scorer: Any) -> tuple[States, dict[int, float]]:
        """The states of the scorer's model, and the log-probability of each text by its place."""
        of_row: list[list[int]] = [[] for _ in self.rows]
        for t, text in enumerate(self.texts):
            of_row[text.row].append(t)
        states, found = read_states(
            scorer, self.rows, [[self.texts[t].tokens for t in own] for own in of_row]
        )
        return states, dict(zip(chain(*of_row), chain(*found), strict=True))


def _texts(question: Question) -> tuple[str, ...]:
    """The texts of a question that are read."""
    if question.generated:
        return tuple(dict.fromkeys(question.answers))[:MOST_ANSWERS]
    return question.continuations
