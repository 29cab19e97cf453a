"""`--chat-template auto`: compares the single adapters with and without the chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Question, questions
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer


Mean = Callable[..., float]
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
    ledger = Ledger() if kept is None else kept

    def mean(used: bool, asked: Sequence[Question], told: str = "") -> float:
        named = {stored_as(one.name, used) + told: one for one in singles}
        return _mean_of_best(ways[used], named, asked, max_new_tokens, ledger)

    return _choice(mean, asked)


def _choice(mean: Mean, asked: Sequence[Question]) -> tuple[bool, str, Coverage | None]:
    """What `choose_template` returns. mean: that of the best adapters' values in one form."""
    losses = all(question.metric == "answer_loss" for question in asked)
    means = {used: mean(used, asked) for used in (False, True)}
    row = Coverage("chat_template", asked[0].task, means[True], len(asked), baseline=means[False])
    seen = "mean log-likelihood" if losses else "accuracy"
    told = ""
    own = [question for question in asked if question.item.source is None]
    if own and not losses and max(means.values()) < FEW_RIGHT:
        told = f" (accuracy {means[True]:.2f} and {means[False]:.2f} tells nothing)"
        seen = "mean log-likelihood of the right answers, per token,"
        likely = [replace(question, metric="answer_loss") for question in own]
        means = {used: mean(used, likely, ", likelihood") for used in (False, True)}
    hops = sum(question.part.startswith("hop") for question in asked)
    of_them = f", {hops} of them hops," if hops else ""
    chosen = means[True] > means[False]
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's {seen} on "
        f"{len(asked)} sampled questions{of_them} was {means[True]:.2f} with it and "
        f"{means[False]:.2f} without{told}."
    )
    return chosen, why, None if losses else row


def stored_as(adapter: str, chat_template: bool) -> str:
    """The name under which a ledger keeps an adapter's answers in one form of the prompt."""
    return f"{adapter}, {'with' if chat_template else 'without'} the chat template"


def _mean_of_best(
    scorer: Scorer,
    named: Mapping[str, Composition],
    asked: Sequence[Question],
    max_new_tokens: int | None,
    kept: Ledger,
) -> float:
    """The mean over questions of the best adapter's value; losses are negative.

    named: the adapters by the names under which `kept` holds their answers.
    """
    values = []
    for name, single in named.items():
        open_ = [q for q in asked if kept.get(name, q.task, q.part, q.item.id) is None]
        if open_:
            with scorer.with_composition(single):
                kept.append(ask(scorer, open_, name, max_new_tokens))
        rows = (kept.get(name, q.task, q.part, q.item.id) for q in asked)
        values.append([_value(row) for row in rows if row is not None])
    return sum(map(max, zip(*values, strict=True))) / len(asked)


def _value(result: ItemResult) -> float:
    if result.metric == "answer_loss":
        return -result.value
    return float(result.stands) if result.part.startswith("hop") else result.value
