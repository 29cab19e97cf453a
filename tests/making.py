"""Test data: random and planted adapters, tiny models, PEFT directories of any layout.

Everything is seeded and small. Directories are written by peft itself (`peft_adapter`) or key by
key (`write_adapter`), so that reading is never tested against our own writing alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.errors import BaseError
from loraprobe.lora.lowrank import LowRank

SHARED = Path(__file__).parents[2] / "shared" / "data"

# Module path -> (out, in) of a two-layer Llama with width 16 and grouped heads.
LLAMA = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }.items()
}


def random_update(
    out: int,
    inp: int,
    rank: int = 4,
    seed: int = 0,
    scaling: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> LowRank:
    """Gaussian factors from a seed: A [rank, inp], B [out, rank]."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, inp, generator=generator, dtype=torch.float64)
    B = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(A.to(dtype), B.to(dtype), scaling)


def random_adapter(
    name: str = "a",
    shapes: Mapping[str, tuple[int, int]] = LLAMA,
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    scaling: float | Mapping[str, float] = 0.5,
    dtype: torch.dtype = torch.float32,
    base_model: str | None = "owner/base",
    kinds: Mapping[str, str] | None = None,
) -> Adapter:
    """An adapter in memory with Gaussian factors; ranks and scalings may differ by module."""
    modules = {}
    for number, (path, (out, inp)) in enumerate(shapes.items()):
        r = rank if isinstance(rank, int) else rank[path]
        s = scaling if isinstance(scaling, (int, float)) else scaling[path]
        modules[path] = random_update(out, inp, r, seed * 1000 + number, s, dtype)
    return adapter_of(name, modules, base_model=base_model, kinds=kinds)  # type: ignore[arg-type]


def planted_pair(
    cosine: float,
    norms: tuple[float, float] = (1.0, 1.0),
    out: int = 24,
    inp: int = 20,
    rank: int = 3,
    seed: int = 0,
    path: str = "model.layers.0.mlp.up_proj",
) -> tuple[Adapter, Adapter]:
    """Two one-module adapters whose deltas have exactly this cosine and these Frobenius norms.

    The second delta is cosine * first + sqrt(1 - cosine^2) * orthogonal, all of unit norm; both
    have flat spectra, and their subspaces are orthogonal where cosine is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(out, 2 * rank, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(inp, 2 * rank, generator=generator, dtype=torch.float64)).Q
    own, other = slice(0, rank), slice(rank, 2 * rank)
    unit = rank**-0.5
    sine = (1 - cosine**2) ** 0.5
    first = LowRank(V[:, own].T, U[:, own] * unit, norms[0])
    A = torch.cat([V[:, own].T, V[:, other].T])
    B = torch.cat([U[:, own] * cosine, U[:, other] * sine], dim=1) * unit
    second = LowRank(A, B, norms[1])
    return tuple(  # type: ignore[return-value]
        adapter_of(name, {path: update.to(torch.float64)}, base_model="owner/base")
        for name, update in (("a", first), ("b", second))
    )


def dense(update: LowRank) -> Tensor:
    """delta W in float64, [out, in], multiplied out independently of LowRank's own methods."""
    return float(update.scaling) * update.B.double() @ update.A.double()


def generator(seed: int) -> torch.Generator:
    """A random generator of that seed."""
    return torch.Generator().manual_seed(seed)


def regauged(update: LowRank, seed: int = 0) -> LowRank:
    """The same delta in another basis: A -> G A, B -> B G^-1 with a well-conditioned G."""
    generator = torch.Generator().manual_seed(seed)
    r = update.rank
    G = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
    G = G * torch.linspace(0.5, 2.0, r, dtype=torch.float64)
    A = G @ update.A.double()
    B = update.B.double() @ torch.linalg.inv(G)
    return LowRank(A.to(update.A.dtype), B.to(update.B.dtype), update.scaling)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tiny_model(family: str, seed: int = 0, **config: Any) -> Any:
    """A randomly initialised language model of a family shaped like Llama: two layers, width 16.

    config: what its transformers config has more, or otherwise.
    """
    import transformers

    torch.manual_seed(seed)
    made = getattr(transformers, f"{family}Config")(**{**SIZES, **config})
    return getattr(transformers, f"{family}ForCausalLM")(made).eval()


def tiny_gemma3_with_vision() -> Any:
    """A randomly initialised Gemma 3 with vision, two text layers and a tied embedding."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    heads = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    text = heads | {"num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2}
    config = Gemma3Config(
        text_config=text | {"vocab_size": 40, "sliding_window": 8},
        vision_config=heads | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(config)


def tiny_llama(seed: int = 0, vocab: int = 40, tied: bool = True) -> Any:
    """A randomly initialised two-layer Llama whose linear layers are those of `LLAMA`."""
    return tiny_model("Llama", seed, vocab_size=vocab, tie_word_embeddings=tied)


GPT2_SIZES = dict.fromkeys(("n_layer", "n_head"), 2) | {"n_embd": 16, "n_positions": 64}
GPT2_SIZES |= {"bos_token_id": 0, "eos_token_id": 0}


def tiny_phi3() -> Any:
    """A randomly initialised Phi 3, of which attention and MLP are fused, and heads are grouped."""
    return tiny_model("Phi3", pad_token_id=0, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-6)


def fused_and_split_model() -> tuple[Any, Any]:
    """A Phi 3 and a Llama that is the same model, because its weights are cut from the other's."""
    phi, llama = tiny_phi3(), tiny_llama(tied=False)
    places = {"q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 16), "v_proj": ("qkv_proj", 24)}
    places |= {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 24)}
    state, weights = {}, phi.state_dict()
    for name, tensor in llama.state_dict().items():
        _, _, part = name.removesuffix(".weight").rpartition(".")
        fused, start = places.get(part, (part, 0))
        state[name] = weights[name.replace(part, fused)][start : start + len(tensor)]
    llama.load_state_dict(state)
    torch.testing.assert_close(hidden(llama), hidden(phi), rtol=1e-4, atol=1e-5)
    return phi, llama


