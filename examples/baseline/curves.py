"""Measures learning curves: what LoRAs score that are trained on 8, 16 ... questions.

python curves.py OUT.jsonl BASE TASK.jsonl [BASE TASK.jsonl ...] [--most 128] [--seeds 2]

A line for each base, task, number of questions and seed, written as it comes; what stands there
already is not measured again. Up to SCORED questions that nothing was trained on are scored.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from loraprobe.base import load_base, open_base
from loraprobe.evaluation import System
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.train.recipe import recipe_of, sizes
from loraprobe.extensions.train.source import held_out_of
from loraprobe.extensions.train.training import encoded, trained
from loraprobe.records import QUESTION
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import load_task
from loraprobe.tasks.splits import drawn

SCORED, RECIPE = 100, recipe_of("train:curve=true")


def score(scorer, asked):
    """The share of right answers."""
    results = ask(scorer, asked, System("asked", "base"), None)
    return sum(row.value for row in results) / len(results)


def curve(base, task, most, seed):
    """Rows of one task: the number of questions, the score, the steps and the CPU seconds."""
    loaded = load_base(open_base(base), device=torch.device("cpu"), dtype=torch.float32)
    scorer, whole = ModelScorer(loaded.model, loaded.tokenizer), load_task(task)
    parts = drawn([whole], [most], seed)
    left = replace(parts.left[0], items=parts.left[0].items[:SCORED])
    asked = [one for one in questions([left]) if one.part == QUESTION]
    yield {"n": 0, "score": score(scorer, asked), "scored": len(asked)}
    for n in sizes(RECIPE, most):
        learned, held_out = held_out_of(drawn(parts.apart, [n], seed).apart, seed)
        rows = (encoded(scorer, tasks[0].items) for tasks in (learned, held_out))
        begun = time.process_time()
        with trained(scorer, *rows, RECIPE, seed, lambda *_: None) as (_, made):
            spent = time.process_time() - begun
            found = {"n": n, "score": score(scorer, asked), "scored": len(asked)}
            yield found | {"steps": made.steps, "best": made.best_step, "seconds": round(spent, 1)}


def main():
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("out", type=Path)
    read.add_argument("pairs", nargs="+", help="BASE TASK.jsonl ...")
    read.add_argument("--most", type=int, default=128)
    read.add_argument("--seeds", type=int, default=2)
    given = read.parse_args()
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    known = {(row["base"], row["task"], row["seed"]) for row in map(json.loads, lines)}
    for seed in range(given.seeds):
        for base, task in zip(given.pairs[::2], given.pairs[1::2], strict=True):
            key = {"base": Path(base).parent.name, "task": Path(task).stem, "seed": seed}
            if tuple(key.values()) in known:
                continue
            rows = [key | row for row in curve(base, task, given.most, seed)]
            with given.out.open("a") as out:
                out.write("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
