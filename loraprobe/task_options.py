"""The options that say how the file of a task is read; `loraprobe.tasks.Layout` applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraprobe.declarations import TASKS, option


@dataclass(frozen=True)
class TaskOptions:
    """One text for all tasks, or one for each in order, "" for a task that needs none."""

    fields: tuple[str, ...] = option(
        (),
        TASKS,
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; repeated: one for each task.",
        metavar="KEY=FIELD",
        repeats=True,
    )
    prompt_template: tuple[str, ...] = option(
        (),
        TASKS,
        "The prompt, with {field} for a field of the task's file; repeated: one for each task.",
        metavar="FILE|TEXT",
        repeats=True,
    )
    cot_template: tuple[str, ...] = option(
        (),
        TASKS,
        "The same of the prompt that asks for the steps (cot_prompt).",
        metavar="FILE|TEXT",
        repeats=True,
    )
    answer_after: tuple[str, ...] = option(
        (),
        TASKS,
        "The gold answer follows this text in its field, as #### in gsm8k; repeated: one for each "
        "task.",
        repeats=True,
    )
    answer_pattern: tuple[str, ...] = option(
        (),
        TASKS,
        "The gold answer is what this regular expression finds last in its field (its first "
        "group); repeated: one for each task.",
        metavar="REGEX",
        repeats=True,
    )

    def __post_init__(self) -> None:
        given: Any = self.fields
        if any(isinstance(one, tuple) for one in given):  # a mapping, as Python has them
            pairs = ((key, [at] if isinstance(at, str) else at) for key, at in given)
            one_text = ",".join(f"{key}={','.join(names)}" for key, names in pairs)
            object.__setattr__(self, "fields", (one_text,))
