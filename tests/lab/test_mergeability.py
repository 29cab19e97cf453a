"""Forecasts of pairs from tables in which members, or a figure of the pair, tell the accuracy."""

import csv
import itertools

import numpy as np
import pytest

from loraprobe.errors import UsageError
from loraprobe_lab.experiments.mergeability import mergeability


@pytest.fixture
def table(tmp_path):
    """Twelve models: one merge follows the members, the other the figure `told` of a pair."""
    rng = np.random.default_rng(2)
    strength, file = rng.normal(size=12), tmp_path / "pairs.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow("task1 task2 merge_noise merge_told perf_members perf_figure".split())
        for a, b in itertools.combinations(range(12), 2):
            noise, told, rest = rng.normal(size=3)
            of_members = strength[a] + strength[b] + 0.1 * rest
            writer.writerow([f"m{a}", f"m{b}", noise, told, of_members, told + 0.1 * rest])
        writer.writerow(["m0", "m1", "", 1.0, "", 1.0])
    return file


def test_what_tells_the_accuracy_is_found_and_only_that(table):
    rows = {row["merge"]: row for row in mergeability(table).document["merges"]}
    members, figure = rows["members"], rows["figure"]
    assert members["additive"] > 0.95 and members["r"] > 0.95
    assert members["best"] < members["null95"]
    assert figure["best"] > max(0.95, figure["null95"]) and figure["figure"] == "told"
    assert figure["additive"] < 0.7
    assert members["pairs"] == 66 and figure["pairs"] == 67  # what has no accuracy is left out


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n"])
def test_a_file_that_is_no_such_table_is_refused(tmp_path, content):
    file = tmp_path / "pairs.csv"
    if content:
        file.write_text(content)
    with pytest.raises(UsageError):
        mergeability(file)
