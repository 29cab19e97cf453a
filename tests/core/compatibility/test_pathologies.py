"""docs/pathologies.md says what happens, case by case."""

import re

import pytest
from making import skip_without
from pathologies.specimens import SPECIMENS
from pathologies.table import SLOW, behaviour, rows

ROWS = rows()


def test_every_specimen_stands_on_the_page():
    assert sorted(ROWS) == sorted(SPECIMENS)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in SPECIMENS]
)
def test_every_row_of_the_page_is_reproduced(tmp_path, case):
    for command in re.findall(r"; loraprobe ([a-z-]+) ", ROWS[case][2]):
        skip_without(command)
    assert behaviour(case, tmp_path) == ROWS[case][2:]


def test_what_is_merged_is_never_silent_about_a_wrong_adapter():
    """Cases that are merged without a word are sound: exactly these."""
    silent = {case for case, cells in ROWS.items() if cells[-2:] == ["merged", "0"]}
    assert silent == {"two-files-that-agree", "subnormal", "float8", "rslora"}
