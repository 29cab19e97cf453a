"""Rules between base, one adapter, composition and training, on tables with a planted answer."""

import gzip
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from loraprobe_lab.cli import app
from loraprobe_lab.experiments import recycling
from loraprobe_lab.experiments.recycling import Cases


def planted(tasks: int = 24, each: int = 4, *, told: bool = True) -> Cases:
    """Composing gains 0.2 where the single adapters are strong and loses 0.2 elsewhere; without
    `told` the scores of the singles say nothing of it."""
    rng = np.random.default_rng(3)
    rows = []
    for task in range(tasks):
        strong = task % 2 == 0
        for _ in range(each):
            shown = strong if told else bool(rng.integers(2))
            singles = np.full(10, 0.6 if shown else 0.3) + rng.normal(0, 0.01, 10)
            outcome = (0.5, 0.4, 0.7 if strong else 0.3)
            rows.append((f"task{task}", 10, singles, outcome[2], outcome))
    return recycling._cases("planted", ("base", "single", "compose"), rows)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recycling, "DRAWS", 3)
    monkeypatch.setattr(recycling, "SHUFFLES", 100)


def test_a_fitted_rule_finds_what_the_singles_tell_and_only_that(quick):
    rows = {
        told: {row["rule"]: row for row in recycling.judged(planted(told=told))["rules"]}
        for told in (True, False)
    }
    fitted = {told: rows[told]["fitted to k, base and singles"] for told in rows}
    assert fitted[True]["regret"] < 0.01 and fitted[True]["p"] < 0.05
    assert fitted[False]["regret"] > 0.05 and fitted[False]["p"] > 0.05
    for found in rows.values():
        assert found["always base"]["regret"] == pytest.approx(0.1)
        assert found["always compose"]["regret"] == pytest.approx(0.1)
        assert found["oracle"]["regret"] == 0.0
        assert found["always base"]["p"] is None  # a constant cannot be shuffled


def test_regret_is_a_mean_over_the_cases_of_a_task_and_then_over_tasks(quick):
    cases = recycling._cases(
        "uneven",
        ("base", "single", "compose"),
        [("a", 5, np.array([0.1]), 0.9, (0.5, 0.5, 0.9))] * 3
        + [("b", 5, np.array([0.1]), 0.9, (0.5, 0.5, 0.5))],
    )
    rows = {row["rule"]: row for row in recycling.judged(cases)["rules"]}
    assert rows["always base"]["regret"] == pytest.approx((0.4 + 0.0) / 2)
    assert rows["always base"]["wrong"] == pytest.approx(0.5)


def test_the_best_score_is_corrected_as_simulated_adapters_demand():
    """The mean true accuracy of the adapter with the best of 20 scores, by simulation."""
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.05, 0.15):
        truth = np.clip(rng.normal(0.5, spread, (400, 20)), 0, 1)
        scores = rng.binomial(100, truth) / 100
        chosen = truth[np.arange(400), scores.argmax(1)].mean()
        corrected = np.mean([recycling.corrected_best(row) for row in scores])
        assert corrected == pytest.approx(chosen, abs=0.02)
        assert abs(corrected - chosen) < abs(scores.max(1).mean() - chosen)


def published(place, tasks=("t0", "t1", "t2")):
    """Files of the published form: two adapters, a composition of them for each task."""

    def write(name, rows):
        raw = ("\n".join(rows) + "\n").encode()
        (place / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)

    def table(name, *rows):
        write(name, [",".join(map(str, row)) for row in rows])

    run = {"examples": 100, "adapters": ["a", "b"] * 5, "validation": 0.8, "test": 0.7}
    runs = [{**run, "task": t, "with_target": w} for t in tasks for w in (False, True)]
    singles = [("adapter", *tasks), ("a", *[0.4] * 3), ("b", 0.6, "", "")]
    llama, qwen = "llama-3.1-8b-instruct", "qwen3-4b"
    table(f"{llama}.base.test.csv", ("task", "accuracy"), *((task, 0.5) for task in tasks))
    for name in (f"{llama}.singles.test", *(f"{m}.singles.validation" for m in (llama, qwen))):
        table(f"{name}.csv.gz", *singles)
    head = ("task", "base", "target_adapter_100_examples")
    both = f"{qwen}.base-and-target-adapter.test.csv"
    table(both, head, *((task, 0.5, 0.9) for task in tasks))
    for model in (llama, qwen):
        write(f"{model}.lorahub.jsonl.gz", map(json.dumps, runs))
    return place


def test_the_command_reads_the_published_files(tmp_path, quick):
    data = published(tmp_path)
    done = CliRunner().invoke(app, ["recycling", str(data), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "recycling.json").read_text(encoding="utf-8"))
    llama, qwen = document["models"]
    scores = {row["rule"]: row["score"] for row in llama["rules"]}
    assert (llama["cases"], llama["tasks"]) == (3, 3)  # compositions with the target are left out
    assert scores["always single"] == pytest.approx((0.6 + 0.4 + 0.4) / 3, abs=1e-4)
    assert {row["rule"]: row["score"] for row in qwen["rules"]}["always train"] == 0.9
    assert "| always compose | 0.700 |" in (tmp_path / "out" / "recycling.md").read_text()
