"""`cache`, `env` and `skill`: what runs keep, what a bug report needs, what an agent reads."""

import getpass
import json
import platform
import re
from pathlib import Path

import making
from making import call

import loraprobe
from loraprobe.cli import COMMANDS, parameters
from loraprobe.options import options_of


def test_cache_lists_and_deletes_what_runs_keep(own_cache):
    def kept():
        return making.document("cache")["runs"]

    judged = ["merge-and-eval", *making.shipped("keep-both"), "--limit", 2, "--system", "uniform"]
    assert kept() == []
    assert call(*judged, "-q", "--exit-zero").exit_code == 0
    (run,) = kept()
    assert run["adapters"] == ["count", "last"] and run["bytes"] > 100
    shown = call("cache", env={"COLUMNS": "60"}).stdout
    lines = [line for line in shown.splitlines() if str(own_cache) not in line]
    assert "last" in shown and max(map(len, lines)) <= 60
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
    text = call("env", env=secrets).stdout
    document = json.loads(call("env", "--json", env=secrets).stdout)
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


def test_the_skill_has_every_command_option_and_exit_code():
    shown = call("skill")
    assert shown.exit_code == 0 and shown.stdout.startswith("---\nname: loraprobe\n")
    parts = re.split(r"^## loraprobe ", shown.stdout, flags=re.MULTILINE)
    assert {"0", "1", "2", "3", "130", "143"} <= set(re.findall(r"\b\d+\b", parts[0]))
    assert [part.splitlines()[0] for part in parts[1:]] == list(COMMANDS)
    for part, (name, spec) in zip(parts[1:], COMMANDS.items(), strict=True):
        told = re.findall(r"^- `(--[a-z-]+)", part, re.MULTILINE)
        params = making.command(name).params
        taken = {flag for one in params for flag in one.opts if flag.startswith("--")}
        in_tables = {n for n in options_of(name) if n in parameters.tables()}
        assert len(told) == len(in_tables) and set(told) <= taken
        assert all(example in part for example in spec.examples)


def test_where_an_earlier_version_left_the_cache_is_said(tmp_path, monkeypatch):
    earlier, usual = tmp_path / ".cache" / "loraprobe", tmp_path / "given" / "loraprobe"
    earlier.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    env = {"LORAPROBE_CACHE": "", "XDG_CACHE_HOME": str(tmp_path / "given")}
    told = call("cache", env=env).stdout
    assert str(earlier) in told and str(usual) in told
    assert making.document("cache", env=env)["place"] == str(earlier)
    usual.parent.mkdir()
    earlier.rename(usual)
    told = call("cache", env=env).stdout
    assert str(usual) in told and str(earlier) not in told
