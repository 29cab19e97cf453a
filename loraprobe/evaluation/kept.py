"""Kept answers: the results of a run, in memory and in a file that `--resume` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loraprobe.defaults import HARNESS, LOSS
from loraprobe.records import ItemPart, ItemResult
from loraprobe.results import NAME, JsonLines
from loraprobe.tasks import METRICS

FLAGS = {"contains", "cut"}
MOST_LOSS = 1e4  # nats per token; `scoring` clamps log-probabilities at -1e4

Key = tuple[str, str, str, str]  # system, task, part, item


class Ledger(JsonLines[ItemResult]):
    """The results of this run and of the run that it resumes, by system, task, part and item.

    path: a .jsonl file, or a directory for `results.jsonl`, or None to use memory only. resume,
    fingerprint and errors are those of `JsonLines`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        resume: bool = False,
        *,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        file = None if path is None else Path(path)
        if file is not None and file.suffix != ".jsonl":
            file = file / NAME
        super().__init__(file, resume, fingerprint or {}, item_result)
        self._results: dict[Key, ItemResult] = {row.key: row for row in self.rows}

    def append(self, rows: Iterable[ItemResult]) -> None:
        """Add a batch and write it to the disk before returning."""
        batch = list(rows)
        if batch:
            super().append(map(dataclasses.asdict, batch))
        self._results.update({result.key: result for result in batch})

    def add_missing(self, results: Iterable[ItemResult]) -> None:
        """`append` of those of which there is no result yet."""
        self.append([result for result in results if result.key not in self._results])

    def get(self, system: str, task: str, part: str, item: str) -> ItemResult | None:
        """One result, or None if there is none yet."""
        return self._results.get((system, task, part, item))

    def __iter__(self) -> Iterator[ItemResult]:
        return iter(self._results.values())

    def __len__(self) -> int:
        return len(self._results)


def item_result(row: Any) -> ItemResult:
    """A result from a JSON value. Raises ValueError for a row that no run writes.

    Its value must be 0 or 1, for a metric of lm-evaluation-harness from 0 to 1, and for the metric
    "answer_loss" between 0 and MOST_LOSS nats.
    Rows of earlier versions have no FLAGS.
    """
    names = {field.name for field in dataclasses.fields(ItemResult)}
    if not (isinstance(row, dict) and names - FLAGS <= row.keys() <= names):
        raise ValueError("other keys")
    if not all(isinstance(row[flag], bool) for flag in FLAGS & row.keys()):
        raise ValueError("another type")
    value, texts = row["value"], [row[name] for name in names - FLAGS - {"value"}]
    if type(value) is not float or not all(isinstance(text, str) for text in texts):
        raise ValueError("another type")
    "".join(texts).encode("utf-8")  # a lone surrogate is a ValueError
    harness = row["metric"].startswith(HARNESS)
    if not (harness or row["metric"] in METRICS):
        raise ValueError("an unknown metric")
    most = MOST_LOSS if row["metric"] == LOSS else 1.0
    sound = 0 <= value <= most and (harness or most > 1 or value in (0, 1))
    if not sound:
        raise ValueError("no value of this metric")
    return ItemResult(**row | {"part": ItemPart(row["part"])})
