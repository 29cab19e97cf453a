"""`--chat-template auto`: compares the single adapters with and without the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprobe.errors import UsageError
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import TokenLimits, questions
from loraprobe.records import Coverage
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer


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
    question counts with its best adapter. Returns False if the tokenizer has no template or both
    forms are equally good; accuracies are None without a template or where losses are compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    every = [q for q in questions(tasks, metric) if q.part != "steps"]
    count = min(sample, len(every))
    asked = [every[i * len(every) // count] for i in range(count)]
    means = {}
    for used, way in ways.items():
        best = [float("-inf")] * len(asked)
        for single in singles:
            with way.with_composition(single):
                results = ask(way, asked, single.name, TokenLimits())
            values = [-r.value if r.metric == "answer_loss" else r.value for r in results]
            best = [max(pair) for pair in zip(best, values, strict=True)]
        means[used] = sum(best) / len(best)
    chosen = means[True] > means[False]
    losses = metric == "answer_loss"
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's mean "
        f"{'log-likelihood' if losses else 'accuracy'} on {len(asked)} sampled questions was "
        f"{means[True]:.2f} with it and {means[False]:.2f} without."
    )
    row = Coverage("chat_template", tasks[0].name, means[True], len(asked), baseline=means[False])
    return chosen, why, None if losses else row
