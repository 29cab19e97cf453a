"""`--chat-template auto`: compares the single adapters with and without the chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from loraprobe.defaults import FIRST_ROUND, PLAIN_TOKENS, WORKED_TOKENS
from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Question, questions
from loraprobe.evaluation.rounds import spread_sample
from loraprobe.formatting import listing
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer


def choose_template(
    scorer: Scorer,
    singles: Sequence[Composition],
    tasks: Sequence[Task],
    *,
    sample: int = FIRST_ROUND,
    seed: int = 0,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    kept: Ledger | None = None,
    known: Callable[[], tuple[bool, str]] = lambda: (False, "their form is not known"),
) -> tuple[bool, str, Coverage | None]:
    """Whether prompts should be user turns of the chat template, why, and the two accuracies.

    The better form depends on the adapters' training. Each adapter answers about `sample` questions
    and hops, and a few worked ones, with and without the template (`_sampled`). A question counts
    with its best adapter, a hop as right if its answer stands in the reply. If both forms are
    equally good, `known` says which one is known and from what. What `kept` holds is not asked
    again, and new answers are added to it, under the names of `stored_as`. Returns False if the
    tokenizer has no template; accuracies are None then and where losses are compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    asked = [q for task in tasks for q in _sampled(task, sample // len(tasks), seed, metric)]
    ledger = Ledger() if kept is None else kept
    means = {}
    for used, way in ways.items():
        named = {stored_as(one.name, used): one for one in singles}
        means[used] = _mean_of_best(way, named, asked, max_new_tokens, ledger)
    chosen, why = means[True] > means[False], ""
    if means[True] == means[False]:
        chosen, told = known()
        why = f"; {told}"
    losses = all(question.metric == "answer_loss" for question in asked)
    parts = Counter(q.part.replace("hop", "hop ").replace("steps", "step by step") for q in asked)
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's "
        f"{'mean log-likelihood' if losses else 'accuracy'} on {len(asked)} sampled questions "
        f"({listing(f'{n} {part}' for part, n in parts.items())}) was {means[True]:.2f} with it "
        f"and {means[False]:.2f} without{why}."
    )
    row = Coverage("chat_template", asked[0].task, means[True], len(asked), baseline=means[False])
    return chosen, why, None if losses else row


def _sampled(task: Task, most: int, seed: int, metric: str | None) -> Iterator[Question]:
    """About `most` questions and hops of a task, each part in proportion, and a few worked ones.

    They are those of the first items that the evaluation asks, which finds the answers. The longest
    replies to worked questions have together at most as many tokens as the others.
    """
    plain = len([part for part in task.parts if part != "steps"])
    items = min(max(1, most // plain), len(task.items))
    worked = max(1, items * plain * PLAIN_TOKENS // WORKED_TOKENS)
    few = {item.id for item in spread_sample(task, worked, seed).items}
    for question in questions([spread_sample(task, items, seed)], metric):
        if not question.worked or question.item.id in few:
            yield question


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
