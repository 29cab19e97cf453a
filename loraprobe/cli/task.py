"""`loraprobe task sample`: the questions of a file as a model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from loraprobe.cli.parameters import EVALUATION, TasksArgument, setting
from loraprobe.cli.running import Output, imports_done
from loraprobe.errors import UsageError
from loraprobe.formatting import clean, count, shortly, wrapped
from loraprobe.options import Options
from loraprobe.records import QUESTION, STEPS

if TYPE_CHECKING:
    from loraprobe.scoring import Encoder

SHOWN = 3  # items of each task, unless a number is given
READ_PLAIN = "the first line of the reply is compared with it."
READ_STEPS = "what follows the last ####, \\boxed{} or 'answer is' is compared with it."


def sample(
    options: Options,
    output: Output,
    files: TasksArgument,
    base: Annotated[
        str | None, setting("REF", "Base model, for its chat template and its tokens.")
    ] = None,
    limit: Annotated[
        int | None, setting("N", "Show the first N items (3 unless set).", EVALUATION)
    ] = None,
) -> None:
    """Show questions as a model will read them, with the right answer and how it is judged.

    With --base in its chat template, if it has one (--chat-template off: without), and with their
    numbers of tokens; only its tokenizer is loaded.
    """
    from loraprobe.evaluation.questions import questions
    from loraprobe.pipeline.task_files import open_tasks

    imports_done()
    tasks, encoder = open_tasks(files, options), _encoder(base, options)
    few = [replace(task, items=task.items[: limit or SHOWN]) for task in tasks]
    rows: list[dict[str, Any]] = [
        {
            "task": one.task,
            "item": one.item.id,
            "part": one.part,
            "prompt": one.prompt if encoder is None else encoder.text(one.prompt),
            "tokens": None if encoder is None else len(encoder.prompts([one.prompt])[0]),
            "answers": one.answers,
            "choices": one.item.choices if one.metric == "choice" else (),
            "metric": one.metric,
        }
        for one in questions(few)
    ]
    if output.document("task sample", {"previews": rows}):
        return
    examiners = {task.name: task.examiner.name if task.examiner else "" for task in tasks}
    width = Console().width
    for row in rows:
        tokens = "" if encoder is None else f", {count(row['tokens'], 'token')}"
        part = row["part"]
        form = {QUESTION: "asked plainly", STEPS: "asked step by step"}.get(part, part)
        print(clean(f"--- {row['task']}, item {row['item']}, {form}{tokens}"))
        print("\n".join(map(clean, row["prompt"].split("\n"))))
        print("\n".join(_judged(row, width, examiners[row["task"]])), end="\n\n")
    if base is None:
        print("As the file has it; --base REF shows the base's chat template and tokens.")


def _encoder(reference: str | None, options: Options) -> Encoder | None:
    """How the base reads a prompt, by its tokenizer alone; None without a base.

    In its chat template, if it has one. Raises LoraprobeError for a base without a tokenizer,
    UsageError for a template that was asked for and is not there.
    """
    if reference is None:
        if options.chat_template == "on":
            raise UsageError("--chat-template=on needs the template of a base; add --base=REF.")
        return None
    if reference == "auto":
        raise UsageError("--base=auto takes the base of adapters, and here are none; name it.")
    from loraprobe.base.loading import load_tokenizer
    from loraprobe.pipeline.inputs import base_of
    from loraprobe.scoring import Encoder

    base = base_of(reference, (), code=options.trust_remote_code)
    tokenizer = load_tokenizer(base, options.trust_remote_code)
    has = bool(getattr(tokenizer, "chat_template", None))
    return Encoder(tokenizer, {"on": True, "off": False, "auto": has}[options.chat_template])


def _judged(row: Mapping[str, Any], width: int, examiner: str) -> Iterator[str]:
    """The right answers, and how a reply is judged, in lines of so many columns.

    examiner: who judges it, where loraprobe does not.
    """
    right = " or ".join(map(repr, row["answers"]))
    from loraprobe.tasks import METRICS

    metric = METRICS.get(row["metric"])
    how = READ_STEPS if row["part"] == STEPS else READ_PLAIN
    how = f"{examiner} filters and judges the reply." if metric is None else metric.reading or how
    choices = f" Choices: {shortly(row['choices'])}." if row["choices"] else ""
    yield from wrapped(clean(f"--- right: {right}. {row['metric']}: {how}{choices}"), width)
