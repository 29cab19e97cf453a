"""Training learns what plain steps learn, and leaves the model as it was."""

import making
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from loraprobe_lab.training import (
    IGNORED,
    Example,
    Recipe,
    batches_of_like_length,
    build_tokenizer,
    collate,
    encode,
    layers_of,
    optimise,
    train_adapter,
)

TEXTS = [Example(f"Where is {a}", f" {b} {c}") for a, b, c in ("ABC", "DEF", "GAF", "CBA")]
TEXTS += [Example("Who", " A D", end=False)]
LINEAR = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
RECIPE = {"rank": 2, "warmup": 2, "batch_size": 3, "learning_rate": 1e-2, "seed": 5}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([e.prompt + e.completion for e in TEXTS])


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tokenizer):
    make = {"llama": making.tiny_llama, "gpt2": making.tiny_gpt2}[request.param]
    model = making.sharpened(make(3, len(tokenizer)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train(model, tokenizer, place, **options):
    """The factors of an adapter that `train_adapter` makes."""
    progress = {"progress": options.pop("progress")} if "progress" in options else {}
    plan = Recipe(**RECIPE | options)
    made = train_adapter(model, tokenizer, TEXTS, plan, place, base_name="x/y", **progress)
    return load_file(made / "adapter_model.safetensors")


def own_loss(model, batch):
    """As transformers computes it."""
    ids, mask = batch.input_ids, batch.attention_mask
    return model(input_ids=ids, attention_mask=mask, labels=batch.labels).loss


def test_upper_layers_learn_as_by_the_models_own_loss(model, tokenizer, tmp_path):
    """By the whole model in float32, with the same adapter and the same batches."""
    cheap = train(model, tokenizer, tmp_path / "a", upper=1, steps=12)
    torch.manual_seed(5)
    names, last = LINEAR[model.config.model_type], [len(layers_of(model)) - 1]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=names, layers_to_transform=last)
    wrapped = get_peft_model(model, config)
    rows = [encode(tokenizer, e) for e in TEXTS]
    batches = batches_of_like_length([len(tokens) for tokens, _ in rows], 5, 3)

    def next_loss():
        batch = [rows[i] for i in next(batches)]
        return own_loss(wrapped, collate(batch, tokenizer.pad_token_id))

    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimise(trained, next_loss, Recipe(**RECIPE, upper=1, steps=12))
    plain = {n.replace(".default", ""): p for n, p in wrapped.named_parameters() if "lora_" in n}
    assert sorted(cheap) == sorted(plain) and cheap
    assert any(value.abs().max() > 0.01 for key, value in cheap.items() if "lora_B" in key)
    for name, value in cheap.items():
        assert torch.allclose(value, plain[name], atol=2e-4), name


def test_the_loss_is_on_the_completion_and_eos_alone(tokenizer):
    rows = [encode(tokenizer, e) for e in (TEXTS[0], TEXTS[-1])]
    batch, eos = collate(rows, tokenizer.pad_token_id), tokenizer.eos_token_id
    B, C, A, D = tokenizer.convert_tokens_to_ids([f"\u2581{name}" for name in "BCAD"])
    assert batch.labels.tolist() == [
        [IGNORED] * 4 + [B, C, eos],
        [IGNORED] * 2 + [A, D] + [IGNORED] * 3,
    ]
    assert batch.attention_mask.sum(1).tolist() == [7, 4]


@pytest.mark.parametrize("upper", [1, None])
def test_after_training_the_model_answers_as_before(model, tokenizer, tmp_path, upper):
    ids = torch.tensor([encode(tokenizer, TEXTS[0])[0]])
    before, kept = model(input_ids=ids).logits, [p.data_ptr() for p in model.parameters()]
    train(model, tokenizer, tmp_path / "a", steps=2, upper=upper)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert [p.data_ptr() for p in model.parameters()] == kept
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_after_an_interruption_too(model, tokenizer, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    kept = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, tmp_path / "a", steps=3, upper=1, progress=stop)
    assert [p.data_ptr() for p in model.parameters()] == kept
    assert not (tmp_path / "a").exists()
