"""The scenarios of the shipped world: what is decided follows from what was measured; dry runs."""

import json
import shlex
import shutil

import making
import pytest
import torch
from making import answered

from loraprobe.adapters import read_adapter
from loraprobe.cache import cache_directory
from loraprobe_lab import shipped_world


def demo(scenario: str, *more: str) -> tuple[int, dict]:
    """Exit code and document of one scenario."""
    return answered("demo", "--scenario", scenario, "--quiet", "--threads", "1", *more)


def judged(scenario: str, *more: object) -> tuple[int, dict]:
    """merge-and-eval of a scenario of the shipped world: its exit code and document."""
    return answered("merge-and-eval", *making.shipped(scenario), "--quiet", *more)


def value(document: dict, system: str, part: str = "question", task: str | None = None) -> float:
    rows = [r for r in document["evaluation"] if (r["system"], r["part"]) == (system, part)]
    (row,) = [r for r in rows if task in (None, r["task"])]
    return row["value"]


def check_samples(document: dict, rows: list[dict]) -> None:
    """The answers of all systems agree with the scores and with the causes of failure."""
    assert len(rows) == document["rounds"]["items"] * 4  # the question, two hops, step by step

    def replies(part: str, system: str) -> list[dict]:
        told = [reply for row in rows if row["part"] == part for reply in row["replies"]]
        return [reply for reply in told if reply["system"] == system]

    for score in document["evaluation"]:
        own = replies(score["part"], score["system"])
        assert len(own) == score["n"]
        assert sum(r["right"] for r in own) / len(own) == pytest.approx(score["value"])
    for counts in document["attribution"]:
        causes = [reply["cause"] for reply in replies("question", counts["system"])]
        assert all(causes.count(cause) == counts[cause] for cause in set(causes))
    wrong = document["samples"]
    assert len(wrong) == 3
    for row in wrong:
        (reply,) = [r for r in row["replies"] if r["system"] == document["verdict"]["system"]]
        assert not reply["right"] and row["part"] == document["verdict"]["gain"]["form"]


def test_disjoint_facts_do_not_compose_but_chain(tmp_path):
    """One round and a wider margin; the items that the demo asks take five times as long."""
    page, file = tmp_path / "page.html", tmp_path / "samples.jsonl"
    written = ["--html", page, "--save-samples", file] if making.known("--html") else []
    code, document = judged("disjoint", "--limit", "30", "--margin", "0.25", *written)
    if written:
        check_samples(document, [json.loads(line) for line in file.read_text("utf-8").splitlines()])
        text = page.read_text("utf-8")
        assert 0 < len(text) < 300_000 and str(tmp_path) not in text and "<svg" in text
    check_disjoint(code, document)


@pytest.mark.slow
def test_the_demo_decides_that_disjoint_facts_do_not_compose():
    check_disjoint(*demo("disjoint"))


def check_disjoint(code: int, document: dict) -> None:
    """What is decided of facts that share no person, and what was measured."""
    verdict = document["verdict"]
    assert (code, verdict["decision"], verdict["action"]) == (1, "unlikely", "chain")
    assert verdict["evidence"] == "evaluation"
    assert (verdict["probability"] is None) == (verdict["prior"] is None)
    assert value(document, "spouse", "hop1") > 0.95 and value(document, "city", "hop2") > 0.95
    assert max(value(document, s) for s in ("uniform", "sum", "arrow")) < 0.15
    assert value(document, "chain") > 0.95
    systems = list(dict.fromkeys(r["system"] for r in document["evaluation"]))
    assert systems[:7] == ["base", "spouse", "city", "uniform", "sum", "arrow", "chain"]
    assert systems[7].startswith("shrunk:") and systems[8] == "random-partner"
    for row in document["attribution"]:
        causes = row.keys() - {"system", "task"}
        assert sum(row[cause] for cause in causes) == document["rounds"]["items"]


def test_skill_and_familiar_facts_compose_step_by_step():
    code, document = demo("skill-and-facts")
    verdict = document["verdict"]
    assert (code, verdict["decision"], verdict["action"]) == (0, "likely", "step-by-step")
    rounds = document["rounds"]
    assert rounds["used"] < rounds["planned"] and rounds["items"] < rounds["total"] == 150
    assert "stopped-early" in {reason["code"] for reason in verdict["reasons"]}
    singles = max(value(document, s, "steps") for s in ("newcomers", "steps"))
    assert value(document, verdict["system"], "steps") > singles + 0.3
    controls = [
        r for r in document["evaluation"] if r["kind"] == "control" and r["part"] == "steps"
    ]
    assert value(document, verdict["system"], "steps") > max(r["value"] for r in controls) + 0.3


