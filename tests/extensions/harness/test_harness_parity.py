"""Scores on lm-evaluation-harness tasks equal those of the harness's own model."""

import shutil
from dataclasses import replace

import making
import pytest
import torch
from harness_tasks import WORLD, write_tasks

import loraprobe
from loraprobe.composition import Composition
from loraprobe.evaluation import Asker, System
from loraprobe.extensions.harness.tasks import load_harness
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import ModelScorer

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
NAMES = ["both_choices", "spouse_written", "facts_text", "last_word"]
ADAPTER = WORLD / "adapters/newcomers"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), items=10)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A base with a chat template that knows no system turn, and its own way to generate."""
    base = tmp_path_factory.mktemp("chatty") / "base"
    shutil.copytree(WORLD / "base", base)
    making.edit(base / "tokenizer_config.json", chat_template=TEMPLATE)
    making.edit(base / "generation_config.json", repetition_penalty=1.5)
    return base


def theirs(base, folder, peft=None, **options):
    """What the harness's own model scores: results and samples."""
    more = {"peft": str(peft)} if peft else {}
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(base), "dtype": "float32", **more},
        tasks=NAMES,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        **options,
    )


def scorer_of(base, chat=False):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return ModelScorer(model, AutoTokenizer.from_pretrained(base), chat_template=chat)


def ours(scorer, tasks, adapter=None):
    """Our value of each item, and the reply as judged: (task, item) -> (value, text)."""
    alone = None
    if adapter is not None:
        alone = Composition("a", (loraprobe.load(adapter),), ConstantGates((1.0,)))
    rows = Asker(scorer).run([System("one", "adapter", alone)], tasks)
    return {(row.task, row.item): (row.value, row.text) for row in rows}


def load(folder, names=NAMES, **options):
    return load_harness(f"lm_eval:{','.join(names)}@{folder}", run_unsafe_code=True, **options)


def same(mine, found, metrics=None):
    """Asserts that both give every item of every task the same value."""
    judged = {"both_choices": "acc", "spouse_written": "exact_match", "last_word": "acc"}
    judged |= metrics or {}
    seen = 0
    for task, samples in found["samples"].items():
        whole = "both_choices" if task.endswith("_choice") else task
        chosen = [s for s in samples if s["filter"] == samples[0]["filter"]]
        words = [s.get("word_perplexity", (0.0, 1))[1] for s in chosen]
        for sample in chosen:
            item = str(sample["doc_id"]) if whole == task else f"{task}/{sample['doc_id']}"
            if task == "facts_text":
                theirs = -sample["word_perplexity"][0] * len(words) / sum(words)
            elif judged[whole] == "perplexity":
                theirs = -sample["perplexity"]
            else:
                theirs = sample[judged[whole]]
            value, text = mine[whole, item]
            assert value == pytest.approx(theirs, rel=1e-4, abs=1e-4)
            if task == "spouse_written":
                assert text == sample["filtered_resps"][0]
            seen += 1
    assert seen == len(mine) == 5 * 10


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["base", "peft"])
def test_every_item_scores_as_in_the_harness(folder, adapter):
    found = theirs(WORLD / "base", folder, adapter)
    mine = ours(scorer_of(WORLD / "base"), load(folder), adapter)
    same(mine, found)
    if adapter is not None:  # the adapter knows the facts, so scores are not all 0
        assert found["results"]["spouse_written"]["exact_match,whole"] > 0.5


def test_chat_template_and_the_models_own_way_to_generate_are_the_harnesss(folder, chatty):
    found = theirs(chatty, folder, ADAPTER, apply_chat_template=True)
    metric = "last_word=perplexity"
    same(
        ours(scorer_of(chatty, chat=True), load(folder, metric=metric), ADAPTER),
        found,
        {"last_word": "perplexity"},
    )


def test_a_part_of_the_items_scores_as_in_the_whole_run(folder):
    """The examples in a prompt are those that the harness draws when it asks all items."""
    tasks = load(folder, ["spouse_written"])
    scorer = scorer_of(WORLD / "base")
    whole = ours(scorer, tasks, ADAPTER)
    few = [replace(task, items=task.items[7:3:-2]) for task in tasks]
    assert ours(scorer, few, ADAPTER) == {
        ("spouse_written", item): whole["spouse_written", item] for item in ("7", "5")
    }
