"""What is kept of a trial: its audit, and which system answered which item right.

Cases can be computed from them again. Right and wrong are packed, eight to a byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraprobe.records import Compatibility as Compatible
from loraprobe.records import Coverage, Forecast, Issue, ItemResult, Measurement, Score
from loraprobe.verdict import Evidence
from loraprobe_lab.calibration.cases import CaseError
from loraprobe_lab.world import write_text

Column = tuple[str, str, str]  # system, task, part


@dataclass(frozen=True)
class Items:
    """Right or wrong of every system on every item of every part.

    `kinds`: system -> its kind. Each column has `right` [items], with `items` and `groups` naming
    the item and its cluster.
    """

    kinds: Mapping[str, str]
    columns: tuple[Column, ...]
    right: tuple[NDArray[np.bool_], ...]
    items: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, results: Sequence[ItemResult], kinds: Mapping[str, str]) -> Items:
        """From results by right or wrong; losses have no place here (ValueError)."""
        found: dict[Column, list[ItemResult]] = {}
        for row in results:
            if row.metric == "answer_loss":
                raise ValueError("losses are neither right nor wrong")
            found.setdefault((row.system, row.task, row.part), []).append(row)
        return cls(
            dict(kinds),
            tuple(found),
            tuple(np.array([r.value == 1.0 for r in rows]) for rows in found.values()),
            tuple(tuple(r.item for r in rows) for rows in found.values()),
            tuple(tuple(r.group for r in rows) for rows in found.values()),
        )

    def results(self) -> list[ItemResult]:
        """As results again."""
        rows = zip(self.columns, self.right, self.items, self.groups, strict=True)
        return [
            ItemResult(system, task, part, item, "exact_match", float(value), "", group)
            for (system, task, part), right, items, groups in rows
            for value, item, group in zip(right, items, groups, strict=True)
        ]

    def save(self, path: Path) -> None:
        """Writes one compressed .npz, complete or not at all; names that repeat are kept once."""
        listings = list(dict.fromkeys(zip(self.items, self.groups, strict=True)))
        head = {
            "kinds": dict(self.kinds),
            "columns": [list(column) for column in self.columns],
            "lengths": [len(right) for right in self.right],
            "listing": [listings.index(pair) for pair in zip(self.items, self.groups, strict=True)],
            "listings": listings,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.part.npz")
        bits = np.concatenate([np.packbits(right) for right in self.right])
        np.savez_compressed(part, bits=bits, head=np.frombuffer(_bytes(head), np.uint8))
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Items:
        """Raises CaseError for a file that is none."""
        try:
            with np.load(path) as file:
                head, bits = json.loads(file["head"].tobytes()), file["bits"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise CaseError(f"{path} holds no items: remove it and collect again.") from None
        right, start = [], 0
        for length in head["lengths"]:
            stop = start + (length + 7) // 8
            right.append(np.unpackbits(bits[start:stop], count=length).astype(bool))
            start = stop
        listings = [(tuple(items), tuple(groups)) for items, groups in head["listings"]]
        return cls(
            head["kinds"],
            tuple((system, task, part) for system, task, part in head["columns"]),
            tuple(right),
            tuple(listings[k][0] for k in head["listing"]),
            tuple(listings[k][1] for k in head["listing"]),
        )


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def write_audit(path: Path, document: Mapping[str, Any]) -> None:
    """Writes an audit's document, complete or not at all."""
    write_text(path, json.dumps(document, ensure_ascii=False) + "\n")


def read_audit(path: Path) -> dict[str, Any]:
    """Raises CaseError for a file that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CaseError(f"{path} holds no audit: remove it and collect again.") from None


def evidence_of(document: Mapping[str, Any]) -> Evidence:
    """The evidence that an audit's document holds, as it stood before any composition was run."""
    issues = tuple(_record(Issue, row) for row in document["compatibility"]["issues"])
    scores = tuple(_record(Score, row) for row in document["evaluation"])
    return Evidence(
        compatibility=Compatible(issues),
        diagnostics=tuple(_record(Measurement, row) for row in document["diagnostics"]),
        coverage=tuple(_record(Coverage, row) for row in document["coverage"]),
        forecasts=tuple(_record(Forecast, row) for row in document["forecasts"]),
        evaluation=scores,
        tasks=len({score.task for score in scores}),
        level="base",
    )


def _record(kind: type, row: Mapping[str, Any]) -> Any:
    """A record from plain data: lists become tuples where a tuple belongs."""
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) and _takes_tuple(hints[name]) else value
            for name, value in row.items()
            if name in known
        }
    )


def _takes_tuple(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_takes_tuple(one) for one in typing.get_args(hint))
    return typing.get_origin(hint) is tuple
