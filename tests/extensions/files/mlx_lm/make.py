"""Writes the adapters of mlx-lm beside this file, with the mlx-lm that is installed (0.32.2 did).

    python tests/extensions/files/mlx_lm/make.py        on Linux with mlx[cpu] and mlx-lm

Each directory is an adapter as mlx-lm saves it: its layers, its tensors, its config. Its file
`deltas.safetensors` has what mlx-lm's own `fuse` adds to each weight of the base, and
`base.safetensors` has these weights. `python make.py check DIR` loads an adapter into that base by
mlx-lm's `load_adapters` and prints the largest difference to the deltas of lora or dora beside it.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

HERE = Path(__file__).parent
KEYS = ["self_attn.q_proj", "mlp.down_proj"]
KINDS = {"lora": KEYS, "dora": KEYS, "table": [*KEYS, "model.embed_tokens"]}


def base():
    mx.random.seed(0)
    args = llama.ModelArgs(
        model_type="llama", hidden_size=16, num_hidden_layers=2, intermediate_size=24,
        num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=40, num_key_value_heads=1, head_dim=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = llama.Model(args)
    mx.eval(model.parameters())
    return model


def deltas(place: Path):
    model = base()
    before = dict(tree_flatten(model.parameters()))
    load_adapters(model, str(place))
    fused = [(name, m.fuse()) for name, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    after = dict(tree_flatten(model.parameters()))
    changed = [f"{name}.weight" for name, _ in fused]
    return {key: after[key] - before[key] for key in changed}, {k: before[k] for k in changed}


def write(kind: str, place: Path) -> None:
    parameters = {"rank": 2, "scale": 5.0, "dropout": 0.0, "keys": KINDS[kind]}
    model = base()
    model.freeze()
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    mx.random.seed(7)
    trained = {}
    for key, value in tree_flatten(model.trainable_parameters()):
        moves = key.rsplit(".", 1)[-1] in ("lora_b", "m")
        trained[key] = value + 0.2 * mx.random.normal(value.shape) if moves else value
    place.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(place / "adapters.safetensors"), trained)
    config = {"model": "base", "fine_tune_type": "dora" if kind == "dora" else "lora",
        "num_layers": 2, "lora_parameters": parameters, "batch_size": 4, "seed": 0}  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(config, indent=4))
    added, before = deltas(place)
    mx.save_safetensors(str(place / "deltas.safetensors"), added)
    mx.save_safetensors(str(place / "base.safetensors"), before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        place = Path(sys.argv[2])
        kind = json.loads((place / "adapter_config.json").read_text())["fine_tune_type"]
        wanted, (found, _) = mx.load(str(HERE / kind / "deltas.safetensors")), deltas(place)
        assert found.keys() == wanted.keys()
        print(max(mx.abs(found[key] - wanted[key]).max().item() for key in found))
    else:
        for kind in KINDS:
            write(kind, HERE / kind)
