"""The Python interface as a person meets it, on adapters that peft wrote and a tiny model."""

import itertools
import json
import subprocess
import sys
from functools import partial

import bases
import making
import pytest
import torch
import words

import loraprobe
from loraprobe import errors
from loraprobe.demo import shipped_world
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.report.answer import answer
from loraprobe.session import Session

TARGETS = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(root with base, adapters a and b and a task file), written by transformers and peft."""
    common = {"lora_alpha": 4, "target_modules": TARGETS}
    pair = {"a": common | {"r": 2, "target_modules": TARGETS[:2]}}
    pair["b"] = common | {"r": 3, "use_rslora": True}
    items = [{"id": str(i), "prompt": f"Question {i}?", "answer": f"{i}"} for i in range(4)]
    make = partial(making.tiny_llama, vocab=512)
    return words.write_world(tmp_path_factory.mktemp("world"), make, pair, items, bases.subwords())


def evaluated(world, adapters=None, task=None, **options):
    """The audit of the adapters, a and b unless given."""
    return loraprobe.merge_and_eval(
        adapters or [world / "a", world / "b"],
        base=world / "base",
        tasks=task or world / "task.jsonl",
        **{"max_new_tokens": 2, "chat_template": "off"} | options,
    )


def test_threads_are_those_asked_for(world):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            loraprobe.inspect(world / "a", threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_order_of_adapters_does_not_choose_the_controls(world, tmp_path):
    """Nobody answers anything right here, so that all single adapters are equally good."""
    a, b = loraprobe.load(world / "a"), loraprobe.load(world / "b")
    found = [
        evaluated(world, pair, state=tmp_path / str(i)).evaluation.scores
        for i, pair in enumerate(([a, b], [b, a]))
    ]
    names = [{row.system for row in rows} for rows in found]
    assert names[0] == names[1] and "shrunk:a" in names[0]


@pytest.mark.parametrize("name", ["ties", "shrunk:a"])
def test_an_adapter_cannot_have_the_name_of_a_system(world, name):
    a, b = loraprobe.load(world / "a").renamed(name), loraprobe.load(world / "b")
    with pytest.raises(UsageError, match=r"name .* is that of a system"):
        evaluated(world, [a, b], methods=("ties",))


def test_items_of_one_group_and_losses_are_explained(world, tmp_path):
    items = [{"prompt": f"Question {i}?", "answer": f"{i}", "group": "all"} for i in range(3)]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, items)))
    options = {"metric": "answer_loss", "margin": 0.1, "state": tmp_path / "state"}
    audit = evaluated(world, task=tmp_path / "one.jsonl", **options)
    assert any("share one group" in note for note in audit.notes)
    assert any("a lower loss is a gain" in note for note in audit.notes)


def test_metrics_of_items_and_tasks_reach_the_audit(world, tmp_path):
    items = [{"prompt": f"Question {i}?", "answer": f'{{"a": {i}}}'} for i in range(3)]
    task = tmp_path / "one.jsonl"

    def audited(**options):
        task.write_text("\n".join(map(json.dumps, items)))
        return evaluated(world, task=task, systems=("sum",), max_new_tokens=2, **options)

    plain = audited(state=tmp_path / "plain")
    assert {row.metric for row in plain.evaluation.scores} == {"json"}
    assert max(row.cut for row in plain.evaluation.scores) == 1.0
    (task_row,) = json.loads(plain.to_json())["provenance"]["tasks"]
    assert task_row["metric"] == "json" and "JSON" in task_row["metric_why"]
    assert any("judged by json" in note for note in plain.notes)
    assert "answers-cut" in {reason.code for reason in plain.verdict.reasons}
    given = audited(metric="exact_match", state=tmp_path / "given")
    assert {row.metric for row in given.evaluation.scores} == {"exact_match"}
    gains = given.evaluation.gains
    assert all(gain.checked == gain.difference for gain in gains), "nothing is right"
    assert not any("judged by" in note for note in given.notes)
    items[0]["metric"] = "json"
    mixed = audited(metric=["contains", "one=strict"], state=tmp_path / "mixed")
    assert {row.metric for row in mixed.evaluation.scores} == {"json+strict"}
    with pytest.raises(UsageError, match="names the task 'two'"):
        audited(metric="two=strict")


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """The audit of a few questions of the shipped world."""
    chosen = shipped_world().scenario("skill-and-facts")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    session = Session(Options(limit=10, threads=1), state=tmp_path_factory.mktemp("state"))
    base = shipped_world().base
    return commands.merge_and_eval(refs, session, base=base, tasks=chosen.tasks).audit


def pair():
    return [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]


def test_an_audit_shows_its_answer(audit):
    for one in (audit, loraprobe.inspect(pair()), loraprobe.inspect(pair()[:1])):
        lines = repr(one).splitlines()
        said = list(itertools.takewhile(lambda line: not line.startswith("  next"), lines))
        assert 1 <= len(said) <= 12  # before a command, which is whole
        assert all(len(line) <= 80 for line in lines if "/" not in line)
        assert answer(one).headline.split()[0] in lines[0]


def test_dir_holds_the_public_names_only():
    assert dir(loraprobe) == sorted(loraprobe.__all__)
    code = "import sys, loraprobe; assert not {'torch', 'typer', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_may_be_any_sequence_or_the_text_of_the_command_line():
    import numpy

    for weights in ([0.7, 0.3], (0.7, 0.3), numpy.array([0.7, 0.3]), "0.7,0.3"):
        found = loraprobe.merge(pair(), "task_arithmetic", weights=weights, rank="2")
        assert found.weights == (0.7, 0.3) and found.adapter.rank_range == (2, 2)


@pytest.mark.parametrize(
    ("function", "keyword", "near"),
    [
        (loraprobe.merge, "metod", "'method'"),
        (loraprobe.merge, "methods", "'method'"),
        (loraprobe.compose, "routers", "'router'"),
        (loraprobe.inspect, "bse", "'base'"),
        (loraprobe.merge_and_eval, "task", "'tasks'"),
        (loraprobe.merge_and_eval, "method", "'methods'"),
    ],
)
def test_a_keyword_that_a_function_does_not_take_is_named(function, keyword, near):
    with pytest.raises(UsageError, match=f"{keyword!r}: did you mean {near}"):
        function(pair(), **{keyword: "ties"})


@pytest.mark.parametrize("wrong", [None, 3, [None], [3, "a"]])
@pytest.mark.parametrize("function", ["inspect", "merge", "compose", "route"])
def test_what_is_no_adapter_is_one_sentence_about_the_argument(function, wrong):
    given = (making.tiny_llama(),) if function == "route" else ()
    with pytest.raises(UsageError, match="adapter"):
        getattr(loraprobe, function)(*given, wrong)
    with pytest.raises(UsageError, match=r"needs .*adapters"):
        getattr(loraprobe, function)(*given)
    if function != "route":
        with pytest.raises(UsageError, match="adapter"):
            getattr(loraprobe, function)([])


def test_what_is_no_task_is_one_sentence_about_the_argument():
    with pytest.raises(UsageError, match="tasks=FILE"):
        loraprobe.merge_and_eval(pair())
    with pytest.raises(UsageError, match="tasks takes"):
        loraprobe.merge_and_eval(pair(), base="nowhere", tasks=[None])
    with pytest.raises(UsageError, match="route needs model"):
        loraprobe.route(None, pair())


def test_options_of_other_commands_are_refused():
    for keyword in ("weights", "routers", "started", "arguments"):
        with pytest.raises(UsageError, match=f"inspect has no option {keyword!r}"):
            loraprobe.inspect(pair(), **{keyword: None})


def test_every_error_is_at_top_level_under_a_plain_name():
    named = [getattr(loraprobe, name) for name in loraprobe.__all__]
    raised = {one for one in named if isinstance(one, type)}
    kinds = {
        one for one in vars(errors).values() if isinstance(one, type) and one.__base__ is not object
    }
    assert raised == {one for one in kinds if issubclass(one, errors.LoraprobeError)}
    assert all(one.__name__.isalpha() for one in raised)
