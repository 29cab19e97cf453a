"""docs/pathologies.md says what happens, case by case."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from making import SHARED
from pathologies.specimens import SPECIMENS, sound
from pathologies.table import SLOW, behaviour, rows

from loraprobe.adapters import read_adapter
from loraprobe.errors import UnsupportedAdapter

ROWS = rows()
CONFIGS = sorted((SHARED / "peft-configs").rglob("*.json"))


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


@pytest.mark.skipif(not CONFIGS, reason="needs the shared configurations")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem[:60])
def test_published_configurations_are_read_or_refused_by_name(tmp_path, config: Path):
    raw = json.loads(config.read_text(encoding="utf-8"))
    rank = raw.get("r") if isinstance(raw.get("r"), int) else 4
    sound(tmp_path, r=rank)
    shutil.copy(config, tmp_path / "adapter_config.json")
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
