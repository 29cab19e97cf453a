"""Data sets of the Hub as tasks, `hf://datasets/owner/name`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprobe.extension import Extension, TaskSource

if TYPE_CHECKING:
    from loraprobe.options import Options
    from loraprobe.tasks import FieldMap, Task

DATASET = "hf://datasets/"  # what a reference begins with


class Splits(TaskSource):
    """The splits of data sets, each at one commit."""

    help = "hf:// for a data set of the Hub"

    def claims(self, reference: str) -> bool:
        return reference.startswith(DATASET)

    def open(self, reference: str, options: Options, layout: FieldMap) -> Sequence[Task]:
        from loraprobe.extensions.data_sets.splits import resolve_dataset
        from loraprobe.tasks import Task, read_task

        split = resolve_dataset(reference)
        source = Task(split.name, (), split.reference, commit=split.commit)
        return [read_task(split.files, source, options.limit, layout)]


class DataSets(Extension):
    """Reads tasks from the Hub."""

    task_sources = (Splits(),)


EXTENSION = DataSets()