def tiny_gpt2(seed: int = 0, vocab: int = 40) -> Any:
    """A randomly initialised two-layer GPT-2 of width 16 (Conv1D layers)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, **GPT2_SIZES)).eval()


def peft_model(
    model: Any, seed: int = 0, scale: float = 0.3, name: str = "default", **config: Any
) -> Any:
    """The model wrapped by peft with every adapter parameter random, so that it has an effect."""
    from peft import LoraConfig, get_peft_model

    config.setdefault("task_type", "CAUSAL_LM")
    wrapped = get_peft_model(model, LoraConfig(**config), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return wrapped.eval()


def peft_adapter(directory: Path, model: Any, seed: int = 0, **config: Any) -> Path:
    """A PEFT directory as peft itself writes it."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model(model, seed, **config).save_pretrained(str(directory))
    return directory


def edit(file: Path, **changes: Any) -> None:
    """Changes keys of a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_adapter(
    directory: Path, tensors: Mapping[str, Tensor], pickle: bool = False, **config: Any
) -> Path:
    """A PEFT directory written key by key: `config` on top of r=4, lora_alpha=8 (ABSENT drops)."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    named = {"base_model_name_or_path": "owner/base", "target_modules": ["q_proj"]}
    settings = {k: v for k, v in {**plain, **named, **config}.items() if v is not ABSENT}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    if pickle:
        torch.save(dict(tensors), directory / "adapter_model.bin")
    else:
        save_file(dict(tensors), str(directory / "adapter_model.safetensors"))
    return directory


def saved_pair(
    directory: Path, *shapes: Mapping[str, tuple[int, int]], **options: Any
) -> list[Path]:
    """Two random adapters `a` and `b` of one base in the directory, as loraprobe saves them."""
    for seed, name in enumerate("ab", 1):
        random_adapter(name, *shapes, seed=seed, **options).save(directory / name)
    return [directory / "a", directory / "b"]


ABSENT: Any = object()  # a config key of write_adapter that is left out


def sharpened(model: Any) -> Any:
    """The model with every parameter three times as large, so that every token matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def base_tensors(weight: Callable | None = None, parameter: Callable | None = None) -> Any:
    """A base whose weights and parameters come from functions; what it lacks is a BaseError."""
    lacking = base_of({}).parameter
    return SimpleNamespace(weight=weight or lacking, parameter=parameter or lacking)


def base_of(parameters: Mapping[str, Tensor]) -> Any:
    """A base that has these parameters and no other."""

    def parameter(name: str) -> Tensor:
        if name not in parameters:
            raise BaseError(f"the base has no {name}")
        return parameters[name]

    return SimpleNamespace(weight=parameter, parameter=parameter)


def known(name: str) -> bool:
    """Whether a command or an option (--name) is there, which may be that of an extension."""
    from loraprobe.cli import NAMES
    from loraprobe.options import flag_of, table

    return name in NAMES or name in map(flag_of, table())


def skip_without(name: str) -> None:
    """Skips a test of a command or an option (--name) of an extension that is not installed."""
    if not known(name):
        pytest.skip(f"there is no {name}")


def command(name: str) -> Any:
    """What typer runs for a command, also for one in a group, such as "task new"."""
    from loraprobe.cli import command_of

    group, _, inside = name.partition(" ")
    return command_of(group).commands[inside] if inside else command_of(group)


def call(*arguments: object, **options: Any) -> Any:
    """One call of the command line in this process; `options` are those of CliRunner.invoke."""
    from typer.testing import CliRunner

    from loraprobe.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def answered(*arguments: object, **options: Any) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON document of a call; that of an audit satisfies its schema."""
    import jsonschema

    from loraprobe.report.documents import json_schema

    done = call(*arguments, "--json", **options)
    found = json.loads(done.stdout)
    if "verdict" in found:
        jsonschema.validate(found, json_schema())
    return done.exit_code, found


def document(*arguments: object, code: int = 0, **options: Any) -> dict[str, Any]:
    """The JSON document of a call, which ends with this exit code."""
    ended, found = answered(*arguments, **options)
    assert ended == code, found
    return found


def shipped(scenario: str) -> list[str]:
    """The arguments of merge-and-eval that judge a scenario of the shipped world."""
    from loraprobe.demo import shipped_world

    world = shipped_world()
    chosen = world.scenario(scenario)
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    tasks = [part for task in chosen.tasks for part in ("--task", str(task))]
    return [*refs, *tasks, "--base", str(world.base), "--threads", "1"]


def hidden(model: Any, vocab: int = 40) -> Tensor:
    """Logits of fixed tokens, double precision where the model is."""
    tokens = torch.arange(2 * 7).reshape(2, 7) * 5 % vocab
    with torch.no_grad():
        return model(input_ids=tokens).logits


def narrow(monkeypatch, most: int, error: Exception) -> list[int]:
    """Every Llama now fails above so many sequences, half way through its layers."""
    from transformers.models.llama import modeling_llama

    real, seen = modeling_llama.LlamaDecoderLayer.forward, []

    def forward(self, hidden_states, *args, **kwargs):
        seen.append(hidden_states.shape[0])
        if self.self_attn.layer_idx == 1 and seen[-1] > most:
            raise error
        return real(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)
    return seen
