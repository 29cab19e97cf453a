"""Training learns what plain steps learn, and leaves the model as it was."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from loraprobe_lab.training import (
    Example,
    Recipe,
    batches_of_like_length,
    build_tokenizer,
    collate,
    encode,
    layers_of,
    loss_at_labels,
    optimise,
    train_adapter,
)

TEXTS = [Example(f"Where is {a}", f" {b} {c}") for a, b, c in ("ABC", "DEF", "GAF", "CBA")]
TEXTS += [Example("Who", " A D", end=False)]
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def a_model(kind: str, tokenizer):
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    torch.manual_seed(3)
    if kind == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**common, **shape, **heads)).eval()
    config = GPT2Config(**common, n_embd=32, n_layer=3, n_head=4, n_positions=32)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([e.prompt + e.completion for e in TEXTS])


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tokenizer):
    return a_model(request.param, tokenizer)


def learned(directory):
    return load_file(directory / "adapter_model.safetensors")


def train(model, tokenizer, place, **recipe):
    plan = Recipe(rank=2, warmup=2, batch_size=3, learning_rate=1e-2, seed=5, **recipe)
    return learned(train_adapter(model, tokenizer, TEXTS, plan, place, base_name="x/y"))


def own_loss(model, batch):
    """As transformers computes it."""
    return model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss


def plainly(model, tokenizer, upper: int, steps: int):
    """The same adapter by the whole model in float32 and its own loss."""
    recipe = Recipe(
        rank=2, warmup=2, batch_size=3, learning_rate=1e-2, seed=5, upper=upper, steps=steps
    )
    names = LLAMA_LINEAR if model.config.model_type == "llama" else ["c_attn", "c_proj", "c_fc"]
    count = len(layers_of(model))
    torch.manual_seed(5)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=2,
            lora_alpha=2,
            target_modules=names,
            layers_to_transform=list(range(count - upper, count)),
        ),
    )
    rows = [encode(tokenizer, e) for e in TEXTS]
    batches = batches_of_like_length([len(tokens) for tokens, _ in rows], 5, 3)
    pad = tokenizer.pad_token_id
    optimise(
        [p for p in wrapped.parameters() if p.requires_grad],
        lambda: own_loss(wrapped, collate([rows[i] for i in next(batches)], pad)),
        recipe,
    )
    found = {
        name.replace(".default", ""): value.detach().clone()
        for name, value in wrapped.named_parameters()
        if "lora_" in name
    }
    wrapped.unload()
    return found


class TestSameLearning:
    def test_upper_layers_learn_as_by_the_models_own_loss(self, model, tokenizer, tmp_path):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        cheap = train(model, tokenizer, tmp_path / "a", upper=2, steps=12)
        plain = plainly(model, tokenizer, upper=2, steps=12)
        assert sorted(cheap) == sorted(plain) and cheap
        assert any(value.abs().max() > 0.01 for key, value in cheap.items() if "lora_B" in key)
        for name, value in cheap.items():
            assert torch.allclose(value, plain[name], atol=2e-4), name

    def test_loss_is_the_models_own(self, model, tokenizer):
        batch = collate([encode(tokenizer, e) for e in TEXTS], tokenizer.pad_token_id)
        found = loss_at_labels(model, model, batch)
        assert torch.allclose(found, own_loss(model, batch), atol=1e-5)


class TestBatches:
    def test_every_example_is_seen_equally_often(self):
        batches = batches_of_like_length([3, 9, 4, 8, 5], 1, 2)
        drawn = [i for _ in range(40) for i in next(batches)]
        assert sorted(drawn) == sorted(list(range(5)) * 16)

    def test_batches_are_of_like_length(self):
        lengths = [5, 20] * 40
        drawn = batches_of_like_length(lengths, 1, 5)
        batches = [[lengths[i] for i in next(drawn)] for _ in range(16)]
        mixed = sum(len(set(batch)) > 1 for batch in batches)
        assert mixed <= 4  # at most one of each four
        assert len({batch[0] for batch in batches[:4]}) == 2  # and not the short ones first


class TestModelComesBack:
    @pytest.mark.parametrize("upper", [1, None])
    def test_after_training_it_answers_as_before(self, model, tokenizer, tmp_path, upper):
        ids = torch.tensor([encode(tokenizer, TEXTS[0])[0]])
        before, kept = model(input_ids=ids).logits, [p.data_ptr() for p in model.parameters()]
        train(model, tokenizer, tmp_path / "a", steps=2, upper=upper)
        assert torch.equal(model(input_ids=ids).logits, before)
        assert [p.data_ptr() for p in model.parameters()] == kept
        assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())

    def test_after_an_interruption_too(self, model, tokenizer, tmp_path):
        def stop(*_):
            raise KeyboardInterrupt

        plan = Recipe(steps=3, upper=1, batch_size=2)
        kept = [p.data_ptr() for p in model.parameters()]
        with pytest.raises(KeyboardInterrupt):
            train_adapter(
                model, tokenizer, TEXTS, plan, tmp_path / "a", base_name="x/y", progress=stop
            )
        assert [p.data_ptr() for p in model.parameters()] == kept
        assert not (tmp_path / "a").exists()


class TestRefusals:
    @pytest.mark.parametrize("upper", [0, 4, 9])
    def test_upper_counts_layers_that_there_are(self, tokenizer, tmp_path, upper):
        with pytest.raises(ValueError, match="between 1 and 3"):
            train(a_model("llama", tokenizer), tokenizer, tmp_path / "a", upper=upper, steps=1)


def test_an_adapter_of_an_older_version_counts_as_finished(tokenizer, tmp_path):
    """`upper` came later, and `precision` has left."""
    model = a_model("llama", tokenizer)
    before = train(model, tokenizer, tmp_path / "a", steps=1)
    record = tmp_path / "a" / "training.json"
    notes = json.loads(record.read_text())
    del notes["recipe"]["upper"]
    notes["recipe"]["precision"] = "bfloat16"
    record.write_text(json.dumps(notes))
    after = train(model, tokenizer, tmp_path / "a", steps=1)
    assert json.loads(record.read_text()) == notes
    assert all(torch.equal(after[name], before[name]) for name in before)
