"""What is asked of whom: the systems of an evaluation, and the questions of its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.defaults import PLAIN_TOKENS, WORKED_TOKENS
from loraprobe.errors import TaskError
from loraprobe.records import Coverage, ItemResult, SystemKind
from loraprobe.tasks import GENERATED, Item, Metric, Task, item_metric, judge, normalize_answer
from loraprobe.tasks.metrics import answer_end, asked_marks, json_ended

if TYPE_CHECKING:
    from loraprobe.composition import Composition

BASE = "base"  # the name of the base without an adapter
COMPOSITIONS: tuple[SystemKind, ...] = ("merge", "router", "chain")


@dataclass(frozen=True)
class System:
    """One system of the evaluation.

    composition: it is put into the base; None for the base alone. chain: for kind "chain", the
    compositions of the single adapters, named after them, which answer the hops together with the
    base. compression_error: the relative error of a merge that is due to its rank. merged: the
    `merging.Merged` of a method that needs new weights. stored: the name under which results are
    kept, if it is another one: a control has a fixed name, but depends on the best composition.
    members, spec: of a library, the adapters that it consists of, and what they are composed by.
    """

    name: str
    kind: SystemKind
    composition: Composition | None = None
    chain: tuple[Composition, ...] = ()
    compression_error: float | None = None
    merged: Any = None
    stored: str = ""
    members: tuple[str, ...] = ()
    spec: str = ""

    @property
    def key(self) -> str:
        """The name under which the ledger keeps its results."""
        return self.stored or self.name


@dataclass(frozen=True)
class AnswerEnd:
    """Tells whether a worked text has given its answer in a form that the prompt asks for."""

    marks: tuple[str, ...]

    def __call__(self, text: str) -> bool:
        return answer_end(text, self.marks) is not None


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
    def key(self) -> tuple[str, str, str]:
        """Task, part and item, by which results are kept."""
        return self.task, self.part, self.item.id

    @property
    def worked(self) -> bool:
        """Whether the answer is a text of several lines with worked steps."""
        return self.part == "steps"

    @property
    def generated(self) -> bool:
        """Whether a reply is generated; else continuations are scored."""
        return self.metric in GENERATED

    @property
    def most_tokens(self) -> int:
        """The longest reply, where `--max-new-tokens` sets no limit for all."""
        return WORKED_TOKENS if self.worked else PLAIN_TOKENS

    @property
    def one_line(self) -> bool:
        """Whether the first line of a reply is all that counts."""
        long = self.metric == "strict" and any("\n" in one.strip() for one in self.answers)
        return not (self.worked or self.metric == "json" or long)

    @property
    def ended(self) -> Callable[[str], bool] | None:
        """Tells of a text, up to the end of a line, whether what follows cannot count.

        None where it may count up to the limit of tokens.
        """
        if self.worked:
            marks = asked_marks(self.prompt)
            return AnswerEnd(marks) if marks else None
        return json_ended if self.metric == "json" else None

    def result(
        self, system: str, value: float, text: str, contains: bool = False, cut: bool = False
    ) -> ItemResult:
        of, group = (system, *self.key, self.metric), self.item.cluster
        return ItemResult(*of, value, text, group, contains, cut)

    def judged(self, system: str, text: str, cut: bool = False) -> ItemResult:
        """The result of a generated text. cut: it ended at the limit of tokens.

        A worked text counts up to the first answer in a form that the prompt asks for. Raises
        TaskError if the item's pattern takes too long.
        """
        if self.worked:
            text = text[: answer_end(text, asked_marks(self.prompt))]
        pattern = self.item.answer_pattern
        try:
            found = judge(self.metric, text, self.answers, cot=self.worked, pattern=pattern)
        except TaskError as error:
            raise TaskError(f"Task {self.task}, item {self.item.id!r}: {error}") from None
        return self.result(system, float(found.right), found.text, found.contains, cut)

    @property
    def continuations(self) -> tuple[str, ...]:
        """The texts that are scored if the question is judged by likelihood."""
        return self.item.choices if self.metric == "choice" else self.answers

    def scored(self, system: str, scores: Sequence[tuple[float, int]]) -> ItemResult:
        """The result of the scores of all continuations: log-probability and number of tokens.

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


def questions(tasks: Iterable[Task], metric: str | None = None) -> list[Question]:
    """The questions of all parts of all items. metric: the text of `--metric`.

    `item_metric` chooses the metric of the composed question. The worked form has the same metric,
    except that choices belong to the plain form: under "choice" a worked answer is generated and
    judged by exact match. So are hops under every metric but "answer_loss", which has no worked
    form, since a task holds no worked text. Raises UsageError for an unknown metric, and for
    "choice" if an item has no choices.
    """
    return [
        question
        for task in tasks
        for item in task.items
        for question in _of_item(task, item, item_metric(item, task.name, metric))
    ]


def _of_item(task: Task, item: Item, metric: Metric) -> list[Question]:
    hops: Metric = "answer_loss" if metric == "answer_loss" else "exact_match"
    found = [Question(task.name, "question", item, item.prompt, item.answers, metric)]
    for k, hop in enumerate(item.hops):
        found.append(Question(task.name, hop_part(k), item, item.hop_prompt(k), hop.answers, hops))
    if item.cot_prompt is not None and metric != "answer_loss":
        worked: Metric = "exact_match" if metric == "choice" else metric
        found.append(Question(task.name, "steps", item, item.cot_prompt, item.answers, worked))
    return found


def guessing(tasks: Iterable[Task], metric: str | None = None) -> tuple[Coverage, ...]:
    """What guessing would score on the composed question, a row a task; none for losses.

    A choice is guessed at random. For other items the commonest right answer is always given.
    """
    rows = []
    for task in tasks:
        items = [(item, item_metric(item, task.name, metric)) for item in task.items]
        if any(how == "answer_loss" for _, how in items) or not items:
            continue
        if any(item.source and not item.choices for item, _ in items):
            continue
        golds = Counter(
            gold
            for item, how in items
            if how in GENERATED
            for gold in {normalize_answer(answer) for answer in item.answers}
        )
        chances = [
            sum(choice in item.answers for choice in item.choices) / len(item.choices)
            for item, how in items
            if how == "choice" or item.source
        ]
        right = sum(chances) + max(golds.values(), default=0)
        rows.append(Coverage("guessing", task.name, right / len(items), len(items)))
    return tuple(rows)


def hop_part(k: int) -> str:
    """The name of the part of hop k, counted from 0."""
    return f"hop{k + 1}"
