"""Evaluating K adapters on one base against the lm-evaluation-harness, which has to be installed.

  python benchmarks/evaluation_vs_harness.py [--model DIR] [--runs 5] [--items 100] [--systems 3]

harness    a process for each adapter, the items as a task with four choices; loraprobe answers
           them in one process, loading included
lm_eval:   the same items asked by loraprobe, as tasks of the harness and as items of our own
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from machine import aim, clocked, interleaved, ratios, script, table
from random_llama import NEW_TOKENS, arguments, ask, made, scorer_of, systems

TASK = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}]
"""
WRITTEN = """task: local_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


def answer(base: str, adapters: list[str], file: str) -> list[float]:
    """The accuracy of every system on the four choices, by loraprobe, the base loaded once."""
    items = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    pairs = [(item["prompt"], choice) for item in items for choice in item["choices"]]
    rows = ask(scorer_of(base), systems(adapters), lambda s: s.loglikelihood(pairs))
    gold = torch.tensor([item["gold"] for item in items])
    return [
        float(
            (torch.tensor([one.logprob for one in row]).view(-1, 4).argmax(1) == gold)
            .double()
            .mean()
        )
        for row in rows
    ]


def harness(base: str, adapters: list[str], folder: str) -> list[float]:
    """The accuracy of the one adapter given, by lm-evaluation-harness."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": base, "peft": adapters[0], "dtype": "float32"},
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        device="cpu",
        batch_size=64,
        bootstrap_iters=0,
    )
    return [found["results"]["local_choice"]["acc,none"]]


def write_tasks(items: list[dict], scratch: str) -> Path:
    """A folder with the items as tasks of the harness."""
    folder = Path(scratch) / "task"
    folder.mkdir(exist_ok=True)
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK.format(file=file), encoding="utf-8")
    (folder / "written.yaml").write_text(WRITTEN.format(file=file), encoding="utf-8")
    return folder


def against_own(base: str, adapters: list[str], items: list[dict], scratch: str, runs: int) -> None:
    """The same tokens asked through the harness's tasks, and as items of our own."""
    from loraprobe.evaluation.asking import ask as ask_questions
    from loraprobe.evaluation.questions import questions
    from loraprobe.extensions.harness.tasks import load_harness
    from loraprobe.tasks import Item, Task

    folder, scorer, compositions = write_tasks(items, scratch), scorer_of(base), systems(adapters)
    own = {
        name: Task(
            name,
            tuple(
                Item(
                    str(i), one["prompt"], (one["answer"],), tuple(one["choices"]) if choice else ()
                )
                for i, one in enumerate(items)
            ),
        )
        for name, choice in (("local_choice", True), ("local_written", False))
    }
    for name, ours in own.items():
        (theirs,) = load_harness(f"lm_eval:{name}@{folder}", run_unsafe_code=True)

        def asked(task: Task) -> Any:
            every = questions([task])
            return ask(scorer, compositions, lambda s: ask_questions(s, every, "one", NEW_TOKENS))

        kinds = {
            "own items": lambda task=ours: clocked(lambda: asked(task)),
            "lm_eval:": lambda task=theirs: clocked(lambda: asked(task)),
        }
        found = interleaved(kinds, runs)
        aim(
            f"{name} through the harness's task / as own items",
            ratios(found["lm_eval:"], found["own items"]),
            1.1,
        )


def against_harness(base: str, adapters: list[str], items: list[dict], scratch: str) -> None:
    folder = write_tasks(items, scratch)
    file = folder / "items.jsonl"
    told: dict[str, list[float]] = {}

    def child(kind: str, some: list[str], where: Path) -> float:
        command = script("evaluation_vs_harness.py", "--child", kind, base, where, *some)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        told.setdefault(kind, []).extend(json.loads(done.stdout.splitlines()[-1]))
        return 0.0

    def ours() -> None:
        child("answer", adapters, file)

    def theirs() -> None:
        for adapter in adapters:
            child("harness", [adapter], folder)

    kinds = {"harness": lambda: clocked(theirs), "loraprobe": lambda: clocked(ours)}
    found = interleaved(kinds, 3, warm=0)
    k = len(adapters)
    gap = max(abs(a - b) for a, b in zip(told["answer"], told["harness"], strict=True))
    print(
        f"  whole processes, {k} systems, {len(items)} items with 4 choices; accuracies differ "
        f"by at most {gap:.3f}"
    )
    table(found, "the harness", "harness")


def main() -> None:
    parser = arguments(str(__doc__))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, base, where, *adapters = options.child
        print(json.dumps((answer if kind == "answer" else harness)(base, adapters, where)))
        return
    with made(options) as (base, adapters, items, scratch):
        against_own(base, adapters, items, scratch, options.runs)
        against_harness(base, adapters, items, scratch)


if __name__ == "__main__":
    main()
