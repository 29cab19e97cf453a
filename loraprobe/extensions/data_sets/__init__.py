"""Tasks in files of another form, and data sets of the Hub, `hf://datasets/owner/name`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import Extension, TaskSource, task_sources
from loraprobe.formatting import count
from loraprobe.options import AddedOptions, Options, as_fields, option

if TYPE_CHECKING:
    from loraprobe.tasks import Task

DATASET = "hf://datasets/"  # what a reference begins with
ENDINGS = (".json", ".csv", ".tsv", ".parquet")  # of files whose form is not our own


@dataclass(frozen=True)
class FieldOptions(AddedOptions):
    """How the file of a task is read: one text for all tasks or one for each, "" for none."""

    title: ClassVar[str] = "Files of another form"

    fields: tuple[Any, ...] = option(
        (),
        "KEY=FIELD",
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; prompt and cot_prompt may be texts with {field} for a field; after=TEXT: "
        "the gold answer follows this text in its field, as #### in gsm8k; repeated: one for each "
        "task.",
        affects={"questions"},
        plain=True,
        commands=(
            *("inspect", "merge-and-eval", "screen", "merge", "route"),
            *("task check", "task sample"),
        ),
    )

    def __post_init__(self) -> None:
        if any(isinstance(one, tuple) for one in self.fields):  # a mapping, as Python has them
            object.__setattr__(self, "fields", (as_fields(dict(self.fields)),))

    def for_each(self, tasks: Sequence[Any], guards: Sequence[Any]) -> list[AddedOptions]:
        """Given once it is for all tasks, else for the tasks in order, after which guards may have
        theirs."""
        texts, references = self.fields, (*tasks, *guards)
        if texts and not tasks:
            raise UsageError("--fields says how a task is read; add --task=FILE.")
        if len(texts) not in (0, 1, len(tasks), len(references)):
            raise UsageError(
                f"--fields is given {len(texts)} times for {count(len(tasks), 'task')}; give it "
                "once for all, or once for each in order ('' where a task needs none)."
            )
        own = texts * len(tasks) if len(texts) == 1 else texts
        each = (*own, *[""] * (len(references) - len(own)))
        others = [source for source in task_sources() if not isinstance(source, DataFiles)]
        for one, text in zip(references, each, strict=True):
            named = text and isinstance(one, (str, Path))
            if named and any(source.claims(str(one)) for source in others):
                raise UsageError(
                    f"--fields cannot be used with {one}:", "give a task file (JSONL)."
                )
        return [FieldOptions((text,) if text else ()) for text in each]


class DataFiles(TaskSource):
    """Files of another form, and the splits of data sets, each at one commit."""

    help = "JSON, CSV, TSV, Parquet, hf:// for a data set of the Hub"

    def claims(self, reference: str) -> bool:
        return reference.startswith(DATASET)

    def reads(self, path: Path, options: Options) -> bool:
        return bool(_fields(options)) or path.suffix.lower() in ENDINGS

    def open(self, reference: str, options: Options) -> Sequence[Task]:
        from loraprobe.extensions.data_sets.layouts import FieldMap
        from loraprobe.tasks import Task, read_task

        fields = _fields(options)
        files: Sequence[Path] = [path := Path(reference)]
        task = Task(path.stem, (), str(path), layout=fields)
        if self.claims(reference):
            from loraprobe.extensions.data_sets.splits import resolve_dataset

            split = resolve_dataset(reference)
            files, commit = split.files, split.commit
            task = replace(task, name=split.name, path=split.reference, commit=commit)
        return [read_task(files, task, options.limit, FieldMap.of(fields).rows)]

    def hint(self, row: Mapping[str, Any], unknown: str) -> str:
        from loraprobe.extensions.data_sets.layouts import hint

        return hint(row, unknown)


def _fields(options: Options) -> str:
    """The --fields of one task; "" without."""
    return next(iter(options.of_extension(FieldOptions).fields), "")


class DataSets(Extension):
    """Reads tasks of other forms than the core's own."""

    options = FieldOptions
    task_sources = (DataFiles(),)


EXTENSION = DataSets()
