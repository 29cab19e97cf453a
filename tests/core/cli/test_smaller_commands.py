"""`methods`, `cache`, `env`, completion, and what the command line accepts or explains."""

import getpass
import json
import os
import platform
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import making
import pytest

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.cli import command_of, parameters
from loraprobe.demo import shipped_world


def call(*arguments: object, columns: int = 80, **environment: str):
    return making.call(*arguments, env={"COLUMNS": str(columns), **environment})


@pytest.mark.parametrize(
    ("field", "incomplete", "found"),
    [
        ("methods", "ti", {"ties"}),
        ("methods", "ties:de", {"ties:density="}),
        ("methods", "ties:density=0.3,lam", {"ties:density=0.3,lambda="}),
        ("methods", "tise:de", set()),
        ("routers", "arrow:top", {"arrow:top_k="}),
        ("systems", "sp", {"spectr"}),
        ("systems", "ch", {"chain"}),
        ("systems", "rand", {"random-partner"}),
        ("allow", "base-mis", {"base-mismatch"}),
        ("diagnostics", "intr", {"intruder_dimensions"}),
    ],
)
def test_names_are_completed(field, incomplete, found):
    command = command_of("inspect" if field == "diagnostics" else "merge-and-eval")
    (option,) = (one for one in command.params if one.name == field)
    words = {one.value for one in option.shell_complete(command.context_class(command), incomplete)}
    assert words == found


def test_the_shell_is_given_completions():
    assert set(parameters.scenarios("")) == set(shipped_world().scenarios)
    script = {"_LORAPROBE_COMPLETE": "complete_bash", "COMP_WORDS": "loraprobe demo --scenario ke"}
    done = subprocess.run(
        [sys.executable, "-c", "from loraprobe.cli import app; app(prog_name='loraprobe')"],
        capture_output=True,
        text=True,
        env={**os.environ, **script, "COMP_CWORD": "3"},
    )
    assert done.stdout.split() == ["keep-both"], done.stderr


@pytest.mark.parametrize("flag", ["-V", "-v", "--version"])
def test_version(flag):
    assert call(flag).stdout == f"loraprobe {loraprobe.__version__}\n"


def test_the_config_file_stands_for_its_directory_and_a_link_has_its_name(pair, tmp_path):
    (tmp_path / "mine").symlink_to(pair[0])
    assert making.document("inspect", tmp_path / "mine")["adapters"][0]["name"] == "mine"
    named = [f"x={pair[0]}", pair[1]]
    by_file = [f"x={pair[0] / 'adapter_config.json'}", pair[1] / "adapter_config.json"]
    documents = [making.document("inspect", *refs) for refs in (named, by_file)]
    for document in documents:
        document.pop("provenance")
    assert documents[0] == documents[1]


def test_merge_tells_the_norm_of_what_it_made(pair, tmp_path):
    document = making.document("merge", *pair, "-o", tmp_path / "out")
    merged = read_adapter(tmp_path / "out")
    true = sum(float(making.dense(u).square().sum()) for u in merged.modules.values()) ** 0.5
    rows = [row for row in document["diagnostics"] if row["name"] == "norm"]
    told = {row["adapters"][0]: row["value"] for row in rows}
    assert told["uniform"] == pytest.approx(true, rel=1e-5)
    assert f"{true:.4g}" in document["notes"][-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [("karcher", "--balance norm"), ("learn", "--weights learn"), ("tees", "did you mean 'ties'")],
)
def test_methods_says_what_to_take_for_a_name_that_it_lacks(name, said):
    asked = making.call("methods", name)
    assert asked.exit_code == 2 and said in asked.stderr


def test_cache_lists_and_deletes_what_runs_keep(own_cache):
    def kept():
        return making.document("cache")["runs"]

    judged = ["merge-and-eval", *making.shipped("keep-both"), "--limit", 2, "--system", "uniform"]
    assert kept() == []
    assert call(*judged, "-q", "--exit-zero").exit_code == 0
    (run,) = kept()
    assert run["adapters"] == ["count", "last"] and run["bytes"] > 100
    shown = call("cache", columns=60).stdout
    assert "last" in shown and max(map(len, shown.splitlines())) <= 60
    assert call("cache", "--clear", "--older", 1).exit_code == 0
    assert len(kept()) == 1
    lock = (own_cache / "runs" / run["name"] / "results.lock").open("wb")
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    assert len(making.document("cache", "--clear")["runs"]) == 1
    assert "in use" in call("cache", "--clear").stderr
    lock.close()
    assert "in use" not in call("cache", "--clear").stderr
    assert kept() == []
    assert not list(own_cache.glob("hashes/*")) and not list(own_cache.glob("runs/*"))
    (own_cache / "library").mkdir()
    assert call("cache", "--clear").exit_code == 0 and not (own_cache / "library").exists()


def test_env_holds_versions_and_nothing_private(tmp_path):
    secrets = {
        "HF_TOKEN": "hf_secretsecret",
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://me@x",
    }
    text = call("env", **secrets).stdout
    document = json.loads(call("env", "--json", **secrets).stdout)
    for private in (*secrets.values(), str(Path.home()), platform.node(), str(tmp_path)):
        assert private not in text and private not in json.dumps(document)
    assert getpass.getuser() not in document["set"]
    assert {"HF_TOKEN", "HF_HOME", "HF_ENDPOINT"} <= set(document["set"])
    assert document["loraprobe"] == loraprobe.__version__ and "torch" in document["packages"]


def test_a_kept_run_of_another_version_is_listed_too(own_cache):
    empty = call("cache").stdout
    assert "0 runs" in empty
    run = own_cache / "runs" / "0123"
    run.mkdir(parents=True)
    (run / "results.jsonl").write_text("{}\n")
    shown = call("cache").stdout
    assert "another version" in shown and "1 run," in shown
    cleared = call("cache", "--clear")
    assert "1 run" in cleared.stderr and "1 runs" not in cleared.stderr
    assert "in use" not in cleared.stderr and not run.exists()


def test_a_base_that_the_adapters_name_can_be_given_as_a_directory(pair, monkeypatch):
    monkeypatch.setattr("loraprobe.hub.common_base", lambda adapters: "owner/base")
    result = call("inspect", *pair, "--base", "auto", "--probe", "auto", HF_HUB_OFFLINE="1")
    assert result.exit_code == 2
    assert "owner/base" in result.stderr and "--base DIR" in result.stderr


def test_hf_runs_the_command_as_its_extension(tmp_path, monkeypatch):
    """By huggingface_hub's own loader, from the entry point that pyproject.toml declares."""
    extensions = pytest.importorskip("huggingface_hub.cli.extensions")
    root = Path(loraprobe.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["hf-loraprobe"].partition(":")
    folder = tmp_path / "hf-loraprobe"
    folder.mkdir()
    script = folder / "hf-loraprobe"
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    script.chmod(0o755)
    made = datetime(2026, 1, 1)
    of = ("owner", "hf-loraprobe", "owner/hf-loraprobe", "loraprobe", str(script), "python", made)
    extensions.ExtensionManifest(*of).save(folder)
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path)
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)
    for call, code in ((["--version"], 0), (["inspect", str(tmp_path / "nothing")], 2)):
        assert extensions.dispatch_unknown_top_level_extension(["loraprobe", *call], set()) == code
