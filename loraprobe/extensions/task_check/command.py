"""The command line of `task new` and `task check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from loraprobe.cli.parameters import TasksArgument, argument
from loraprobe.cli.running import Output, imports_done
from loraprobe.errors import OutputError, unwritable
from loraprobe.formatting import count, listing, wrapped
from loraprobe.options import Options
from loraprobe.records import STEPS
from loraprobe.report.parts import Answer, Line
from loraprobe.report.terminal import print_answer

if TYPE_CHECKING:
    from loraprobe.extensions.task_check.checking import TaskCheck

# What a verdict is about.
SEVERAL_TASKS = (
    "Several tasks: the verdict says whether one model keeps several skills (retention)."
)
ONE_TASK = (
    "One task: the verdict says whether a composition does what no adapter does alone. "
    "Name several to learn whether one model keeps several skills."
)
STARTER = """\
{"id": "1", "prompt": "Question: Who wrote Faust?\\nAnswer:", "answer": ["Goethe", "Johann Wolfgang von Goethe"]}
{"id": "2", "prompt": "The opposite of hot is", "answer": "cold", "choices": ["cold", "warm", "loud"]}
{"id": "3", "prompt": "Question: In which city does the author of The Lake live?\\nAnswer:", "answer": "Ulm", "cot_prompt": "Question: In which city does the author of The Lake live?\\nName the author first, then end with #### and the city.\\nAnswer:", "hops": [{"prompt": "Question: Who is the author of The Lake?\\nAnswer:", "answer": "Ada"}, {"prompt": "Question: In which city does {1} live?\\nAnswer:", "answer": "Ulm"}], "group": "Ada"}
"""  # noqa: E501
EXPLAINED = """\
prompt       what a system is asked, as the model reads it; answer: the right answer,
             or a list of all of them. The first line of the reply must equal one.
choices      the reply is not written: the most likely choice counts as the answer.
cot_prompt   the same question asked so that the steps are written out. More
             compositions succeed in this form. What follows #### is the answer.
hops         the steps as questions of their own, one adapter's knowledge each; {1} is
             the first one's answer. They tell why a composition fails, and let a
             chain of the adapters answer. "adapter": NAME may say who learned a step.
group        items that share it are one cluster, such as questions about one person.
id           names an item in reports; without it the number of its line.

Replace the three items by at least 30 of your own, 100 or more where you can."""


def new(
    file: Annotated[Path, argument("FILE", "The file to write (JSONL).", typed=True)],
) -> None:
    """Write a task file of three examples to replace, and explain its keys."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(STARTER)
    except FileExistsError:
        raise OutputError(f"{file} exists; choose another name.") from None
    except OSError as error:
        raise unwritable(file, error) from None
    print(f"{EXPLAINED}\n\nWrote {file}. next: loraprobe task check {file}")


def check(options: Options, output: Output, files: TasksArgument) -> None:
    """Tell what task files allow a verdict to say, and how many questions decide.

    No model is loaded. Exit code 2 if a file cannot be used.
    """
    from loraprobe.extensions.task_check.checking import check_task
    from loraprobe.pipeline.task_files import open_tasks

    imports_done()
    tasks = open_tasks(files, options)
    margin = options.needed_gain
    checks = [check_task(task, margin) for task in tasks]
    if output.document("task check", {"margin": margin, "tasks": checks}):
        return
    console = Console(highlight=False)
    for one in checks:
        print_answer(console, _described(one, margin))
        print()
    about = SEVERAL_TASKS if len(checks) > 1 else ONE_TASK
    print("\n".join(wrapped(about, console.width)))


def _described(task: TaskCheck, margin: float) -> Answer:
    """What one task holds, and what it allows to tell."""
    about = task.task
    grouped = f" in {count(task.clusters, 'group')}" if task.clusters < about.items else ""
    judged = listing(f"{name} ({n:,})" for name, n in task.metrics.items())
    since = f", since {about.metric_why}" if about.metric_why else ""
    hops = " and ".join(f"{n:,}" for part, n in task.parts.items() if part.hop)
    lines: list[Line] = [("from", about.reference)] if about.commit else []
    lines.append(("asked", f"plainly {about.items:,}, judged by {judged}{since}"))
    lines.append(("asked", f"step by step {task.parts.get(STEPS, 0):,}; hop by hop {hops or 0}"))
    if task.needed:
        told = "this many questions decide a gain over the best alone in 80 % of all runs:"
        lines.append(("needs", told))
    for row in task.needed:
        few, many = (f"{n:,}" if n else "over 5,000" for n in (row.none_lost, row.some_lost))
        lost = f"; {many} if a tenth of all answers turns wrong" if many != few else ""
        lines.append(("needs", f"gain {row.gain:.2f}: {few}{lost}"))
    if task.smallest_gain is not None:
        told = f"these {task.clusters:,} decide gains from about {task.smallest_gain:.2f}"
        lines.append(("decides", f"{told} (margin {margin:g})"))
    lines += [("watch", finding) for finding in task.findings.values()]
    questions = "question" if about.items == 1 else "questions"
    return Answer("", f"{about.name}: {about.items:,} {questions}{grouped}", tuple(lines))
