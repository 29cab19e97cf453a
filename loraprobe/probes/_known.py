"""What sets of adapters would answer if each question went to the member that answers it.

This ranks sets where effects on the next token cannot be added: worked answers have no given text,
and some heads are not linear. It is an upper bound that compositions seldom reach, and it names the
sets that have something to gain. For worked answers a set needs an adapter that knows each hop, and
one that writes answers of the asked kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.records import ItemResult
from loraprobe.tasks import Task, normalize_answer

SHARED = 0.7  # below this share of distinct right answers, one item's is an answer to another's


@dataclass(frozen=True)
class KnownAlone:
    """Results of the base and n adapters alone on the items of one task, by part: [1 + n, items].

    More is better; NaN where an item lacks the part. `form` [1 + n] says of each how often its
    worked answers are of the asked kind; None for a task without worked answers.
    """

    task: Task
    parts: dict[str, np.ndarray]
    form: np.ndarray | None

    @classmethod
    def of(cls, task: Task, systems: Sequence[str], results: Sequence[ItemResult]) -> KnownAlone:
        """From the results of the systems, the base first."""
        row = {name: k for k, name in enumerate(systems)}
        column = {item.id: k for k, item in enumerate(task.items)}
        shape = len(systems), len(task.items)
        parts: dict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
        worked: dict[str, list[str]] = defaultdict(list)
        for result in results:
            if result.task != task.name or result.system not in row:
                continue
            sign = -1.0 if result.metric == "answer_loss" else 1.0
            parts[result.part][row[result.system], column[result.item]] = sign * result.value
            if result.part == "steps" and not result.cut:
                worked[result.system].append(result.text)
        form = np.array([_form(task, worked[name]) for name in systems]) if worked else None
        return cls(task, dict(parts), form)

    def alone(self) -> np.ndarray:
        """The score [1 + n] of each in the form of the question that suits it better."""
        means = [np.nanmean(self.parts[p], 1) for p in ("question", "steps") if p in self.parts]
        found: np.ndarray = np.max(means, 0)
        return found

    def question(self, subsets: np.ndarray) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the plain question.

        Halfway between the best member and the members together.
        """
        values = self.parts["question"]
        alone = np.nanmean(values, 1)
        best = np.maximum(alone[0], alone[1:][subsets].max(1))
        together: np.ndarray = (best + np.nanmean(_together(values, subsets), 1)) / 2
        return together

    def steps(self, subsets: np.ndarray, covered: np.ndarray | None = None) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the question with worked steps.

        covered [m, items]: whether a set knows what an item takes; None for what its members and
        the base know alone.
        """
        assert self.form is not None
        if covered is None:
            covered = self.covered(subsets)
        form = np.maximum(self.form[0], self.form[1:][subsets].max(1))
        right = np.nanmean(_together(self.parts["steps"], subsets), 1)
        found: np.ndarray = np.maximum(covered.mean(1) * form, right)
        return found

    def covered(self, subsets: np.ndarray) -> np.ndarray:
        """Whether [m, items] the members or the base know every hop, or the answer without hops."""
        hops = [values for part, values in self.parts.items() if part.startswith("hop")]
        covered = np.ones((len(subsets), len(self.task.items)), np.float32)
        for values in hops or [self.parts["question"]]:
            covered *= np.nan_to_num(_together(values, subsets), nan=1.0)
        return covered


def _together(values: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Results [m, items] of the best of the base and the members."""
    found = np.maximum(values[1:][subsets[:, 0]], values[0])
    for member in subsets.T[1:]:
        np.maximum(found, values[1:][member], out=found)
    return found


def _form(task: Task, texts: Sequence[str]) -> float:
    """How often worked answers are of the asked kind, and how far they depend on the question.

    texts: those that did not end at the limit of tokens. They are of the asked kind if they name a
    right answer of some item, where right answers repeat; else if they say anything.
    """
    golds = {normalize_answer(answer) for item in task.items for answer in item.answers}
    repeat = len(golds) <= SHARED * len(task.items)
    said = [f" {normalize_answer(text)} " for text in texts]
    if repeat:
        named = [{gold for gold in golds if f" {gold} " in text} for text in said]
        different = len(set().union(*named)) / len(golds) if named else 0.0
        return sum(map(bool, named)) / len(task.items) * different
    whole = [text for text in said if text.strip()]
    return len(whole) / len(task.items) * len(set(whole)) / max(1, len(whole))
