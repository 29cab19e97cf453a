"""docs/pathologies.md says what happens, case by case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import CONFIGS, config_of
from pathologies.specimens import SPECIMENS, sound
from pathologies.table import SLOW, behaviour, rows

from loraprobe.adapters import read_adapter
from loraprobe.errors import UnsupportedAdapter

ROWS = rows()


def test_every_specimen_stands_on_the_page():
    assert sorted(ROWS) == sorted(SPECIMENS)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in SPECIMENS]
)
def test_every_row_of_the_page_is_reproduced(tmp_path, case):
    assert behaviour(case, tmp_path) == ROWS[case][2:]


def test_what_is_merged_is_never_silent_about_a_wrong_adapter():
    """Cases that are merged without a word are sound: exactly these."""
    silent = {case for case, cells in ROWS.items() if cells[-2:] == ["merged", "0"]}
    assert silent == {"two-files-that-agree", "subnormal", "float8"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda given: Path(given).stem[:60])
def test_configurations_are_read_or_refused_by_name(tmp_path, config: Path | str):
    raw = config_of(config, tmp_path / "peft")
    rank = raw.get("r") if isinstance(raw.get("r"), int) else 4
    sound(tmp_path, r=rank)
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw))
    try:
        adapter = read_adapter(tmp_path)
    except UnsupportedAdapter as error:
        named = raw.get("peft_type") if raw.get("peft_type") != "LORA" else "sets "
        assert str(named) in str(error)
        return
    assert raw["peft_type"] == "LORA"
    codes = {issue.code for issue in adapter.issues if issue.severity == "error"}
    if raw.get("use_dora"):  # the specimen's file has no magnitudes
        assert "missing-tensors" in codes
    assert codes <= {"missing-tensors", "rank-contradicts-config"}
