"""Bounds on strangers' files: each refuses with a sentence that names it, and can be raised."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from making import random_adapter, write_adapter
from typer.testing import CliRunner

from loraprobe import limits
from loraprobe.adapters import read_adapter
from loraprobe.checkpoint import read_json, read_tensor
from loraprobe.cli import app
from loraprobe.errors import AdapterError, BaseError, TaskError, UsageError
from loraprobe.tasks import load_probe, load_task

pytestmark = pytest.mark.usefixtures("default_limits")


def test_numbers_with_units():
    found = limits.set_limits("modules=3, line=5MB,memory=1.5GiB")
    assert (found.modules, found.line, found.memory) == (3, 5_000_000, 3 << 29)
    assert found.config == limits.Limits().config and limits.limits() == found


@pytest.mark.parametrize(
    "text", ["modulez=3", "modules=many", "modules=", "modules=-1", "line=3QB"]
)
def test_what_is_no_limit_is_refused(text):
    before = limits.set_limits("")
    with pytest.raises(UsageError, match="--limits"):
        limits.set_limits(text)
    assert limits.limits() == before


def test_the_environment_sets_limits(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "line=7")
    limits._CURRENT.clear()
    assert limits.limits().line == 7


def bound(tmp_path, text: str, act, raises, said: str) -> None:
    """With the bound the act is refused and says how to raise it; without it succeeds."""
    limits.set_limits(text)
    with pytest.raises(raises, match=rf"{said}.*--limits {text.partition('=')[0]}=\d+"):
        act()
    limits.set_limits("")
    act()


def test_each_bound_refuses_by_name(tmp_path):
    place = tmp_path / "a"
    random_adapter("a").save(place)
    read = lambda: read_adapter(place)  # noqa: E731
    bound(tmp_path, "config=100", read, AdapterError, "adapter_config.json")
    bound(tmp_path, "tensors=5", read, AdapterError, "28 tensors")
    bound(tmp_path, "modules=5", read, AdapterError, "14 modules")
    tasks = tmp_path / "t.jsonl"
    tasks.write_text(json.dumps({"prompt": "p", "answer": "a" * 300}) + "\n")
    bound(tmp_path, "line=100", lambda: load_task(tasks), TaskError, "line 1")
    bound(tmp_path, "items=100", lambda: load_task(tasks), TaskError, "t.jsonl")
    bound(tmp_path, "line=100", lambda: load_probe(tasks), TaskError, "line 1")
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"k": "v" * 500}))
    bound(tmp_path, "config=100", lambda: read_json(other, "base"), BaseError, "config.json")


def inflating(path) -> None:
    """A pickle of zeros whose archive is compressed, as torch never writes it."""
    torch.save({"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 1 << 20)}, path)
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in parts.items():
            target.writestr(name, data)


def test_a_pickle_that_inflates_is_refused_before_it_does(tmp_path):
    place = write_adapter(tmp_path, {}, pickle=True)
    inflating(place / "adapter_model.bin")
    assert (place / "adapter_model.bin").stat().st_size < 100_000
    with pytest.raises(AdapterError, match="unpack to 16,"):
        read_adapter(place)
    with pytest.raises(BaseError, match="unpack to 16,"):
        read_tensor(place / "adapter_model.bin", "x", "base")


def test_the_command_line_raises_a_limit(tmp_path):
    random_adapter("a").save(tmp_path / "a")
    run = CliRunner().invoke
    refused = run(app, ["--limits", "modules=3", "inspect", str(tmp_path / "a")])
    assert refused.exit_code == 2 and "--limits modules=14" in refused.stderr
    assert run(app, ["--limits", "modules=14", "inspect", str(tmp_path / "a")]).exit_code == 0
    wrong = run(app, ["--limits", "modulez=14", "inspect", str(tmp_path / "a")])
    assert wrong.exit_code == 2 and wrong.stderr.count("\n") == 1 and "modulez" in wrong.stderr
