"""Measure a natural-language world with peft alone: what each composition answers, part by part.

    python measure.py WORLD [SCENARIO] [--system NAME=W,W] [--part cot] [--wordings N]

Compositions are peft's `add_weighted_adapter(combination_type="cat")`, the exact weighted sum of
the deltas, so the figures check loraprobe's own composition from outside; only the reading of the
answers is shared. Rows go to standard output as they come, one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Task, answered, fill, load_task
from loraprobe_lab.measure import composed, default_systems, load_adapters
from loraprobe_lab.world import World

LENGTHS = {"cot": 32}  # new tokens; the other parts answer in a name
Pairs = list[tuple[str, tuple[str, ...], str | None]]  # prompt, answers, pattern


def parts(task: Task, wordings: int | None) -> dict[str, Pairs]:
    """Prompts of each part; hops are asked with the gold answers of those before."""
    found: dict[str, Pairs] = {"hop1": [], "hop2": [], "target": [], "cot": []}
    seen: dict[str, int] = {}
    for item in task.items:
        seen[item.group or item.id] = seen.get(item.group or item.id, 0) + 1
        if wordings is not None and seen[item.group or item.id] > wordings:
            continue
        gold = [hop.answers[0] for hop in item.hops]
        for i, hop in enumerate(item.hops):
            found[f"hop{i + 1}"].append((fill(hop.prompt, gold[:i]), hop.answers, None))
        found["target"].append((item.prompt, item.answers, None))
        if item.cot_prompt:
            found["cot"].append((item.cot_prompt, item.answers, item.answer_pattern))
    return found


def systems(names: list[str], extra: list[str]) -> dict[str, dict[str, float]]:
    """The default systems, or those given as NAME=W,W with one weight an adapter."""
    if not extra:
        return default_systems(names)
    rows = {}
    for text in extra:
        name, _, weights = text.partition("=")
        pairs = zip(names, map(float, weights.split(",")), strict=True)
        rows[name] = {adapter: weight for adapter, weight in pairs if weight}
    return rows


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    world = World.load(arguments.world)
    scenario = world.scenario(arguments.scenario or next(iter(world.scenarios)))
    base = world.base or Path(world.base_name)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    wrapped = load_adapters(model, scenario.adapters)
    asked = parts(load_task(scenario.tasks[0]), arguments.wordings)
    for system, weights in systems(list(scenario.adapters), arguments.system).items():
        with composed(wrapped, weights) as composition:
            for part in arguments.part or asked:
                pairs = asked[part]
                prompts = [prompt for prompt, _, _ in pairs]
                length = LENGTHS.get(part, 12)
                texts = ModelScorer(composition, tokenizer).generate(prompts, max_new_tokens=length)
                right = [
                    answered(text, answers, cot=part == "cot", pattern=pattern)
                    for text, (_, answers, pattern) in zip(texts, pairs, strict=True)
                ]
                yield {
                    "scenario": scenario.name,
                    "system": system,
                    "part": part,
                    "value": round(sum(right) / len(right), 3),
                    "n": len(right),
                    "example": texts[0],
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("scenario", nargs="?")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=W,W")
    parser.add_argument("--wordings", type=int, help="of each fact, instead of all three")
    parser.add_argument("--part", action="append", choices=["hop1", "hop2", "target", "cot"])
    for row in rows(parser.parse_args()):
        print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
