"""The choice out of a library does not make a verdict: simulated libraries in which nobody gains.

Every composition gains just as much as is asked for. The best of many pairs on the items that
choose looks far better than that; on the items that prove it does not.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_asking_rounds import Planted

from loraprobe.errors import TaskError
from loraprobe.evaluation import Ledger, System, rounds
from loraprobe.options import Options
from loraprobe.pipeline.evaluate import evaluate
from loraprobe.pipeline.ranking import choose, rank
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.tasks import Item, Task
from loraprobe.verdict import Evidence, LibraryChoice, decide_compositions

ADAPTERS, ITEMS, RIGHT, SEEDS = 60, 100, 0.3, 8
TASK = Task("t0", tuple(Item(str(k), f"p{k}", ("x",)) for k in range(ITEMS)))


def decision(seed: int, leak: bool) -> str:
    """The decision on one library of noise. leak: the items that choose prove too."""
    options = Options(margin=RIGHT, seed=seed, items=40, all_items=True)
    parts = split_for_screening([TASK], options)
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(ADAPTERS), 2))
    composed = rng.random((len(pairs), ITEMS)) < RIGHT
    wrong = np.zeros(ITEMS, bool)
    chosen = [int(item.id) for item in parts.apart[0].items]
    place = {pair: k for k, pair in enumerate(pairs)}

    def score(subsets: np.ndarray) -> np.ndarray:
        """The strongest choice there is: by what the compositions answer."""
        means = composed[:, chosen].mean(1)
        return np.array(
            [means[place[m]] if (m := tuple(s)) in place else 0.0 for s in subsets.tolist()]
        )

    finalists = choose([rank(ADAPTERS, score)], 2, range(ADAPTERS))
    members = sorted({m for one in finalists for m in one.members})
    singles = [System("base", "base"), *(System(f"a{m}", "adapter") for m in members)]
    systems = [System(str(one.members), "merge") for one in finalists]
    answers: dict[tuple[str, str], Any] = {("base", "t0"): wrong}
    answers |= {(f"a{m}", "t0"): wrong for m in members}
    answers |= {(str(one.members), "t0"): composed[place[one.members]] for one in finalists}
    controls = [System("shrunk", "control"), System("random-partner", "control")]
    answers |= {(one.name, "t0"): wrong for one in controls}
    session = Session("screen", options)
    tasks = parts.apart if leak else parts.left
    inputs, scorer = SimpleNamespace(), SimpleNamespace(chat_template=False)
    evaluator = Planted(inputs, session, scorer, Ledger(), tasks, answers=answers)  # type: ignore[arg-type]
    schedule = rounds(tasks, seed, all_items=True)
    made = evaluate(evaluator, [*singles, *systems], schedule, lambda *_: controls).records()
    choice = LibraryChoice(ADAPTERS, len(pairs), len(finalists), 40, ITEMS - 40)
    evidence = Evidence(tasks=1, level="evaluation", margin=RIGHT, choice=choice, **vars(made))
    return decide_compositions(evidence).decision


def test_noise_is_not_likely_although_the_best_of_many_was_chosen():
    honest = [decision(seed, leak=False) for seed in range(SEEDS)]
    leaky = [decision(seed, leak=True) for seed in range(SEEDS)]
    assert leaky.count("likely") > SEEDS / 2  # the test sees a leak
    assert honest.count("likely") <= 1  # 0.2 are expected


@pytest.mark.parametrize("sizes", [[1] * 100, [3, 1, 4] * 40, [2] * 60])
def test_no_cluster_and_no_prompt_serves_both_the_choice_and_the_proof(sizes):
    items = [
        Item(f"{c}-{k}", f"prompt {c % 90}", ("x",), group=str(c) if size > 1 else None)
        for c, size in enumerate(sizes)
        for k in range(size)
    ]
    for seed in range(3):
        parts = split_for_screening([Task("t", tuple(items))], Options(seed=seed))
        apart, left = parts.apart[0].items, parts.left[0].items
        assert not {i.cluster for i in apart} & {i.cluster for i in left}
        assert not {i.prompt for i in apart if not i.group} & {
            i.prompt for i in left if not i.group
        }
        assert len(apart) >= 40 and len({i.cluster for i in left}) >= 30
        assert sorted(i.id for i in (*apart, *left)) == sorted(i.id for i in items)


def test_too_few_items_to_prove_are_refused_with_the_cure():
    with pytest.raises(TaskError, match=r"70 items.*--items"):
        split_for_screening([Task("t", TASK.items[:69])], Options())
    assert split_for_screening([Task("t", TASK.items[:69])], Options(items=39))
