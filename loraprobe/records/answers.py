"""Records of answers: the result of every item, and samples with what every system said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ItemResult:
    """The answer of one system to one item in one part of one task.

    `value` is 1.0 for right and 0.0 for wrong; under the metric "answer_loss" it is nats per token
    of the gold answer. `text` is the answer that was read, or the choice taken. Items that share
    `group` form one cluster. `contains`: the answer is right, or a right one stands in it in other
    words. `cut`: the reply ended at the limit of tokens, not by itself.
    """

    system: str
    task: str
    part: str  # "question" | "hop1" | "hop2" ... | "steps"
    item: str
    metric: str  # one of `tasks.METRICS`
    value: float
    text: str
    group: str
    contains: bool = False
    cut: bool = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        """System, task, part and item, by which results are kept."""
        return self.system, self.task, self.part, self.item

    @property
    def stands(self) -> bool:
        """Whether the answer is right or a right one stands in it; False for a loss."""
        return self.metric != "answer_loss" and (self.value == 1.0 or self.contains)


@dataclass(frozen=True)
class Reply:
    """What one system answered to one question.

    `text` is the answer as it was read, or the choice taken. `cause` is the field of `Attribution`
    under which the item counts; None for systems that are no composition and for items without
    hops. `contains` and `cut` are those of `ItemResult`.
    """

    system: str
    text: str
    right: bool
    cause: str | None = None
    contains: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Sample:
    """One question with its right answers and what every system answered."""

    task: str
    part: str
    item: str
    question: str
    gold: tuple[str, ...]
    replies: tuple[Reply, ...]
