"""The library of many adapters, and what its pairs answer by brute force."""

import json
import random

import pytest
import torch

from loraprobe_lab.experiments.pairs import Asked, MergedBase, _sets
from loraprobe_lab.measure import composed, load_adapters
from loraprobe_lab.training import load_base
from loraprobe_lab.world import read_lines, shipped_world
from loraprobe_lab.worlds import library
from loraprobe_lab.worlds.couples import FactSizes

SMALL = FactSizes(familiar=24, newcomers=16, strangers=24, cities=6, reserve=16)


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "LISTS", 40)
        patch.setattr(library, "ASKED", 12)
        yield library.library_world(1, SMALL)


def test_adapters_know_the_quarters_that_they_are_said_to_know(small):
    guests = [item["prompt"] for item in small.tasks["guests"]]
    for made in small.training:
        if made.name.startswith("answers"):
            known = {
                at % 4
                for at, prompt in enumerate(guests)
                if any(text.prompt == prompt for text in made.examples)
            }
            said = {int(part[-1]) for part in made.description.partition(": ")[2].split(", ")}
            assert known == said


def test_merged_pairs_are_those_of_peft():
    world = shipped_world()
    names = ("newcomers", "steps")
    merged = MergedBase(world)
    merged.deltas = {name: merged.deltas[name] for name in names}
    items = map(json.loads, read_lines(world.path / "tasks" / "newcomers.jsonl"))
    asked = Asked(list(items)[:16])
    batch = merged.batch(asked)
    model, _ = load_base(world.base)
    wrapped = load_adapters(model, {name: world.adapters[name] for name in names})
    for weight in (1.0, 0.5):
        merged.set(names, weight)
        with composed(wrapped, dict.fromkeys(names, weight)) as composition, torch.no_grad():
            expected = composition(**batch.inputs(composition)).logits
            found = merged.model(**batch.inputs(merged.model)).logits
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    merged.set(names, 1.0)
    assert 0.3 < merged.certain(batch) <= merged.decoded(asked)
    merged.set([], 1.0)
    assert merged.certain(batch) == 0.0


def test_every_pair_about_a_task_is_looked_at_and_some_others():
    names = ["marriages-00", "marriages-01", "steps-00", "others-00", "lists-00"]
    sets = _sets("newcomers", names, True, random.Random(0))
    about = [members for members, drawn in sets if len(members) == 2 and not drawn]
    assert about == [(0, 2), (1, 2)]
    assert len(sets) == 5 + 10  # singles, and here all other pairs
