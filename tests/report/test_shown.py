"""What Python shows of loraprobe's objects: short, whatever their names are."""

import shutil
from dataclasses import replace

import making
import pytest

import loraprobe
from loraprobe.records import Check
from loraprobe.report.answer import unplaced
from loraprobe.report.verification import ShownVerification

LONG = "a-name-" + "x" * 400


def shown(thing: object) -> str:
    told = repr(thing)
    whole = " ".join(told.replace("\\", " ").split())
    assert len(told.splitlines()) <= 15 and len(told) <= 1500
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
    assert told.startswith("CANNOT TELL") and f"loraprobe verify {out} REF" in told
    assert "REF: " in told


def test_many_failed_checks_are_few_lines():
    checks = tuple(Check(f"file-{i}", False, "It differs. " * 20) for i in range(40))
    told = shown(ShownVerification("out", checks))
    assert "file-0" in told and "make it again" in told


def test_the_next_command_of_a_repr_has_the_places_that_were_given(tmp_path, monkeypatch):
    """The record has names only, since it may be published; so has the report of a saved one."""
    making.saved_pair(tmp_path / "my runs")
    monkeypatch.chdir(tmp_path)
    for given in (
        ["my runs/a", "my runs/b"],
        list(map(loraprobe.load, ("my runs/a", "my runs/b"))),
    ):
        audit = loraprobe.inspect(given)
        assert "my runs" not in audit.to_json() and "inspect a b" in str(audit.verdict.next)
        assert "loraprobe inspect 'my runs/a' 'my runs/b'" in shown(audit)
    assert unplaced(audit)
    pinned = [replace(row, commit="c" * 40) for row in audit.adapters]
    assert not unplaced(replace(audit, adapters=tuple(pinned)))
