"""Evaluates scenarios with peft alone, and builds the shipped world with these outcomes.

    python -m loraprobe_lab.measure DIRECTORY

builds the world inside the package, with the table of its outcomes, in about six minutes of one
core; the package's own copy was made by this command.

Compositions are peft's `add_weighted_adapter(combination_type="cat")`, which is exact for constant
weights. Nothing of loraprobe's own composition is used, so the figures are an independent check.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import Question, System, questions
from loraprobe.records import Progress
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import load_task
from loraprobe_lab.training import load_base
from loraprobe_lab.world import Scenario, World, silent, write_text
from loraprobe_lab.worlds.couples import SHIPPED, small_world
from loraprobe_lab.worlds.spec import build_world

OUTCOMES = "outcomes.json"
Outcome = dict[str, Any]  # system, task, part, value, n


def build_shipped_world(output: str | Path, *, progress: Progress = silent) -> World:
    """Builds the shipped scenarios in `output` and writes their scores with peft.

    Rows carry scenario, system, task, part (question, hop1, hop2, steps), value (exact match) and
    n, for base, singles, average, sum and both controls. Resumable, like every build. Raises what
    `build_world` raises.
    """
    world = build_world(small_world(only=SHIPPED), output, progress=progress)
    assert world.base is not None
    rows = [
        {"scenario": scenario.name, **row}
        for scenario in world.scenarios.values()
        for row in measure(scenario, world.base)
    ]
    text = ",\n".join(map(json.dumps, rows))
    write_text(world.path / OUTCOMES, f"[\n{text}\n]\n")
    return world


def measure(
    scenario: Scenario,
    base: Path,
    *,
    systems: Mapping[str, Mapping[str, float]] | None = None,
    max_new_tokens: int = 24,
) -> list[Outcome]:
    """Scores systems (name -> adapter -> weight; `default_systems` without) on all parts."""
    model, tokenizer = load_base(base)
    wrapped = load_adapters(model, scenario.adapters)
    asked: dict[tuple[str, str], list[Question]] = {}
    for question in questions(load_task(task) for task in scenario.tasks):
        asked.setdefault((question.task, question.part), []).append(question)
    rows = []
    for system, weights in (systems or default_systems(list(scenario.adapters))).items():
        with composed(wrapped, weights) as composition:
            asking = ModelScorer(composition, tokenizer)
            for (task, part), own in asked.items():
                answers = ask(asking, own, System(system, "merge"), max_new_tokens)
                right = sum(answer.value for answer in answers)
                row = {"system": system, "task": task, "part": part}
                rows.append({**row, "value": round(right / len(own), 4), "n": len(own)})
    return rows


def default_systems(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Base, singles, average, sum, each adapter shrunk to 1/n, each with random partners."""
    count = len(names)
    systems: dict[str, dict[str, float]] = {"base": {}}
    systems |= {name: {name: 1.0} for name in names}
    systems["uniform"] = dict.fromkeys(names, 1 / count)
    systems["sum"] = dict.fromkeys(names, 1.0)
    systems |= {f"shrunk:{name}": {name: 1 / count} for name in names}
    for name in names:
        partners = {f"random:{other}": 1 / count for other in names if other != name}
        systems[f"random-partner:{name}"] = {name: 1 / count, **partners}
    return systems


def load_adapters(model: Any, adapters: Mapping[str, Path]) -> Any:
    """A PeftModel with every adapter, and a random one of matched norms beside each."""
    from peft import PeftModel

    first, *others = adapters
    wrapped = PeftModel.from_pretrained(model, str(adapters[first]), adapter_name=first)
    for name in others:
        wrapped.load_adapter(str(adapters[name]), adapter_name=name)
    for i, name in enumerate(adapters):
        wrapped.add_adapter(f"random_{name}", wrapped.peft_config[name])
        _randomise(wrapped, name, f"random_{name}", seed=i)
    return wrapped.eval()


def _randomise(wrapped: Any, name: str, random_name: str, seed: int) -> None:
    """Gaussian factors, each delta scaled to the Frobenius norm of the real one."""
    generator = torch.Generator().manual_seed(seed)
    for module in wrapped.modules():
        if name in getattr(module, "lora_A", {}):
            A, B = (factors[random_name].weight.data for factors in (module.lora_A, module.lora_B))
            A.copy_(torch.randn(A.shape, generator=generator))
            B.copy_(torch.randn(B.shape, generator=generator))
            real, random = map(module.get_delta_weight, (name, random_name))
            B.mul_(float(real.norm() / random.norm()))


@contextmanager
def composed(wrapped: Any, weights: Mapping[str, float]) -> Iterator[Any]:
    """The model with sum of weight times adapter; without weights the base."""
    if not weights:
        with wrapped.disable_adapter():
            yield wrapped
        return
    names = [name.replace(":", "_") for name in weights]
    wrapped.add_weighted_adapter(names, list(weights.values()), "composed", "cat")
    wrapped.set_adapter("composed")
    try:
        yield wrapped
    finally:
        wrapped.set_adapter(names[0])
        wrapped.delete_adapter("composed")


if __name__ == "__main__":
    build_shipped_world(sys.argv[1])
