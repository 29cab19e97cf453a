"""What each adapter alone solves of a task without hops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraprobe.coverage._contract import Study


@dataclass(frozen=True)
class Singles:
    """Adapter -> item -> right or wrong, on the items on which all of them were measured."""

    right: Mapping[str, Mapping[str, float]]
    items: tuple[str, ...]
    clusters: tuple[str, ...]

    @classmethod
    def of(cls, study: Study) -> Singles | None:
        """None for a task with hops, and where an adapter was not measured."""
        target = study.parts[0]
        right = {name: study.right(name, target) for name in study.adapters}
        common = [q for q in target.questions if all(q.item in rows for rows in right.values())]
        if study.task.has_hops or not right or not common:
            return None
        return cls(right, tuple(q.item for q in common), tuple(q.cluster for q in common))

    def score(self, name: str) -> float:
        """Share of items that an adapter solves."""
        return sum(self.right[name][item] for item in self.items) / len(self.items)

    @property
    def best(self) -> str:
        """The adapter with the best score; the first of equals."""
        return max(self.right, key=self.score)
