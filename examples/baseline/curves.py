"""Measures learning curves: what LoRAs score that are trained on 8, 16 ... questions.

python curves.py OUT.jsonl BASE TASK.jsonl [BASE TASK.jsonl ...] [--most 128] [--seeds 2]

A line for each base, task, number of questions and seed, written as it comes; what stands there
already is not measured again. Up to SCORED questions that nothing was trained on are scored.
--start: adapters whose mean, or with --weight 1 whose sum, is added to the base first.
"""

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from loraprobe.adapters import read_adapter
from loraprobe.base import load_base, open_base
from loraprobe.composition import Composition
from loraprobe.evaluation import System
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.train.recipe import recipe_of, sizes
from loraprobe.extensions.train.source import held_out_of
from loraprobe.extensions.train.training import encoded, trained
from loraprobe.records import QUESTION
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import load_task
from loraprobe.tasks.splits import drawn

SCORED, RECIPE = 100, recipe_of("train:curve=true")


def score(scorer, asked):
    """The share of right answers."""
    results = ask(scorer, asked, System("asked", "base"), None)
    return sum(row.value for row in results) / len(results)


def points(scorer, task, most, seed, known):
    """Rows of one task: the number of questions, the score, the steps and the CPU seconds."""
    parts = drawn([task], [most], seed)
    left = replace(parts.left[0], items=parts.left[0].items[:SCORED])
    asked = [one for one in questions([left]) if one.part == QUESTION]
    if 0 not in known:
        yield {"n": 0, "score": score(scorer, asked), "scored": len(asked)}
    for n in sizes(RECIPE, most):
        if n in known:
            continue
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
    read.add_argument("--dtype", default="float32", help="in which the base computes")
    read.add_argument("--start", nargs="*", default=[], help="adapters")
    read.add_argument("--weight", type=float, help="of each of them; without it their mean")
    given = read.parse_args()
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    rows = [json.loads(line) for line in lines]
    experts = [read_adapter(Path(one), Path(one).name) for one in given.start]
    gates = [given.weight or 1 / len(experts) for _ in experts]
    named = {"start": " + ".join(one.name for one in experts)} if experts else {}
    merge = Composition("start", experts, ConstantGates(gates)) if experts else None
    for seed in range(given.seeds):
        for base, task in zip(given.pairs[::2], given.pairs[1::2], strict=True):
            key = {"base": Path(base).parent.name, "task": Path(task).stem, "seed": seed} | named
            known = {
                r["n"]
                for r in rows
                if {k: r.get(k) for k in (*key, "start")} == {"start": None} | key
            }
            dtype = getattr(torch, given.dtype)
            loaded = load_base(open_base(base), device=torch.device("cpu"), dtype=dtype)
            scorer = ModelScorer(loaded.model, loaded.tokenizer)
            with scorer.with_composition(merge) if merge else nullcontext():
                for row in points(scorer, load_task(task), given.most, seed, known):
                    with given.out.open("a") as out:
                        out.write(json.dumps(key | row) + "\n")


if __name__ == "__main__":
    main()
