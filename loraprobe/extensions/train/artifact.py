"""The adapter that was trained, as it is written with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from loraprobe.adapters import Adapter, Composed
from loraprobe.extensions.train.part import TrainedRecord
from loraprobe.records import LOAD_ADAPTER, BaseSummary

TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, eq=False)
class TrainedAdapter(Composed):
    """An adapter that was trained on questions of tasks.

    tasks: name -> sha256 of its file.
    """

    adapter: Adapter
    record: TrainedRecord
    base: BaseSummary
    tasks: Mapping[str, str]

    library: ClassVar[str] = "peft"
    tag: ClassVar[str] = "trained"
    template: ClassVar[Any] = TEMPLATE
    load: ClassVar[str] = LOAD_ADAPTER
    takes_weights: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.record.system

    @property
    def written(self) -> Adapter:
        return self.adapter

    @property
    def choices(self) -> dict[str, Any]:
        """How it was trained, as the front matter of its card has it."""
        return {"trained": {**asdict(self.record), "tasks": dict(self.tasks)}}

    @property
    def card_values(self) -> dict[str, Any]:
        return {"record": self.record, "tasks": list(self.tasks)}

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        self.adapter.save(directory, overwrite=overwrite, card=self.card)
