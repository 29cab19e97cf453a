"""Whether prompts are user turns of the chat template: the form that the adapters answer better."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from loraprobe.defaults import (
    LOSS,
    PLAIN_TOKENS,
    TEMPLATE_ITEMS,
    TEMPLATE_LEAD,
    TEMPLATE_SAMPLES,
    WORKED_TOKENS,
)
from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import Asker, ResponseCache
from loraprobe.evaluation.questions import Question, System, questions, spread_sample
from loraprobe.formatting import listing
from loraprobe.records import STEPS, Coverage, ItemResult, Progress
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer


def choose_template(
    scorer: Scorer,
    singles: Sequence[Composition],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    max_new_tokens: int | None = None,
    kept: ResponseCache | None = None,
    known: Callable[[], tuple[bool, str]] = lambda: (False, "their form is not known"),
    progress: Progress | None = None,
) -> tuple[bool, str, Coverage | None]:
    """Whether prompts should be user turns of the chat template, why, and the two accuracies.

    The better form depends on the adapters' training, so each adapter answers a few questions and
    hops in both forms. Where neither is shown to be better (`TEMPLATE_LEAD`) and not both are shown
    to be good, more are asked; where no answer differs then, worked ones. A question counts with
    its best adapter, so no adapter is asked what an earlier one answered rightly.

    kept: answers that are not asked again; new ones are added. known: where both forms are equally
    good, which one is known, and from what. The first value is False where the tokenizer has no
    template. The accuracies are None then, and where losses are compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    responses = ResponseCache() if kept is None else kept
    samples = [
        [q for task in tasks for q in _sampled(task, most // len(tasks), seed)]
        for most in TEMPLATE_SAMPLES
    ]
    plain = [[question for question in of if not question.worked] for of in samples]
    done, total = dict[tuple[bool, str], int](), 0

    def tell(way: bool, step: str, answers: int, _: int) -> None:
        """Counts the answers of all systems in both ways together."""
        done[way, step] = answers
        if progress is not None:
            progress("template", sum(done.values()), total)

    for asked in (*plain, samples[-1]):
        values = dict[bool, list[float]]()
        done, total = {}, len(ways) * len(singles) * len(asked)
        for used, way in ways.items():
            best = dict.fromkeys(asked, -math.inf)
            for one in singles:
                system = System.alone(one)
                left = [question for question in asked if best[question] < 1]
                asker = Asker(way, responses, max_new_tokens, functools.partial(tell, used))
                asker.ask([system], left)
                best |= {q: max(best[q], _value(asker.get(system, q))) for q in left}
            values[used] = list(best.values())
        pairs = list(zip(values[True], values[False], strict=True))
        lead = abs(sum((one > other) - (one < other) for one, other in pairs))
        equal = lead == 0 and 2 * sum(one == other > 0 for one, other in pairs) >= len(pairs)
        # Worked answers are long, so they are asked only where no others differ.
        enough = 1 if asked is plain[-1] else TEMPLATE_LEAD
        if lead >= enough or (equal and asked is not plain[0]):
            break
    with_it, without = (sum(values[way]) / len(asked) for way in (True, False))
    return _chosen(asked, with_it, without, known)


def _chosen(
    asked: Sequence[Question], with_it: float, without: float, known: Callable[[], tuple[bool, str]]
) -> tuple[bool, str, Coverage | None]:
    """The better form by the means of the best answers with the template and without it."""
    chosen, tie = with_it > without, ""
    if with_it == without:
        chosen, from_what = known()
        tie = f"; {from_what}"
    losses = all(question.metric == LOSS for question in asked)
    parts = Counter(q.part.words for q in asked)
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's "
        f"{'mean log-likelihood' if losses else 'accuracy'} on {len(asked)} sampled questions "
        f"({listing(f'{n} {part}' for part, n in parts.items())}) was {with_it:.2f} with it "
        f"and {without:.2f} without{tie}."
    )
    row = Coverage("chat_template", asked[0].task, with_it, len(asked), baseline=without)
    return chosen, why, None if losses else row


def _sampled(task: Task, most: int, seed: int) -> Iterator[Question]:
    """About `most` questions and hops of a task, each part in proportion, and a few worked ones.

    They are those of the first items that the evaluation asks, which finds the answers. The longest
    replies to worked questions have together at most as many tokens as the others.
    """
    plain = len([part for part in task.parts if part != STEPS])
    items = min(max(TEMPLATE_ITEMS, round(most / plain)), len(task.items))
    worked = max(1, items * plain * PLAIN_TOKENS // WORKED_TOKENS)
    few = {item.id for item in spread_sample(task, worked, seed).items}
    for question in questions([spread_sample(task, items, seed)]):
        if not question.worked or question.item.id in few:
            yield question


def _value(row: ItemResult | None) -> float:
    """How good an answer is; losses are negative, a hop is right if its answer stands there."""
    assert row is not None
    return float(row.stands) if row.part.hop and not row.is_loss else row.merit
