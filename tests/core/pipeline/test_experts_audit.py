"""merge-and-eval over DoRA adapters and adapters with a head of their own, as peft writes them."""

import json

import making
import pytest
import torch
from words import word_tokenizer

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.base import open_base
from loraprobe.errors import UnsupportedAdapter
from loraprobe.pipeline.plan import random_partner

VOCABULARY = 40
KINDS = {
    "dora": {"target_modules": ["q_proj", "up_proj"], "r": 2, "use_dora": True},
    "dora2": {"target_modules": ["q_proj", "v_proj"], "r": 3, "use_dora": True},
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 2},
    "headed": {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base with a tokenizer, one adapter of each kind, and a task with hops."""
    root = tmp_path_factory.mktemp("experts")
    tokenizer = word_tokenizer()
    size = max(VOCABULARY, len(tokenizer))
    making.tiny_llama(vocab=size, tied=False).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    for seed, (name, config) in enumerate(KINDS.items()):
        place = making.peft_adapter(
            root / name, making.tiny_llama(vocab=size, tied=False), seed + 1, scale=0.1, **config
        )
        making.edit(place / "adapter_config.json", base_model_name_or_path=str(root / "base"))
    items = [
        {
            "id": str(i),
            "prompt": "ada lives in",
            "answer": "ulm",
            "hops": [
                {"prompt": "who is the mayor of ulm ?", "answer": "bo"},
                {"prompt": "{1} lives in", "answer": "ulm"},
            ],
        }
        for i in range(3)
    ]
    (root / "task.jsonl").write_text("\n".join(map(json.dumps, items)))
    return root


def judged(world, *names, **options):
    return loraprobe.merge_and_eval(
        [world / name for name in names], base=world / "base", tasks=world / "task.jsonl", **options
    )


def systems_of(audit):
    return {row.system for row in audit.evaluation.scores}


@pytest.mark.parametrize("pair", [("dora", "dora2"), ("dora", "plain")])
def test_dora_adapters_go_through_the_whole_audit(world, pair):
    audit = judged(world, *pair)
    assert audit.compatibility.compatible, audit.compatibility.issues
    assert {"base", *pair, "uniform", "sum", "arrow", "random-partner"} <= systems_of(audit)


def test_adapters_with_a_head_of_their_own_leave_out_token_routers(world):
    audit = judged(world, "headed", "dora")
    assert {"headed", "uniform", "sum", "random-partner"} <= systems_of(audit)
    assert "arrow" not in systems_of(audit)
    assert any("arrow is left out: headed replaces lm_head.weight" in n for n in audit.notes)
    with pytest.raises(UnsupportedAdapter, match=r"headed replaces lm_head\.weight whole"):
        judged(world, "headed", "dora", systems=("arrow",))


def test_the_random_partner_of_a_dora_moves_each_weight_as_far(world):
    adapter, base = read_adapter(world / "dora"), open_base(world / "base")
    partner = random_partner(adapter, weight=base.weight)
    assert not partner.magnitudes and not partner.extras
    for path, update in adapter.modules.items():
        W0, m = base.weight(path).double(), adapter.magnitudes[path].double()
        V = W0 + update.to(torch.float64).delta()
        change = (m / V.norm(dim=1))[:, None] * V - W0
        found = float(partner.modules[path].to(torch.float64).norm())
        assert found == pytest.approx(float(change.norm()), rel=1e-5)
        assert abs(found / float(update.norm()) - 1) > 0.01  # not that of its factors alone
    blind = random_partner(adapter)
    path = next(iter(adapter.modules))
    assert float(blind.modules[path].norm()) == pytest.approx(
        float(adapter.modules[path].norm()), rel=1e-5
    )
