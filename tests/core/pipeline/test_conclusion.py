"""The options that the next command repeats."""

from dataclasses import fields, replace
from pathlib import Path

import making
import pytest
from repeats import check_repeated

from loraprobe.base import open_base
from loraprobe.findings import finding
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import next_step, request_of
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import Action, Compatibility, EvaluationRecords, Verdict
from loraprobe.tasks import Task
from loraprobe.verdict import next_command
from loraprobe.verdict.next_command import UNTARGETED
from loraprobe.verdict.reasons import reason_of

CORE = [one.name for group in Options.__bases__ for one in fields(group) if one.metadata]
SET = {  # a value of every option of a command line, none of them the default
    "allow": ("base-unclear",), "balance": "norm", "subtract": ("owner/c",),
    "fields": ("prompt=q",), "methods": ("ties:density=0.3", "uniform"), "routers": ("arrow",),
    "systems": ("ties",), "router_prompts": (("a", Path("here.txt")),), "weights": (1, 0.12345678),
    "space": "core", "rank": 2, "limit": 40, "all_items": True, "items": 30, "keep": 2,
    "budget": 1.5, "max_new_tokens": 80, "metric": "numeric", "margin": 0.1,
    "guards": ("g.jsonl",), "guard_margin": 0.2, "retention": 0.7,
    "chat_template": "off", "diagnostics": ("intruder_dimensions",), "per_module": True,
    "seed": 7, "device": "cpu", "dtype": "bfloat16", "quantize": "4bit", "device_map": "auto",
    "trust_remote_code": True, "batch_size": 4, "threads": 2,
}  # fmt: skip
WITH = {"guard_margin": {"guards": ("g.jsonl",)}, "routers": {"methods": ("ties",)}}
OPEN = Verdict("inconclusive", "evaluation", missing="items")
USED = Verdict("likely", "evaluation", system="dare_ties", action=Action("merge"), composes=True)
LOSSY = (reason_of("compression-lost", 0.3, 0.1, system="sum", so="", advice=""),)
ROUTE, ROUTER = replace(USED, action=Action("route")), "hard:by=centroid,per=sequence"
NONE = Verdict("unlikely", "evaluation", action=Action("train-target-adapter"))
# A verdict, and the options that its next command leaves out although it takes them: what it
# replaces; of a merge and a route what is no matter of a file that learns nothing, and --dtype,
# which is that of the file there.
NEXT = {
    "items": (OPEN, "limit"),
    "the base": (replace(OPEN, evidence="pilot", missing=None), ""),
    "time": (replace(OPEN, missing="time"), "budget"),
    "rank": (replace(OPEN, missing="rank"), "rank methods systems"),
    "rank too": (replace(OPEN, missing="items", reasons=LOSSY), "rank limit"),
    "a lossy merge": (replace(USED, reasons=LOSSY), "methods fields limit dtype"),
    "metric": (replace(OPEN, missing="metric"), "metric"),
    "controls": (replace(OPEN, missing="controls"), "systems"),
    "guards": (replace(OPEN, missing="guard-items"), "guards limit"),
    "wording": (replace(NONE, missing="wording", action=Action("gather-evidence")), "metric"),
    "another adapter": (NONE, ""),
    "harder": (replace(NONE, action=Action("use-base"), missing="harder-items"), ""),
    "a merge": (USED, "methods fields limit dtype"),
    "a route": (
        replace(ROUTE, system="arrow"),
        "routers router_prompts weights fields limit chat_template",
    ),
    "learned": (replace(ROUTE, system=ROUTER), ""),
    "fit together": (
        Verdict("inconclusive", "weights"),
        "fields limit max_new_tokens metric chat_template",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("verdict", "left_out"), NEXT.values(), ids=NEXT)
def test_every_option_that_was_set_is_repeated(verdict, left_out, tmp_path, monkeypatch):
    """The printed command gives its command the same options as the call had, one after another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("owner/a")
    for name in CORE:
        check_repeated({name: SET[name], **WITH.get(name, {})}, verdict, left_out.split())


def test_a_limit_that_decides_nothing_is_not_repeated():
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    few, none = (request_of(Options(limit=n), Inputs(pair, pair), "merge") for n in (8, None))
    verdict = Verdict("inconclusive", "pilot")
    assert next_command(verdict, few) == next_command(verdict, none) and not few.given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": ("none",)}, [("--method", "none")]),
        ({"routers": ("none",)}, [("--router", "none")]),
        ({"methods": ("ties",), "routers": ()}, [("--method", "ties")]),
        ({"methods": ("ties",)}, [("--method", "ties"), ("--router", "arrow")]),
    ],
)
def test_the_next_command_asks_for_the_same_merges_and_routers(given, words):
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    assert list(request_of(Options(**given), Inputs(pair, pair), "merge").given) == words


@pytest.mark.parametrize(("spec", "learns"), [("task_arithmetic", True), ("uniform", False)])
def test_learned_weights_are_saved_by_the_call_that_learned_them(spec, learns):
    options = Options(weights="learn", methods=(spec,))
    verdict = Verdict("likely", "evaluation", system=spec, action=Action("merge"), composes=True)
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    inputs = Inputs(pair, pair, None, [Task("t", (), "t.jsonl")])
    found, _ = next_step(verdict, options, inputs, EvaluationRecords(), Compatibility())
    assert found.verb == ("merge-and-eval" if learns else "merge") and spec in found.words
    assert ("--resume" in found.words) is learns and ("learn" in found.words) is learns


@pytest.mark.parametrize("tasks", [[], [Task("t", (), "t.jsonl")]], ids=["", "task"])
def test_a_conflict_with_the_base_asks_for_another_base(tasks, tmp_path):
    """The same call, and neither one without a base nor one that says that all is well."""
    making.tiny_llama().save_pretrained(tmp_path / "other")
    pair = [making.random_adapter(name, base_model="owner/own") for name in "ab"]
    inputs = Inputs(pair, pair, open_base(tmp_path / "other", "other"), tasks)
    issue = finding("module-not-in-base", ("a",), "It has no such module.")
    verdict = Verdict("incompatible", "weights", action=Action("fix"))
    given = verdict, Options(seed=7), inputs, EvaluationRecords()
    found, _ = next_step(*given, Compatibility((issue,)))
    assert found.verb == ("merge-and-eval" if tasks else "inspect")
    assert "--base owner/own" in str(found) and "--seed 7" in str(found)
    ignored = finding(UNTARGETED, ("a",), "It has more.", severity="error")
    found, _ = next_step(*given, Compatibility((ignored,)))
    assert found.verb == ("merge-and-eval" if tasks else "inspect")
    assert "--allow weights-untargeted" in str(found)


@pytest.mark.parametrize(
    ("named", "reference", "base"),
    [
        ("/elsewhere/llama", "llama", "llama"),
        ("llama", "llama", "auto"),
        ("owner/llama", "owner/llama", "auto"),
        ("owner/llama", "llama", "llama"),
    ],
)
def test_the_next_command_has_the_base_that_was_given(named, reference, base, tmp_path):
    making.tiny_llama().save_pretrained(tmp_path)
    pair = [making.random_adapter("tiny", seed=seed, base_model=named) for seed in (0, 1)]
    inputs = Inputs(pair, pair, open_base(tmp_path, reference))
    assert request_of(Options(), inputs, "merge").base == base


@pytest.mark.parametrize(
    ("named", "bases"),
    [
        (["/x/a", "owner/b"], ("owner/b", "BASE")),
        (["/x/a", "/x/b"], ("BASE", "BASE")),
        (["/x/a", "/y/a", None], ("BASE",)),
        (["/x/models--owner--a/snapshots/1", "gpt2"], ("owner/a", "gpt2")),
        ([None], ()),
    ],
)
def test_only_what_is_on_the_hub_is_looked_for_there(named, bases):
    given = [making.random_adapter(str(i), base_model=one) for i, one in enumerate(named)]
    assert request_of(Options(), Inputs(given, given), "merge").bases == bases
