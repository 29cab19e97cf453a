"""What Python shows of loraprobe's objects: short, whatever their names are."""

from __future__ import annotations

import shutil

import making
import pytest

import loraprobe
from loraprobe.records import Check
from loraprobe.report.answer import MOST_LINES
from loraprobe.report.showing import ShownVerification

LONG = "a-name-" + "x" * 400


def shown(thing: object) -> str:
    told = repr(thing)
    whole = " ".join(told.replace("\\", " ").split())
    assert len(told.splitlines()) <= MOST_LINES and len(told) <= 1000
    return whole


@pytest.mark.parametrize("names", [("a", "b"), (LONG, "b", *map(str, range(30)))])
def test_adapters_and_what_is_made_of_them(names):
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate(names)]
    told = shown(adapters[0])
    assert names[0][:50] in told and "14 modules" in told and "rank 4" in told
    for made in (
        loraprobe.merge(adapters),
        loraprobe.compose(adapters),
        loraprobe.compose(adapters).composition,
    ):
        assert names[0][:50] in shown(made)
    assert "weights" in repr(loraprobe.merge(adapters))


def test_a_verification_ends_in_a_next_step(tmp_path):
    a, b = making.saved_pair(tmp_path)
    out = tmp_path / "near" / "out"
    loraprobe.merge([a, b]).save(out)
    told = shown(loraprobe.verify(out, [a, b]))
    assert told.startswith("VERIFIED") and f"loraprobe inspect {out}" in told
    shutil.rmtree(a)
    shutil.rmtree(b)
    told = shown(loraprobe.verify(out))
    assert told.startswith("NOT VERIFIED") and f"loraprobe verify {out} REF" in told
    assert "REF: " in told


def test_many_failed_checks_are_few_lines():
    checks = tuple(Check(f"file-{i}", False, "It differs. " * 60) for i in range(40))
    told = shown(ShownVerification("out", checks))
    assert "file-0" in told and "make it again" in told
