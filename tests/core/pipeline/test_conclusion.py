"""The options that the next command repeats."""

import making
import pytest

from loraprobe.base import open_base
from loraprobe.findings import finding
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import next_step, request_of
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import Action, Compatibility, EvaluationRecords, Verdict
from loraprobe.tasks import Task
from loraprobe.verdict import next_command
from loraprobe.verdict.next_command import UNTARGETED


def test_a_limit_that_decides_nothing_is_not_repeated():
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    few, none = (request_of(Options(limit=n), Inputs(pair, pair)) for n in (8, None))
    verdict = Verdict("inconclusive", "pilot")
    assert next_command(verdict, few) == next_command(verdict, none)


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
    assert list(request_of(Options(**given), Inputs(pair, pair)).given) == words


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
    verdict = Verdict("incompatible", "weights", action=Action("fix"))
    given = verdict, Options(seed=7), inputs, EvaluationRecords()
    for code in ("module-not-in-base", "shapes-differ", "base-copy"):
        issues = Compatibility((finding(code, ("a", "b"), "It has another module."),))
        found, _ = next_step(*given, issues)
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
    assert request_of(Options(), inputs).base == base


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
    assert request_of(Options(), Inputs(given, given)).bases == bases
