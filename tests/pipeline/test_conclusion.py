"""The options that the next command repeats."""

from dataclasses import replace

import making
import pytest

from loraprobe.base import open_base
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import request_of, with_next
from loraprobe.pipeline.inputs import Inputs, open_inputs
from loraprobe.records import Compatibility, EvaluationRecords, Verdict
from loraprobe.session import Session
from loraprobe.tasks import Task
from loraprobe.verdict import next_command
from loraprobe_lab import shipped_world


def test_the_next_command_repeats_what_kept_answers_depend_on():
    """Without these options merge-and-eval would not find the answers of `inspect`."""
    chosen, base = shipped_world().scenario("disjoint"), str(shipped_world().path / "base")
    texts = {"dtype": "bfloat16", "metric": "contains", "chat_template": "off"}
    numbers = {"limit": 40, "max_new_tokens": 24, "seed": 3, "margin": 0.1, "retention": 0.7}
    given = Options(**texts, **numbers, methods=("uniform", "ties:density=0.3"), threads=1)
    inputs = open_inputs(list(chosen.adapters.values()), Session(given), base, chosen.tasks[:1])
    verdict = Verdict("inconclusive", "pilot")
    words = next_command(verdict, request_of(given, inputs, "merge")).words
    for name, value in (texts | numbers).items():
        assert words[words.index("--" + name.replace("_", "-")) + 1] == str(value)
    assert words.count("--method") == 2 and "ties:density=0.3" in words
    assert words[-1] == "--resume" and "--threads" not in words
    few = request_of(replace(given, limit=8), inputs, "merge")  # which decide nothing
    assert "--limit" not in next_command(verdict, few).words
    plain = request_of(Options(), inputs, "merge")
    assert "--limit" not in next_command(verdict, plain).words and not plain.kept
    request = request_of(given, inputs, "merge")
    more = str(next_command(replace(verdict, evidence="evaluation"), request))
    for told in ("--retention 0.7", "--chat-template off", "--margin 0.1", "--metric contains"):
        assert told in more and "MORE-" in more  # further questions are asked in the same way


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
    kept = request_of(Options(**given), Inputs(pair, pair), "merge").kept
    assert list(kept) == words


@pytest.mark.parametrize(
    ("spec", "named"),
    [("task_arithmetic", True), ("uniform", False)],
    ids=["learned", "no weights"],
)
def test_a_merge_with_learned_weights_is_made_with_its_questions(spec, named):
    options = Options(weights="learn", methods=(spec,))
    verdict = Verdict("likely", "evaluation", system=spec, action="merge", composes=True)
    pair = [making.random_adapter("tiny", seed=seed) for seed in (0, 1)]
    inputs = Inputs(pair, pair, None, [Task("t", (), "t.jsonl")])
    words = with_next(verdict, options, inputs, EvaluationRecords(), Compatibility()).next.words
    assert ("learn" in words) is named and ("--task" in words) is named
    assert ("t.jsonl" in words) is named and spec in words


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
