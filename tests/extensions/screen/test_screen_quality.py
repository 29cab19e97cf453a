"""What the benchmark of screens reads of a screen that proves no set."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from planted_library import FIRST, SECOND, write_library


@pytest.fixture(scope="module")
def screen_quality():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        import screen_quality

        yield screen_quality


def test_a_screen_that_ends_at_the_ceiling_has_no_proof(screen_quality, tmp_path):
    everything = FIRST | SECOND | {"of": "bo", "bo": "is"}
    tables = {"firsts": FIRST, "all": everything, "noise": {"bo": "?"}}
    write_library(tmp_path, tables, items=140)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "task.jsonl").rename(tmp_path / "tasks" / "task.jsonl")
    adapters = {name: tmp_path / name for name in tables}
    world = SimpleNamespace(path=tmp_path, base=tmp_path / "base", adapters=adapters)
    truth = screen_quality.Truth({frozenset(("firsts", "all")): 1.0}, 1.0, 0.0)
    row = screen_quality.examined(world, truth, "task", 40, 2)
    assert (row["outcome"], row["proof"], row["adapters"]) == ("unlikely", {}, 3)
    assert row["asked_all"] == 3 and row["rankings"]
    assert "all items" in screen_quality.shown(row)
