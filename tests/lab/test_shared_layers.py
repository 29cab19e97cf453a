"""Layers below all adapters: computed once for rows of one text, with the same answers."""

from __future__ import annotations

import making
import pytest
from composing import experts
from words import word_tokenizer

from loraprobe.composition import Composition
from loraprobe.routing.arrow import Arrow
from loraprobe.scoring import Scorer
from loraprobe_lab.calibration.ensembles import LogitEnsemble, write_together
from loraprobe_lab.calibration.routed_rows import RoutedRows
from loraprobe_lab.calibration.shared_layers import shared_layers
from loraprobe_lab.training.fast_training import layers_of

PROMPTS = ["ada lives in", "who is the mayor of ulm ?", "cy", "the mayor of ulm is", "bo is bo"]
GPT2 = {f"transformer.h.1.{name}": shape for name, shape in
        {"attn.c_attn": (48, 16), "mlp.c_fc": (64, 16)}.items()}  # fmt: skip
LLAMA = {path: shape for path, shape in making.LLAMA.items() if ".layers.1." in path}
ADDED = [LogitEnsemble.added((0.5, 0.5)), LogitEnsemble.added((1.0, 1.0))]


def scene(kind: str):
    """A scorer of a two-layer base, and two experts on its upper layer."""
    model = making.sharpened(making.tiny_gpt2() if kind == "gpt2" else making.tiny_llama())
    kinds = {"kinds": dict.fromkeys(GPT2, "conv1d")} if kind == "gpt2" else {}
    pair = tuple(experts(2, scaling=0.4, shapes=GPT2 if kind == "gpt2" else LLAMA, **kinds))
    return Scorer(model, word_tokenizer(), batch_size=64), pair


def written(scorer, pair, inner=None):
    gates = RoutedRows(inner=inner)
    ensembles = ADDED[1:] if inner else ADDED
    with scorer.with_composition(Composition("rows", pair, gates)):
        return write_together(scorer, PROMPTS, ensembles, gates.rows.set, max_new_tokens=8)


@pytest.mark.parametrize("inner", [None, Arrow(top_k=1)], ids=["constant", "arrow"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_the_same_and_rows_are_fewer(kind, inner):
    scorer, pair = scene(kind)
    wanted, rows = written(scorer, pair, inner), []
    attention = next(m for n, m in layers_of(scorer.model)[0].named_modules() if "attn" in n)
    hook = attention.register_forward_hook(
        lambda _, args, kwargs, out: rows.append(len((*args, *kwargs.values())[0])),
        with_kwargs=True,
    )
    with shared_layers(scorer.model, pair) as count:
        assert count == 1 and written(scorer, pair, inner) == wanted
    shared, whole = list(rows), len(PROMPTS) * (3 if inner else 6)
    assert shared[0] == len(PROMPTS) and max(shared) < whole
    if inner is None:  # the two ensembles write different texts
        assert wanted[0] != wanted[1] and max(shared) > len(PROMPTS)
    rows.clear()
    assert written(scorer, pair, inner) == wanted and set(rows) == {whole}  # as before
    hook.remove()


def test_nothing_is_shared_above_an_adapter_or_outside_the_layers():
    scorer, pair = scene("llama")
    everywhere = experts(1, shapes=making.LLAMA)
    outside = experts(
        1, shapes={"model.embed_tokens": (16, 40)}, kinds={"model.embed_tokens": "embedding"}
    )
    for adapters in ([*pair, *everywhere], [*pair, *outside]):
        with shared_layers(scorer.model, adapters) as count:
            assert count == 0
