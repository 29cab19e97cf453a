"""The whole evaluation on a real model whose facts are planted, so that every outcome is known.

The model looks at the last token alone. Adapter `spouse` adds "ada -> bo", adapter `home` adds
"bo -> ulm", each a rank-one update of the head; after any other name the base ends its answer.
This is the one-layer theory in small: the sum of the two answers "bo" to the question about ada's
spouse's home and needs the step "bo" written out before it gets to "ulm"; their mean loses both.
"""

import pytest
import torch
import words

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition
from loraprobe.evaluation import Asker, System, attribute
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Attribution
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Hop, Item, Task, with_metrics


@pytest.fixture(scope="module")
def tokenizer():
    return words.word_tokenizer()


@pytest.fixture(scope="module")
def scorer(tokenizer):
    model = words.silent()
    names = [tokenizer.convert_tokens_to_ids(name) for name in ("ada", "bo", "ulm", "?")]
    with torch.no_grad():
        for i, name in enumerate(names):
            model.model.embed_tokens.weight[name, i] = 1
            model.lm_head.weight[tokenizer.eos_token_id, i] = 0.75
    return ModelScorer(model, tokenizer)


def fact(tokenizer, name, key: int, answer: str):
    """A rank-one update of the head: input direction `key` -> the answer's token."""
    A, B = torch.zeros(1, 16), torch.zeros(40, 1)
    A[0, key] = B[tokenizer.convert_tokens_to_ids(answer), 0] = 1
    return adapter_of(name, {"lm_head": LowRank(A, B, 1.0)})


@pytest.fixture(scope="module")
def systems(tokenizer):
    experts = (fact(tokenizer, "spouse", 0, "bo"), fact(tokenizer, "home", 1, "ulm"))

    def gated(name, *gates):
        return Composition(name, experts, ConstantGates(gates))

    singles = tuple(map(single, experts))
    return [
        System("base", "base"),
        *map(System.alone, singles),
        System("uniform", "merge", gated("uniform", 0.5, 0.5)),
        System("sum", "merge", gated("sum", 1.0, 1.0)),
        System("chain", "chain", chain=singles),
    ]


TASK = Task(
    "homes",
    (
        Item(
            "ada",
            "lives in the mayor of ada",
            ("ulm",),
            hops=(Hop("who is the mayor of ada", ("bo",)), Hop("who lives in {1}", ("ulm",))),
            cot_prompt="who lives in the mayor of ada",
        ),
    ),
)


def test_planted_facts_compose_step_by_step_only(scorer, systems):
    before = {k: v.clone() for k, v in scorer.model.state_dict().items()}
    results = Asker(scorer).run(systems, [TASK])
    said = {(r.system, r.part): (r.text, r.value) for r in results}
    assert said["base", "question"] == ("", 0.0)
    assert said["spouse", "hop1"] == ("bo", 1.0) and said["spouse", "hop2"] == ("", 0.0)
    assert said["home", "hop2"] == ("ulm", 1.0) and said["home", "question"] == ("", 0.0)
    assert said["sum", "question"] == ("bo ulm", 0.0) and said["sum", "steps"] == ("bo ulm", 1.0)
    assert said["uniform", "hop1"] == said["uniform", "hop2"] == ("", 0.0), "half a fact is none"
    assert said["chain", "question"] == ("ulm", 1.0)
    assert attribute(results, systems, [TASK]) == (
        Attribution("uniform", "homes", interference=1),
        Attribution("sum", "homes", step_by_step=1),
        Attribution("chain", "homes", solved=1),
    )
    after = scorer.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_choices_and_losses_come_from_the_model(scorer, systems):
    item = Item("1", "who lives in bo", ("ulm",), choices=("ulm", "ada"))
    task = Task("t", (item,))
    home, base = systems[2], systems[0]
    (result,) = Asker(scorer).run([home], [task])
    assert (result.metric, result.text, result.value) == ("choice", "ulm", 1.0)
    losses = {
        r.system: r.value
        for r in Asker(scorer).run([base, home], with_metrics([task], "answer_loss"))
    }
    scale = torch.rsqrt(torch.tensor(1 / 16 + scorer.model.config.rms_norm_eps)).item()
    for system, fact_weight in (("base", 0.0), ("home", 1.0)):
        logits = torch.zeros(40)
        logits[scorer.tokenizer.eos_token_id] = 0.75 * scale
        gold = scorer.tokenizer.convert_tokens_to_ids("ulm")
        logits[gold] += fact_weight * scale
        assert losses[system] == pytest.approx(-float(logits.log_softmax(0)[gold]), abs=1e-5)
