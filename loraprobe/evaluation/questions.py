"""The questions of a task, and how a reply to one becomes a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from loraprobe.errors import TaskError, UsageError
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Item, Task, answered, normalize_answer, read_answer

Metric = Literal["exact_match", "choice", "answer_loss"]
METRICS: tuple[Metric, ...] = ("exact_match", "choice", "answer_loss")
Scored = tuple[float, int]  # log-probability and number of tokens of a continuation
PLAIN_TOKENS = 32
WORKED_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """One prompt, the right answers, and the metric that judges the reply."""

    task: str
    part: str
    item: Item
    prompt: str
    answers: tuple[str, ...]
    metric: Metric

    @property
    def worked(self) -> bool:
        """Whether the answer is a text of several lines with worked steps."""
        return self.part == "steps"

    def result(self, system: str, value: float, text: str) -> ItemResult:
        return ItemResult(
            system, self.task, self.part, self.item.id, self.metric, value, text, self.item.cluster
        )

    def judged(self, system: str, text: str) -> ItemResult:
        """The result of a generated text. Raises TaskError if the item's pattern takes too long."""
        pattern = self.item.answer_pattern
        try:
            right = answered(text, self.answers, cot=self.worked, pattern=pattern)
            answer = read_answer(text, cot=self.worked, pattern=pattern)
        except TaskError as error:
            raise TaskError(f"Task {self.task}, item {self.item.id!r}: {error}") from None
        return self.result(system, float(right), answer)

    @property
    def continuations(self) -> tuple[str, ...]:
        """The texts that are scored if the question is judged by likelihood."""
        return self.item.choices if self.metric == "choice" else self.answers

    def scored(self, system: str, scores: Sequence[Scored]) -> ItemResult:
        """The result of the scores of all continuations.

        "choice" takes the one with the highest log-likelihood per character, as acc_norm of
        lm-evaluation-harness; of equals the first. "answer_loss" is in nats per token, that of the
        cheapest accepted answer.
        """
        texts = self.continuations
        if self.metric == "answer_loss":
            losses = [-logprob / tokens for logprob, tokens in scores]
            return self.result(system, *min(zip(losses, texts, strict=True)))
        per_character = [
            logprob / len(text) for (logprob, _), text in zip(scores, texts, strict=True)
        ]
        taken = texts[per_character.index(max(per_character))]
        return self.result(system, float(taken in self.answers), taken)


@dataclass(frozen=True)
class TokenLimits:
    """The largest number of tokens of a plain answer and of a worked answer."""

    plain: int = PLAIN_TOKENS
    worked: int = WORKED_TOKENS

    @classmethod
    def of(cls, max_new_tokens: int | None) -> TokenLimits:
        """`--max-new-tokens` sets both limits; by default that of worked answers is larger."""
        if max_new_tokens is None:
            return cls()
        if max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be at least 1, not {max_new_tokens}.")
        return cls(max_new_tokens, max_new_tokens)


def questions(tasks: Iterable[Task], metric: str | None = None) -> list[Question]:
    """The questions of all parts of all items.

    Without `metric`, the composed question of an item is scored by its choices, if it has any, and
    every other question by exact match. Choices belong to the composed question: hops and worked
    answers are generated under the metric "choice" too. "answer_loss" has no worked part, since a
    task holds no worked text. Raises UsageError for an unknown metric, and for "choice" if an item
    has no choices.
    """
    if metric is not None and metric not in METRICS:
        raise UsageError(f"Unknown metric {metric!r}: there are {', '.join(METRICS)}.")
    return [
        question
        for task in tasks
        for item in task.items
        for question in _of_item(task, item, metric)
    ]


def _of_item(task: Task, item: Item, metric: str | None) -> list[Question]:
    if metric == "choice" and not item.choices:
        raise UsageError(
            f"Metric choice needs choices, and item {item.id!r} of task {task.name} has none."
        )
    other: Metric = "answer_loss" if metric == "answer_loss" else "exact_match"
    found = [
        Question(
            task.name, "question", item, item.prompt, item.answers, target_metric(item, metric)
        )
    ]
    for k, hop in enumerate(item.hops):
        found.append(Question(task.name, hop_part(k), item, item.hop_prompt(k), hop.answers, other))
    if item.cot_prompt is not None and metric != "answer_loss":
        found.append(Question(task.name, "steps", item, item.cot_prompt, item.answers, other))
    return found


def guessing(tasks: Iterable[Task], metric: str | None = None) -> tuple[Coverage, ...]:
    """What guessing would score on the composed question, a row a task; none for losses.

    A choice is guessed at random. For other items the commonest right answer is always given.
    """
    rows = []
    for task in tasks:
        items = [(item, target_metric(item, metric)) for item in task.items]
        if any(how == "answer_loss" for _, how in items) or not items:
            continue
        golds = Counter(
            gold
            for item, how in items
            if how == "exact_match"
            for gold in {normalize_answer(answer) for answer in item.answers}
        )
        chances = [
            sum(choice in item.answers for choice in item.choices) / len(item.choices)
            for item, how in items
            if how == "choice"
        ]
        right = sum(chances) + max(golds.values(), default=0)
        rows.append(Coverage("guessing", task.name, right / len(items), len(items)))
    return tuple(rows)


def hop_part(k: int) -> str:
    """The name of the part of hop k, counted from 0."""
    return f"hop{k + 1}"


def target_metric(item: Item, metric: str | None) -> Metric:
    """The metric that judges the composed question of an item."""
    if metric is None:
        return "choice" if item.choices else "exact_match"
    return next(known for known in METRICS if known == metric)
