"""--dry-run: what a run would take, and what it refuses."""

import json

import making

FEW = [*making.shipped("skill-and-facts"), "--limit", "12"]


def test_a_dry_run_tells_the_systems_that_the_run_then_asks(tmp_path, own_cache):
    target = tmp_path / "out"
    call = ["merge-and-eval", *FEW, "-o", target]
    dry = making.call(*call, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    estimate = json.loads(dry.stdout)["estimate"]
    assert (estimate["items"], estimate["questions"]) == (12, 48)
    assert estimate["memory_bytes"] > 1e8
    assert estimate["seconds"] > 0
    assert not target.exists() and not list(own_cache.glob("runs/*/*.jsonl"))
    run = json.loads(making.call(*call, "--json", "--exit-zero").stdout)
    asked = [row["system"] for row in run["evaluation"]]
    assert set(estimate["systems"]) == {name.partition(":")[0] for name in asked}
    shown = making.call(*call, "--dry-run", "--overwrite", env={"COLUMNS": "60"})
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 60
    assert "9 systems x 12 items" in shown.stdout


def test_a_dry_run_refuses_what_the_run_refuses(tmp_path):
    making.random_adapter("tiny", seed=3).save(tmp_path / "tiny")
    result = making.call("merge-and-eval", tmp_path / "tiny", *FEW, "--dry-run")
    assert result.exit_code == 2 and result.stdout == "" and "tiny" in result.stderr