def test_a_guard_is_lost_by_what_gains_most():
    """Worked steps and new facts cost what the base knew, unless they are averaged."""
    familiar = shipped_world().scenario("skill-and-facts").guards["familiar"]
    few = ["--limit", "90", "--system", "uniform", "--system", "sum", "--guard", familiar]
    code, document = judged("skill-and-facts", *few)
    outcomes = {row["system"]: row["ci95"][1] < -row["margin"] for row in document["guards"]}
    assert outcomes == {"uniform": False, "sum": True, "newcomers": True}
    verdict = document["verdict"]
    assert (code, verdict["decision"], verdict["system"]) == (0, "likely", "uniform")
    assert verdict["gain"]["against"] != "newcomers", "who loses the guard is no alternative"
    assert [row["name"] for row in document["provenance"]["guards"]] == ["familiar"]


def test_a_merge_of_what_was_measured_says_so(tmp_path, monkeypatch):
    """Until that is deleted, and of nothing that is made in another way."""
    monkeypatch.chdir(tmp_path)
    pair, few = making.shipped("skill-and-facts")[:2], ["--system", "sum", "--limit", "30"]
    base = ["--base", shipped_world().path / "base"]

    def merge(*more: object) -> dict:
        options = ["--method", "sum", *base, *more, "-o", "out", "--overwrite", "--quiet"]
        return answered("merge", *pair, *options)[1]["verdict"]

    gain = judged("skill-and-facts", *few)[1]["verdict"]["gain"]
    verdict = merge()
    assert (verdict["decision"], verdict["system"], verdict["gain"]) == ("likely", "sum", gain)
    assert [reason["code"] for reason in verdict["reasons"]] == ["measured-before"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert verdict["reasons"][0]["message"].split()[2] in card and str(tmp_path) not in card
    for other in (["--method", "uniform"], ["--rank", "2"], ["--seed", "1"], ["--balance", "norm"]):
        assert merge(*other)["decision"] == "inconclusive", other
    shutil.rmtree(cache_directory())
    assert merge()["decision"] == "inconclusive"


def test_the_next_command_of_a_first_round_ends_with_what_that_measured(tmp_path, monkeypatch):
    """As `merge-and-eval --resume` does, which decides by the same answers; until an evaluation of
    the same adapters ends otherwise."""
    monkeypatch.chdir(tmp_path)
    call = [*making.shipped("skill-and-facts"), "--limit", "60", "--quiet"]
    first = answered("inspect", *call)[1]["verdict"]
    assert (first["decision"], first["evidence"]) == ("likely", "pilot")
    words = shlex.split(first["next"])
    assert words[1] == "merge"
    pair, base = call[:2], ["--base", shipped_world().path / "base", "-o", "out", "--overwrite"]
    same = ("decision", "action", "system", "gain", "margin")

    def merged(method: str = first["system"]) -> dict:
        return answered("merge", *pair, *base, "--method", method, "--quiet")[1]["verdict"]

    assert merged("uniform")["decision"] == "inconclusive"
    written = merged()
    assert {key: written[key] for key in same} == {key: first[key] for key in same}
    assert [reason["code"] for reason in written["reasons"]] == ["measured-before"]
    assert answered("inspect", *call, "--resume", "--margin", "0.9")[0] == 1
    assert merged() == written, "a first round that advises nothing to make replaces nothing"
    whole = answered("merge-and-eval", *call, "--resume")[1]
    assert {key: whole["verdict"][key] for key in same} == {key: first[key] for key in same}
    assert whole["verdict"]["next"] == first["next"] and whole["rounds"]["used"] == 1
    answered("merge-and-eval", *call, "--resume", "--margin", "0.9")
    assert merged()["decision"] == "inconclusive"


def test_an_adapter_that_was_added_in_vain_is_named(tmp_path):
    """Another one is not asked for in the same words, but where nothing tells that it was tried."""
    world = shipped_world()
    refs = [f"{name}={world.adapters[name]}" for name in ("newcomers", "spouse", "count")]
    (task := tmp_path / "t.jsonl").write_bytes((world.path / "tasks/strangers.jsonl").read_bytes())
    few = ["--task", task, "--base", world.path / "base", "--limit", "40", "--system", "uniform"]

    def ended(adapters: list[str], *more: object) -> tuple[str, str, bool]:
        call = ["merge-and-eval", *adapters, *few, "--quiet", "--threads", "1", *more]
        verdict = answered(*call)[1]["verdict"]
        codes = {reason["code"] for reason in verdict["reasons"]}
        return verdict["action"], verdict["next"].split()[1], "tried" in codes

    asks = "train-target-adapter"
    assert ended(refs) == (asks, "merge-and-eval", False)
    assert ended(refs[:2]) == (asks, "merge-and-eval", False)
    assert ended(refs, "--resume") == (asks, "task", True)
    other = ["--task", world.path / "tasks/familiar.jsonl"]
    assert not ended(refs, *other)[2], "other questions were asked of the two"


def test_more_questions_add_up(tmp_path):
    """Of a file with further questions only these are asked, whatever its name is."""
    lines = shipped_world().scenario("skill-and-facts").tasks[0].read_text().splitlines(True)
    files = [tmp_path / name for name in ("t.jsonl", "MORE-t.jsonl")]
    for file, n in zip(files, (10, 12), strict=True):
        file.write_text("".join(lines[:n]))
    few = [*making.shipped("skill-and-facts")[:2], "--base", shipped_world().path / "base"]
    few = ["merge-and-eval", *few, "--system", "sum", "--quiet", "--threads", "1", "--task"]
    first, both = (answered(*few, file, "--resume")[1] for file in files)
    for document in (first, both):
        told = document["verdict"]["next"].split()
        assert "MORE-t.jsonl" in told and "--resume" in told
    asked = sum(row["n"] for row in first["evaluation"])
    assert f"{asked} results of earlier runs were kept." in both["notes"]
    assert {row["n"] for row in both["evaluation"]} == {12}


def test_the_demo_has_guards_of_its_own(monkeypatch):
    sessions = []
    monkeypatch.setattr(
        "loraprobe.pipeline.commands.merge_and_eval",
        lambda adapters, session, **_: sessions.append(session),
    )
    making.call("demo", "--scenario", "skill-and-facts", "--guard", "familiar")
    familiar = shipped_world().scenario("skill-and-facts").guards["familiar"]
    assert list(sessions[0].options.guards) == [familiar]


def test_guards_are_added_to_a_run_that_was_made_without_them(tmp_path):
    few = ["--limit", "12", "--system", "uniform"]
    first = judged("keep-both", *few)[1]
    (text := tmp_path / "notes.txt").write_text("Ada met Bo. Bo met Ada. " * 60)
    familiar = shipped_world().scenario("skill-and-facts").guards["familiar"]
    guards = ["--guard", familiar, "--guard", text, "--guard-margin", "0.2"]
    code, document = judged("keep-both", *few, *guards, "--resume")
    asked = sum(row["n"] for row in first["evaluation"])
    assert any(note.startswith(f"{asked} results of earlier runs") for note in document["notes"])
    rows = {(row["task"], row["system"]): row for row in document["guards"]}
    assert {task for task, _ in rows} == {"familiar", "notes"}
    assert {row["margin"] for row in rows.values()} == {0.2}
    assert rows["familiar", "uniform"]["n"] == 12 and rows["notes", "uniform"]["n"] == 3
    assert rows["notes", "uniform"]["metric"] == "answer_loss"
    assert document["evaluation"] == first["evaluation"], "guards are no part of what is scored"
    # An adapter that loses a guard is no alternative, so fewer are compared.
    compared = [
        [{**row, "adjusted_ci95": 0, "n_needed": 0} for row in d["gains"]]
        for d in (document, first)
    ]
    assert compared[0] == compared[1]
    assert code == {"likely": 0, "inconclusive": 3}.get(document["verdict"]["decision"], 1)


def test_target_adapter_is_better_alone():
    code, document = demo("target-adapter")
    verdict = document["verdict"]
    assert (code, verdict["decision"]) == (1, "unlikely")
    assert verdict["action"] == "use-single:spouse-city"


ROUTER = "by-text"


def test_keep_both_says_what_is_measured():
    """A router that chooses per prompt keeps both skills; it learned from items apart."""
    code, document = demo("keep-both")
    verdict = document["verdict"]
    assert (code, verdict["decision"], verdict["action"]) == (0, "likely", "route")
    assert verdict["system"] == ROUTER and verdict["gain"]["difference"] > 0.4
    tasks = list(dict.fromkeys(r["task"] for r in document["evaluation"]))
    assert len(tasks) == 2
    assert document["rounds"]["total"] == 360, "20 of the 200 of each task were set apart"
    assert {r["n"] for r in document["evaluation"]} == {document["rounds"]["items"] // 2}
    assert {g["system"] for g in document["gains"]} == {
        "uniform",
        "sum",
        "arrow",
        "by-prompt",
        ROUTER,
    }
    assert any("40 items that were set apart; 360 are left" in n for n in document["notes"])
    assert any("portfolio.md" in n for n in document["notes"])
    # The random partner is routed as the adapters are, so one of the two skills is left.
    control = [value(document, "random-partner", task=task) for task in tasks]
    assert max(control) > 0.9 and min(control) < 0.1
    for row in document["evaluation"]:
        if row["kind"] in ("merge", "router"):
            best = max(value(document, s, task=row["task"]) for s in ("last", "count"))
            start = value(document, "base", task=row["task"])
            assert row["retention"] == pytest.approx((row["value"] - start) / (best - start))
    kept = [r["retention_ci95"][0] for r in document["evaluation"] if r["system"] == ROUTER]
    assert min(kept) >= 0.8


def test_the_recommended_merge_is_saved(tmp_path):
    target = tmp_path / "out"
    method = ["--system", "task-arithmetic", "--weights", "1,1"]  # dashes as on the command line
    few = ["--limit", "30"]
    call = ["merge-and-eval", *making.shipped("skill-and-facts"), *method, *few, "-o", str(target)]
    result = making.call(*call)
    assert result.exit_code == 0, result.output
    assert f"PeftModel.from_pretrained(base, {str(target)!r})" in result.stdout
    assert "-o DIR" not in result.stdout  # it is written already
    assert result.stdout.count("No licence is declared") == 1  # by what may be published
    merged = read_adapter(target)
    paths = shipped_world().scenario("skill-and-facts").adapters.values()
    sources = [read_adapter(path).modules for path in paths]
    for path in merged.modules:
        deltas = [m[path].to(torch.float32).delta() for m in sources if path in m]
        expected = torch.stack(deltas).sum(0)
        error = (merged.modules[path].to(torch.float32).delta() - expected).norm() / expected.norm()
        assert error < 0.01  # the sources are bf16, and so is the merge
    card = (target / "README.md").read_text()
    assert "What was measured" in card and "licence-unknown" in card


def test_a_dry_run_counts_the_router_and_the_items_that_are_left():
    estimate = judged("keep-both", "--limit", "44", "--dry-run")[1]["estimate"]
    assert ROUTER in estimate["systems"]
    assert estimate["items"] == 2 * (44 - 11)  # a quarter of each task is set apart


def test_advice_that_is_no_merge_writes_nothing(tmp_path):
    target = tmp_path / "out"
    call = ["merge-and-eval", *making.shipped("disjoint"), "--limit", "4", "-o", str(target)]
    call += ["--system", "uniform", "--json"]
    result = making.call(*call)
    assert result.exit_code in (1, 3)
    reasons = {
        row["code"]: row["message"] for row in json.loads(result.stdout)["verdict"]["reasons"]
    }
    assert "out" in reasons["nothing-written"]
    assert "Nothing was written" in result.stderr and not target.exists()


def test_adapters_that_do_not_fit_the_base_are_incompatible(tmp_path):
    making.random_adapter("tiny", seed=3).save(tmp_path / "tiny")
    code, document = judged("disjoint", tmp_path / "tiny")
    assert (
        code == 1
        and document["verdict"]["decision"] == "incompatible"
        and not document["evaluation"]
    )
    assert any(i["severity"] == "error" and i["cure"] for i in document["compatibility"]["issues"])


def test_weights_are_used_and_margin_and_retention_reach_the_verdict():
    thresholds, needed = {}, {}
    few = ["--limit", "4", "--weights", "0.7,0.9"]
    for margin, retention in (("0.31", "0.66"), ("0.02", "0.9")):
        more = ["--margin", margin, "--retention", retention]
        _, document = judged("keep-both", *few, *more)
        assert "task_arithmetic" in {row["system"] for row in document["evaluation"]}
        thresholds[margin] = {reason["threshold"] for reason in document["verdict"]["reasons"]}
        needed[margin] = [row["n_needed"] for row in document["gains"]]
    assert {0.31, 0.66} <= thresholds["0.31"] and not {0.31, 0.66} & thresholds["0.02"]
    assert {0.02, 0.9} <= thresholds["0.02"]
    assert needed["0.31"] != needed["0.02"]


FEW = [*making.shipped("skill-and-facts"), "--limit", "12"]


def test_a_dry_run_tells_the_systems_that_the_run_then_asks(tmp_path, own_cache):
    target = tmp_path / "out"
    call = ["merge-and-eval", *FEW, "-o", target]
    estimate = making.document(*call, "--dry-run")["estimate"]
    assert (estimate["items"], estimate["questions"]) == (12, 48)
    assert estimate["memory_bytes"] > 1e8
    assert estimate["seconds"] > 0
    assert not target.exists() and not list(own_cache.glob("runs/*/*.jsonl"))
    run = making.document(*call, "--exit-zero")
    asked = [row["system"] for row in run["evaluation"]]
    assert set(estimate["systems"]) == {name.partition(":")[0] for name in asked}
    shown = making.call(*call, "--dry-run", "--overwrite", env={"COLUMNS": "60"})
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 60
    assert "9 systems x 12 items" in shown.stdout


def test_a_dry_run_refuses_what_the_run_refuses(tmp_path):
    making.random_adapter("tiny", seed=3).save(tmp_path / "tiny")
    result = making.call("merge-and-eval", tmp_path / "tiny", *FEW, "--dry-run")
    assert result.exit_code == 2 and result.stdout == "" and "tiny" in result.stderr
