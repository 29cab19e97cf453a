"""The records of a task: items with their hops, and the parts that are scored."""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from loraprobe.defaults import LOSS
from loraprobe.records import QUESTION, STEPS, ItemPart, TaskSummary, hop_part
from loraprobe.results import digest

REFERENCE = re.compile(r"\{(\d+)\}")


@dataclass(frozen=True)
class Hop:
    """One step towards an item's answer.

    `{1}`, `{2}` ... in `prompt` are replaced by the answers of earlier hops. adapter: the adapter
    that should know this step. The first of `answers` is inserted into later prompts.
    """

    prompt: str
    answers: tuple[str, ...]
    adapter: str | None = None


class Examiner(ABC):
    """What asks and judges items by itself, without the prompts and metrics of loraprobe.

    As text it is what decides the value of an item, beside the item. name: as messages say it.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def ask(cls, scorer: Any, items: Sequence[Item]) -> Sequence[tuple[float, str]]:
        """The value of each item and the reply, from a scorer whose model carries a system.

        The examiners of all items are of this class. A value is a share from 0 to 1, or a loss in
        nats where the metric of the item is "answer_loss". Other metrics have a name with a colon,
        as "suite:accuracy". Raises TaskError for what cannot be asked or judged.
        """

    @abstractmethod
    def told(self, task: str) -> str:
        """How its items are judged, as a sentence for the report. task: the name of the task."""

    @abstractmethod
    def __str__(self) -> str: ...

    def __deepcopy__(self, _: Any) -> Examiner:
        return self


@dataclass(frozen=True)
class Item:
    """One question with all right answers; without a prompt the answer is a text by itself.

    metric: how its answer is judged; None where nothing was chosen (`with_metrics`). examiner: what
    asks and judges it; None where loraprobe does.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    hops: tuple[Hop, ...] = ()
    cot_prompt: str | None = None
    answer_pattern: str | None = None
    entities: tuple[str, ...] = ()
    group: str | None = None
    metric: str | None = None
    examiner: Examiner | None = field(default=None, compare=False, repr=False)

    @property
    def judge(self) -> str:
        """The name of the metric that judges its answer; exact match where none was chosen."""
        return self.metric or ("choice" if self.choices else "exact_match")

    @property
    def cluster(self) -> str:
        """The cluster; items of one cluster are dependent. Without a group, the item itself."""
        return f"group:{self.group}" if self.group is not None else f"item:{self.id}"

    @functools.cached_property
    def content(self) -> str:
        """A digest of all that is asked and how it is judged, whatever its name and cluster are."""
        return digest(replace(self, id="", group=None, metric=self.judge))

    def hop_prompt(self, index: int) -> str:
        """The prompt of hop `index` (from 0) with the gold answers of earlier hops inserted."""
        gold = [hop.answers[0] for hop in self.hops[:index]]
        return fill(self.hops[index].prompt, gold)


@dataclass(frozen=True)
class Task:
    """A named list of items. `sha256` is that of the whole file, also with a `limit`.

    path: the file, or what names a source elsewhere, which has a `commit`. metric: how its items
    are judged, joined by "+", once that is chosen. needs, why: what `auto_metric` says of the task.
    repeated: how many items ask a question again (`of_one_question`). layout: how an extension was
    told to read the file (--fields).
    """

    name: str
    items: tuple[Item, ...]
    path: str | None = None
    sha256: str = ""
    commit: str | None = None
    metric: str = ""
    needs: str = "exact_match"
    why: str = ""
    repeated: int = 0
    layout: str = ""

    @property
    def reference(self) -> str:
        """How a command names the task, as it may be published: a file by its last part."""
        return self.path if self.path and self.commit else Path(self.path or self.name).name

    def summary(self) -> TaskSummary:
        """The task as it stands in a document."""
        whole = self.name, self.reference, self.commit, self.sha256, len(self.items)
        suits = self.needs != "exact_match" and self.needs in self.metric.split("+")
        return TaskSummary(*whole, self.metric, self.why if suits else None, self.repeated)

    @property
    def examiner(self) -> Examiner | None:
        """What asks and judges its items, that of the first one; None where loraprobe does."""
        return next((item.examiner for item in self.items if item.examiner is not None), None)

    @property
    def named_adapters(self) -> set[str]:
        """The adapters that hops name."""
        return {hop.adapter for item in self.items for hop in item.hops if hop.adapter}

    @property
    def has_hops(self) -> bool:
        return any(item.hops for item in self.items)

    @property
    def has_cot(self) -> bool:
        return any(item.cot_prompt is not None for item in self.items)

    @property
    def parts(self) -> tuple[ItemPart, ...]:
        """The parts that at least one item has: the question, its hops, worked steps."""
        longest = max((len(item.hops) for item in self.items), default=0)
        hops = map(hop_part, range(longest))
        return (QUESTION, *hops, *((STEPS,) if self.has_cot else ()))


@dataclass(frozen=True)
class ProbePrompts:
    """Prompts for adapters without a task: questions or entities, and the answers that are known.

    answers: prompt -> its answer, None where it is not known.
    """

    answers: Mapping[str, str | None]


def of_one_question(items: Sequence[Item]) -> tuple[list[Item], int]:
    """The items with all copies of a question in one cluster, and how many clusters that saved.

    Copies have the same words as their prompt and the same choices; where the loss of the answer
    judges, also the same answers. Clusters that share a question become one.
    """
    first: dict[str, str] = {}  # a question -> the cluster of its first item
    into: dict[str, str] = {}  # a cluster -> the one that it became a part of

    def root(cluster: str) -> str:
        while cluster in into:
            cluster = into[cluster]
        return cluster

    for item in items:
        asked = [item.prompt.split(), sorted(item.choices)]
        asked += [sorted(item.answers)] if item.judge == LOSS else []
        one = root(first.setdefault(json.dumps(asked), item.cluster))
        if (other := root(item.cluster)) != one:
            into[other] = one
    joined = {*into, *map(root, into)}
    grouped = [
        replace(item, group=root(item.cluster)) if item.cluster in joined else item
        for item in items
    ]
    return grouped, len(into)


def fill(prompt: str, answers: Sequence[str]) -> str:
    """The prompt with `{k}` replaced by answer k, counted from 1.

    All replacements are made in one pass, so that braces in answers stay. A `{k}` without an answer
    stays too.
    """
    known = {str(k): answer for k, answer in enumerate(answers, 1)}
    return REFERENCE.sub(lambda found: known.get(found[1], found[0]), prompt)
