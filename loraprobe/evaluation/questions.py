"""What is asked of a system about a task, and how its answers become results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loraprobe.errors import TaskError, UsageError
from loraprobe.records import ItemResult
from loraprobe.tasks import Item, Task, answered, read_answer

Metric = Literal["exact_match", "choice", "answer_loss"]
METRICS: tuple[Metric, ...] = ("exact_match", "choice", "answer_loss")
PLAIN_TOKENS = 32
WORKED_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """One prompt, the answers that are right, and how the reply is judged."""

    task: str
    part: str
    item: Item
    prompt: str
    answers: tuple[str, ...]
    metric: Metric

    def result(self, system: str, value: float, text: str) -> ItemResult:
        return ItemResult(
            system, self.task, self.part, self.item.id, self.metric, value, text, self.item.cluster
        )


@dataclass(frozen=True)
class Limits:
    """How many tokens a plain answer and a worked one may take."""

    plain: int = PLAIN_TOKENS
    worked: int = WORKED_TOKENS

    @classmethod
    def of(cls, max_new_tokens: int | None) -> Limits:
        """`--max-new-tokens` sets both; without it worked answers get more room."""
        if max_new_tokens is None:
            return cls()
        if max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be at least 1, not {max_new_tokens}.")
        return cls(max_new_tokens, max_new_tokens)


def questions(tasks: Iterable[Task], metric: str | None = None) -> list[Question]:
    """All parts of all items. Without `metric`, an item with choices is scored by them and
    everything else by exact match.

    Choices are those of the composed question: hops and worked answers are generated under the
    metric "choice" too. "answer_loss" has no worked part, since no worked text is given as gold.
    Raises UsageError for an unknown metric, and for "choice" where an item has no choices.
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
        Question(task.name, "target", item, item.prompt, item.answers, target_metric(item, metric))
    ]
    for k, hop in enumerate(item.hops):
        found.append(
            Question(task.name, f"hop{k + 1}", item, item.hop_prompt(k), hop.answers, other)
        )
    if item.cot_prompt is not None and metric != "answer_loss":
        found.append(Question(task.name, "cot", item, item.cot_prompt, item.answers, other))
    return found


def target_metric(item: Item, metric: str | None) -> Metric:
    """How the composed question of an item is judged."""
    if metric is None:
        return "choice" if item.choices else "exact_match"
    return next(known for known in METRICS if known == metric)


def ask(scorer: Any, batch: Sequence[Question], system: str, limits: Limits) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer that has the system in its model."""
    ways = {"plain": _plain, "worked": _worked, "choice": _choice, "answer_loss": _loss}
    kinds = [_way(question) for question in batch]
    found: dict[int, ItemResult] = {}
    for kind, way in ways.items():
        chosen = [i for i, own in enumerate(kinds) if own == kind]
        if chosen:
            verdicts = way(scorer, [batch[i] for i in chosen], limits)
            for i, (value, text) in zip(chosen, verdicts, strict=True):
                found[i] = batch[i].result(system, value, text)
    return [found[i] for i in range(len(batch))]


def _way(question: Question) -> str:
    if question.metric != "exact_match":
        return question.metric
    return "worked" if question.part == "cot" else "plain"


def _plain(scorer: Any, batch: Sequence[Question], limits: Limits) -> list[tuple[float, str]]:
    texts = scorer.generate(
        [q.prompt for q in batch], max_new_tokens=limits.plain, until_newline=True
    )
    return [
        (float(answered(text, q.answers)), read_answer(text))
        for q, text in zip(batch, texts, strict=True)
    ]


def _worked(scorer: Any, batch: Sequence[Question], limits: Limits) -> list[tuple[float, str]]:
    texts = scorer.generate([q.prompt for q in batch], max_new_tokens=limits.worked)
    found = []
    for q, text in zip(batch, texts, strict=True):
        pattern = q.item.answer_pattern
        try:
            right = answered(text, q.answers, cot=True, pattern=pattern)
            found.append((float(right), read_answer(text, cot=True, pattern=pattern)))
        except TaskError as error:
            raise TaskError(f"Task {q.task}, item {q.item.id!r}: {error}") from None
    return found


def _choice(scorer: Any, batch: Sequence[Question], limits: Limits) -> list[tuple[float, str]]:
    """The choice with the highest log-likelihood per character, as lm-evaluation-harness's
    acc_norm has it; the first of equals."""
    pairs = [(q.prompt, choice) for q in batch for choice in q.item.choices]
    likely = iter(scorer.loglikelihood(pairs))
    found = []
    for q in batch:
        scores = [next(likely).logprob / len(choice) for choice in q.item.choices]
        taken = q.item.choices[scores.index(max(scores))]
        found.append((float(taken in q.answers), taken))
    return found


def _loss(scorer: Any, batch: Sequence[Question], limits: Limits) -> list[tuple[float, str]]:
    """Nats per token of the accepted answer that is cheapest."""
    likely = iter(scorer.loglikelihood([(q.prompt, answer) for q in batch for answer in q.answers]))
    found = []
    for q in batch:
        losses = []
        for answer in q.answers:
            likelihood = next(likely)
            losses.append((-likelihood.logprob / likelihood.tokens, answer))
        found.append(min(losses))
    return found
