"""The Python interface as a user types it, on adapters that peft wrote and a tiny model."""

import json
from functools import partial

import bases
import making
import pytest
import torch
import words

import loraprobe
from loraprobe.errors import UsageError

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
