"""Saved compositions that peft's own Arrow computes equally, and those that say it does not."""

import re
import warnings
from pathlib import Path

import composing
import making
import pytest
import torch
from composing import logits

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.base import open_base
from loraprobe.composition import Composition
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS
from loraprobe.routing._saved import load_composition, why_not_peft

GPT2 = {
    f"transformer.h.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {"attn.c_attn": (48, 16), "mlp.c_fc": (64, 16)}.items()
}


def planted(name: str, seed: int, shapes=making.LLAMA):
    """Deltas whose second singular value is 0.97 of the first, in every module."""
    modules = {}
    for number, (path, (out, inp)) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(seed * 100 + number)
        U, V = (
            torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64)).Q
            for n in (out, inp)
        )
        S = torch.tensor([2.0, 2.0 * 0.97, 0.1], dtype=torch.float64)
        A, B = (V.T * S[:, None].sqrt()).float(), (U * S.sqrt()).float()
        modules[path] = LowRank(A, B, 1.5)
    return adapter_of(name, modules, base_model="owner/base")


def base_of(model, directory: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return open_base(directory, "tiny")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("router", ["arrow", "arrow:top_k=2,temperature=0.3"])
def test_peft_gives_the_same_by_the_lines_of_the_card(tmp_path, kind, router):
    """Which are run as they stand."""
    model, shapes = composing.base(kind), making.LLAMA if kind == "llama" else GPT2
    kinds = dict.fromkeys(shapes, "conv1d" if kind == "gpt2" else "linear")
    for seed, name in enumerate("abc"):
        modules = dict(planted(name, seed, shapes).modules.items())
        adapter_of(name, modules, kinds=kinds).save(tmp_path / name)
    base_of(model, tmp_path / "base")
    made = loraprobe.compose(
        [str(tmp_path / n) for n in "abc"], router=router, base=str(tmp_path / "base")
    )
    assert made.why_not_peft is None
    made.save(tmp_path / "out")
    ours = logits(model, load_composition(tmp_path / "out"))
    assert composing.relative(ours, making.hidden(model)) > 0.01
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)[1]
    code = code.replace('pathlib.Path(".")', f"pathlib.Path({str(tmp_path / 'out')!r})")
    code = re.sub(r"^base = .*\n", "", code, flags=re.MULTILINE)  # it is given here
    space = {"base": composing.base(kind)}
    exec(code, space)
    assert composing.relative(making.hidden(space["model"]), ours) < 1e-5
    # Pinned: peft left to itself routes otherwise.
    alone = {"base": composing.base(kind)}
    exec(code.partition("from safetensors")[0], alone)
    assert composing.relative(making.hidden(alone["model"]), ours) > 1e-4


def test_why_peft_cannot_is_said_by_name(tmp_path):
    base = base_of(making.tiny_llama(), tmp_path / "base")
    good = tuple(planted(name, seed) for seed, name in enumerate("ab"))
    q = "model.layers.0.self_attn.q_proj"
    some = {path: shape for path, shape in making.LLAMA.items() if "layers.0" in path}
    fewer = {path: shape for path, shape in making.LLAMA.items() if path != q}
    rank = {path: 3 + (path == q) for path in making.LLAMA}
    dora = adapter_of("dora", dict(good[0].modules.items()), magnitudes={q: torch.ones(16)})
    embedding = adapter_of(
        "emb",
        {"model.embed_tokens": making.random_update(16, 40)},
        kinds={"model.embed_tokens": "embedding"},
    )

    def why(experts, router="arrow", known=base):
        return why_not_peft(Composition("x", tuple(experts), ROUTERS.make(router)), known)

    assert why(good) is None
    for experts, router, known, said in (
        (good, "arrow", None, "without the base"),
        (good, "constant", base, "its router is constant"),
        (good, "spectr", base, "its router is spectr"),
        (good, "arrow:normalize=true", base, "without normalize"),
        (good, "arrow:per=sequence", base, "each token"),
        (good, "arrow:temperature=inf", base, "finite temperature"),
        ((good[0], planted("c", 3, shapes=fewer)), "arrow", base, "c is more than"),
        ((good[0], making.random_adapter("c", rank=rank)), "arrow", base, "or ranks than a"),
        ((good[0], dora), "arrow", base, "dora is more than"),
        ((embedding,), "arrow", base, "emb is more than"),
        (
            [planted(n, 1, shapes=some) for n in "ab"],
            "arrow",
            base,
            "put on model.layers.1",
        ),
    ):
        assert said in why(experts, router, known), said
