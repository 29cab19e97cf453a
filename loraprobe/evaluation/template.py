"""`--chat-template auto`: compares the single adapters with and without the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Question, TokenLimits, questions
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer


FEW_RIGHT = 0.1  # with a smaller share of right answers in both forms, likelihoods decide


def choose_template(
    scorer: Scorer,
    singles: Sequence[Composition],
    tasks: Sequence[Task],
    *,
    sample: int = 32,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    kept: Ledger | None = None,
) -> tuple[bool, str, Coverage | None]:
    """Whether prompts should be user turns of the chat template, why, and the two accuracies.

    The better form depends on the adapters' training. Each adapter answers `sample` of the tasks'
    plain questions and hops, evenly distributed over the files, with and without the template. A
    question counts with its best adapter, a hop as right if its answer stands in the reply. Where
    the questions are beyond every adapter (fewer than FEW_RIGHT are right in both forms), the
    likelihood of the right answers decides. What `kept` holds is not asked again, and new answers
    are added to it, under the names of `stored_as`. Returns False if the tokenizer has no template
    or both forms are equally good; accuracies are None without a template or where losses are
    compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    every = [q for q in questions(tasks, metric) if q.part != "steps"]
    count = min(sample, len(every))
    asked = [every[i * len(every) // count] for i in range(count)]
    losses = all(question.metric == "answer_loss" for question in asked)
    limits = TokenLimits.of(max_new_tokens)
    form = _Form(ways, singles, limits, Ledger() if kept is None else kept)
    means = {used: form.mean_of_best(used, asked) for used in ways}
    row = Coverage("chat_template", tasks[0].name, means[True], len(asked), baseline=means[False])
    seen = "mean log-likelihood" if losses else "accuracy"
    told = ""
    own = [question for question in asked if not question.item.source]
    if own and not losses and max(means.values()) < FEW_RIGHT:
        told = f" (accuracy {means[True]:.2f} and {means[False]:.2f} tells nothing)"
        seen = "mean log-likelihood of the right answers, per token,"
        likely = [replace(question, metric="answer_loss") for question in own]
        means = {used: form.mean_of_best(used, likely, ", likelihood") for used in ways}
    chosen = means[True] > means[False]
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's {seen} on "
        f"{_sampled(asked)} was {means[True]:.2f} with it and {means[False]:.2f} without{told}."
    )
    return chosen, why, None if losses else row


def stored_as(adapter: str, chat_template: bool) -> str:
    """The name under which a ledger keeps an adapter's answers in one form of the prompt."""
    return f"{adapter}, {'with' if chat_template else 'without'} the chat template"


@dataclass(frozen=True)
class _Form:
    """The scorers with and without the template, the adapters, and the answers so far."""

    ways: Mapping[bool, Scorer]
    singles: Sequence[Composition]
    limits: TokenLimits
    kept: Ledger

    def mean_of_best(self, used: bool, asked: Sequence[Question], told: str = "") -> float:
        """The mean over questions of the best adapter's value; losses are negative.

        told: what else the names of the stored results say.
        """
        rows = [self._results(used, single, asked, told) for single in self.singles]
        return sum(max(map(_value, row)) for row in zip(*rows, strict=True)) / len(asked)

    def _results(
        self, used: bool, single: Composition, asked: Sequence[Question], told: str
    ) -> list[ItemResult]:
        name = stored_as(single.name, used) + told

        def found(q: Question) -> ItemResult | None:
            return self.kept.get(name, q.task, q.part, q.item.id)

        open_ = [q for q in asked if found(q) is None]
        if open_:
            with self.ways[used].with_composition(single):
                self.kept.append(ask(self.ways[used], open_, name, self.limits))
        return [row for q in asked if (row := found(q)) is not None]


def _value(result: ItemResult) -> float:
    if result.metric == "answer_loss":
        return -result.value
    return float(result.stands) if result.part.startswith("hop") else result.value


def _sampled(asked: Sequence[Question]) -> str:
    """What was looked at: how many questions, and how many of them are hops."""
    hops = sum(question.part.startswith("hop") for question in asked)
    return f"{len(asked)} sampled questions" + (f", {hops} of them hops," if hops else "")
