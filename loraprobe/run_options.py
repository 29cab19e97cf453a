"""The options that say how the file of a task is read, and on what a run is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from loraprobe.declarations import (
    MACHINE,
    TASKS,
    option,
    read_auto_or_count,
    read_executor,
    read_shard,
)
from loraprobe.errors import UsageError


@dataclass(frozen=True)
class TaskOptions:
    """How the file of a task is read, which `loraprobe.tasks.Layout` applies.

    One text for all tasks, or one for each in order, "" for a task that needs none.
    """

    fields: tuple[str, ...] = option(
        (),
        TASKS,
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; repeated: one for each task.",
        metavar="KEY=FIELD",
    )
    prompt_template: tuple[str, ...] = option(
        (),
        TASKS,
        "The prompt, with {field} for a field of the task's file; repeated: one for each task.",
        metavar="FILE|TEXT",
    )
    cot_template: tuple[str, ...] = option(
        (),
        TASKS,
        "The same of the prompt that asks for the steps (cot_prompt).",
        metavar="FILE|TEXT",
    )
    answer_after: tuple[str, ...] = option(
        (),
        TASKS,
        "The gold answer follows this text in its field, as #### in gsm8k; repeated: one for each "
        "task.",
    )
    answer_pattern: tuple[str, ...] = option(
        (),
        TASKS,
        "The gold answer is what this regular expression finds last in its field (its first "
        "group); repeated: one for each task.",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        given: Any = self.fields
        if any(isinstance(one, tuple) for one in given):  # a mapping, as Python has them
            pairs = ((key, [at] if isinstance(at, str) else at) for key, at in given)
            one_text = ",".join(f"{key}={','.join(names)}" for key, names in pairs)
            object.__setattr__(self, "fields", (one_text,))


@dataclass(frozen=True)
class MachineOptions:
    """Devices, precision, memory, and the processes that share the work."""

    device: str = option("auto", MACHINE, "auto, cpu, cuda[:n] or mps.")
    dtype: str = option(
        "auto", MACHINE, "Of the base: auto (by the device), float32, bfloat16 or float16."
    )
    quantize: Literal["none", "4bit", "8bit"] = option(
        "none", MACHINE, "Load the base as it is (none), in 4bit or in 8bit."
    )
    device_map: Literal["none", "auto"] = option(
        "none", MACHINE, "auto: spread the base over all devices (needs accelerate); or none."
    )
    trust_remote_code: bool = option(
        False, MACHINE, "Run model code that the base's repository holds."
    )
    run_unsafe_code: bool = option(
        False, MACHINE, "Let lm_eval: tasks run code that a model writes."
    )
    batch_size: int | Literal["auto"] = option(
        "auto", MACHINE, "Prompts a batch, or auto.", read=read_auto_or_count
    )
    threads: int | None = option(None, MACHINE, "CPU threads.", least=1, most=4096)
    shard: tuple[int, int] | None = option(
        None,
        MACHINE,
        "Compute only the I-th of N shares and write it to --output; combine joins them.",
        metavar="I/N",
        read=read_shard,
    )
    executor: str | None = option(
        None,
        MACHINE,
        "Compute on several processes: local[:N] (one a GPU, or N) or ray[://ADDRESS] (a cluster).",
        metavar="WHERE",
        read=read_executor,
    )

    def check_placement(self) -> None:
        """Raises UsageError where two options place the base."""
        if self.device_map == "auto" and self.device != "auto":
            raise UsageError("--device-map auto places the base by itself; leave --device out.")
