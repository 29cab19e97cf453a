"""`--chat-template auto`: compares the single adapters with and without the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import ask
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
) -> tuple[bool, str, Coverage | None]:
    """Whether prompts should be user turns of the chat template, why, and the two accuracies.

    The better form depends on the adapters' training. Each adapter answers `sample` of the tasks'
    plain questions and hops, evenly distributed over the files, with and without the template. A
    question counts with its best adapter, a hop as right if its answer stands in the reply. Where
    the questions are beyond every adapter (fewer than FEW_RIGHT are right in both forms), the
    likelihood of the right answers decides. Returns False if the tokenizer has no template or both
    forms are equally good; accuracies are None without a template or where losses are compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    every = [q for q in questions(tasks, metric) if q.part != "steps"]
    count = min(sample, len(every))
    asked = [every[i * len(every) // count] for i in range(count)]
    losses = all(question.metric == "answer_loss" for question in asked)
    means = {used: _mean_of_best(way, singles, asked) for used, way in ways.items()}
    row = Coverage("chat_template", tasks[0].name, means[True], len(asked), baseline=means[False])
    seen = "mean log-likelihood" if losses else "accuracy"
    told = ""
    if not losses and max(means.values()) < FEW_RIGHT:
        told = f" (accuracy {means[True]:.2f} and {means[False]:.2f} tells nothing)"
        seen = "mean log-likelihood of the right answers, per token,"
        likely = [replace(question, metric="answer_loss") for question in asked]
        means = {used: _mean_of_best(way, singles, likely) for used, way in ways.items()}
    chosen = means[True] > means[False]
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's {seen} on "
        f"{_sampled(asked)} was {means[True]:.2f} with it and {means[False]:.2f} without{told}."
    )
    return chosen, why, None if losses else row


def _mean_of_best(
    scorer: Scorer, singles: Sequence[Composition], asked: Sequence[Question]
) -> float:
    """The mean over questions of the best adapter's value; losses are negative."""
    best = [float("-inf")] * len(asked)
    for single in singles:
        with scorer.with_composition(single):
            results = ask(scorer, asked, single.name, TokenLimits())
        best = [max(pair) for pair in zip(best, map(_value, results), strict=True)]
    return sum(best) / len(best)


def _value(result: ItemResult) -> float:
    if result.metric == "answer_loss":
        return -result.value
    return float(result.stands) if result.part.startswith("hop") else result.value


def _sampled(asked: Sequence[Question]) -> str:
    """What was looked at: how many questions, and how many of them are hops."""
    hops = sum(question.part.startswith("hop") for question in asked)
    return f"{len(asked)} sampled questions" + (f", {hops} of them hops," if hops else "")
