"""Merging compared with peft: equal where peft is right, a pinned difference where it is not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from making import DOMAINS, hidden, peft_adapter, random_update, tiny_gpt2, tiny_llama
from peft import PeftModel
from peft.utils import merge_utils

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import merge
from loraprobe.merging._engine import generators
from loraprobe.merging.sparse import DareLinear, DareTies, MagnitudePrune, Ties

WEIGHTS = [0.7, 0.4]
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[Path]:
    """Two adapters of a tiny Llama with equal ranks and different alphas."""
    root = tmp_path_factory.mktemp("pair")
    return [
        peft_adapter(root / "a", tiny_llama(), 1, r=4, lora_alpha=8, target_modules=TARGETS),
        peft_adapter(root / "b", tiny_llama(), 2, r=4, lora_alpha=4, target_modules=TARGETS),
    ]


def peft_deltas(directories: list[Path], combination: str, model: Any = None, **options: Any):
    """Module path -> dense delta of peft's own merge of these directories."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model or tiny_llama(), str(directories[0]), "0")
        for i, directory in enumerate(directories[1:], 1):
            wrapped.load_adapter(str(directory), str(i))
        names = [str(i) for i in range(len(directories))]
        wrapped.add_weighted_adapter(
            names, WEIGHTS[: len(names)], "merged", combination_type=combination, **options
        )
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight("merged").detach()
        for path, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight") and "merged" in module.lora_A
    }


def our_deltas(directories: list[Path], method: str, **options: Any) -> dict[str, torch.Tensor]:
    adapters = [read_adapter(d, name=str(i)) for i, d in enumerate(directories)]
    merged = merge(adapters, method, weights=WEIGHTS[: len(adapters)], **options).adapter
    return {path: update.delta() for path, update in merged.modules.items()}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[p] - theirs[p]).double().square().sum()) for p in ours)
    return (gap / sum(float(d.double().square().sum()) for d in ours.values())) ** 0.5


@pytest.mark.parametrize(
    ("combination", "options"), [("cat", {}), ("svd", {"svd_rank": 8}), ("svd", {"svd_rank": 3})]
)
def test_cat_and_svd_are_task_arithmetic(pair, combination, options):
    ours = our_deltas(pair, "task_arithmetic", rank=options.get("svd_rank", "auto"))
    assert distance(ours, peft_deltas(pair, combination, **options)) < 1e-5


def test_linear_is_factor_average_and_not_the_average(pair):
    theirs = peft_deltas(pair, "linear")
    assert distance(our_deltas(pair, "factor_average:variant=peft"), theirs) < 1e-5
    assert distance(our_deltas(pair, "task_arithmetic"), theirs) > 0.7  # the cross terms


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_elementwise_svd_types_are_ours_in_the_full_space(pair, method):
    theirs = peft_deltas(pair, f"{method}_svd", svd_rank=8, density=0.3)
    assert distance(our_deltas(pair, f"{method}:density=0.3", rank=8), theirs) < 1e-5
    apart = peft_deltas(pair, method, density=0.3)  # without svd: on A and on B, not on deltas
    assert distance(our_deltas(pair, f"{method}:density=0.3", rank=8), apart) > 0.3


def test_rslora_comes_out_too_large_by_the_root_of_the_rank_in_peft(tmp_path):
    """The merged config inherits use_rslora with alpha = r: the scaling is sqrt(r), not 1."""
    source = peft_adapter(
        tmp_path / "rs", tiny_llama(), 3, r=4, lora_alpha=8, target_modules=TARGETS, use_rslora=True
    )
    theirs = peft_deltas([source, source], "cat")
    ours = our_deltas([source, source], "task_arithmetic")
    assert distance({p: 8**0.5 * d for p, d in ours.items()}, theirs) < 1e-5  # rank 4 + 4
    assert distance(ours, theirs) == pytest.approx(8**0.5 - 1, abs=1e-4)


# peft's functions on dense task tensors, which is what the full space holds.


def stacked() -> torch.Tensor:
    return torch.stack([random_update(20, 17, 3, i, 0.5).delta() for i in range(3)])


SIGNED = torch.tensor([0.7, 0.3, -0.4])


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("election", ["total", "frequency"])
def test_ties_is_pefts_function(density, election):
    deltas = stacked()
    theirs = merge_utils.ties(list(deltas), SIGNED, density, election)
    ours = Ties(density, election=election)(deltas, SIGNED)
    torch.testing.assert_close(ours, theirs)


def test_magnitude_prune_is_pefts_function():
    deltas = stacked()
    theirs = merge_utils.magnitude_prune(list(deltas), SIGNED, 0.35)
    torch.testing.assert_close(MagnitudePrune(0.35)(deltas, SIGNED), theirs)


@pytest.mark.parametrize("method", [DareLinear(0.4), DareTies(0.4)])
def test_dare_is_pefts_function_given_the_masks(method, monkeypatch):
    deltas = stacked()
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    masks = iter([torch.rand(20, 17, generator=g) < 0.4 for g in draws])
    monkeypatch.setattr(
        merge_utils,
        "random_pruning",
        lambda tensor, density, rescale: tensor * next(masks) / density,
    )
    function = merge_utils.dare_ties if isinstance(method, DareTies) else merge_utils.dare_linear
    theirs = function(list(deltas), SIGNED, 0.4)
    ours = method(deltas, SIGNED, [torch.Generator().manual_seed(i) for i in range(3)])
    torch.testing.assert_close(ours, theirs)


def test_masks_do_not_depend_on_scale_or_basis_but_on_everything_else():
    update = random_update(20, 17, 3, 1, 0.5)
    same = [
        update,
        update.scaled(7.0),
        LowRank(update.A * 4, update.B / 4, update.scaling),
        LowRank(update.A.flip(0), update.B.flip(1), update.scaling),
    ]
    other = [random_update(20, 17, 3, 2, 0.5), update.scaled(-1.0)]

    def first(updates, module="m", seed=0):
        return [g.initial_seed() for g in generators(updates, module, seed)]

    assert len(set(first(same))) == 1
    assert len(set(first([update, *other]))) == 3
    assert first([update], seed=1) != first([update]) != first([update], module="n")


# A merge as peft loads it.


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_peft_loads_a_merge_as_the_mean_of_the_models_updates(build, tmp_path):
    """Mixed ranks, mixed targets, rsLoRA and plain: loaded, it is the base plus the mean."""
    gpt2 = build is tiny_gpt2
    first, second = (["c_attn", "c_proj"], ["c_attn"]) if gpt2 else (TARGETS, ["q_proj", "o_proj"])
    conv = {"fan_in_fan_out": gpt2}
    a = {"r": 4, "lora_alpha": 8, "target_modules": first}
    b = {"r": 3, "lora_alpha": 9, "target_modules": second, "rank_pattern": {"0.*": 2}}
    paths = [
        peft_adapter(tmp_path / "a", build(), 1, **a, **conv),
        peft_adapter(tmp_path / "b", build(), 2, use_rslora=True, **b, **conv),
    ]
    merge([read_adapter(p) for p in paths]).save(tmp_path / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a key that fits nothing only warns
        loaded = PeftModel.from_pretrained(build(), str(tmp_path / "merged")).eval()
    expected = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        singles = [PeftModel.from_pretrained(build(), str(p)).merge_and_unload() for p in paths]
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            changes = [dict(single.named_parameters())[name] - parameter for single in singles]
            parameter += sum(changes) / 2
    torch.testing.assert_close(hidden(loaded), hidden(expected), rtol=1e-4, atol=1e-5)
    assert (hidden(loaded) - hidden(build())).abs().max() > 0.05


def test_gpt2_adapters_merge_to_the_mean_as_peft_runs_it(shelf, tmp_path):
    """Three adapters on a randomly initialised gpt2: the outputs of the merge are those of the base
    with the mean of the three updates in its weights."""
    paths, adapters = [shelf.paths[name] for name in DOMAINS], shelf.adapters(*DOMAINS)
    merged = merge(adapters)
    rank = sum(next(iter(adapter.modules.values())).rank for adapter in adapters)
    assert merged.rank == rank and merged.compression_error == 0.0
    assert merged.rounding_error < 1e-6
    merged.save(tmp_path / "merged")

    model = shelf.base(vocab_size=100)
    bare = hidden(model, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(model, str(tmp_path / "merged")).eval()
        ours = hidden(loaded, 100)
        model = loaded.unload()
        wrapped = PeftModel.from_pretrained(model, str(paths[0]), "0")
        for i in (1, 2):
            wrapped.load_adapter(str(paths[i]), str(i))
        means = {
            path.removeprefix("base_model.model."): sum(
                module.get_delta_weight(str(i)) for i in range(3)
            )
            / 3
            for path, module in wrapped.named_modules()
            if hasattr(module, "get_delta_weight") and "0" in module.lora_A
        }
        model = wrapped.unload()
    assert set(means) == set(adapters[0].modules)
    with torch.no_grad():
        for path, mean in means.items():
            model.get_submodule(path).weight += mean
    theirs = hidden(model, 100)
    gap = float((ours - theirs).norm() / (theirs - bare).norm())
    assert gap < 1e-4, "relative to the effect of the merge, not to the logits"


def test_one_flag_of_a_model_with_two_kinds_of_layer_is_no_conflict(tmp_path):
    """peft sets fan_in_fan_out anew at every layer and saves the last, here that of lm_head."""
    plain, flagged = (
        peft_adapter(
            tmp_path / name, tiny_gpt2(), seed, r=2, fan_in_fan_out=True, target_modules=targets
        )
        for seed, name, targets in ((1, "a", ["c_attn", "lm_head"]), (2, "b", ["c_attn", "wte"]))
    )
    flags = [
        json.loads((p / "adapter_config.json").read_text())["fan_in_fan_out"]
        for p in (plain, flagged)
    ]
    assert flags == [False, True]
    loraprobe.merge([plain, flagged], method="sum").save(tmp_path / "out")
    a, b, out = (_pefts_deltas(tiny_gpt2(), p) for p in (plain, flagged, tmp_path / "out"))
    assert set(out) == set(a) | set(b)
    for path, delta in out.items():
        expected = sum(d[path] for d in (a, b) if path in d)
        assert float((delta - expected).norm() / expected.norm()) < 1e-6, path


PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
    "alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 16},
}
ODD = {
    "rslora with patterns": [
        {"r": 4, "lora_alpha": 8, "use_rslora": True, **PATTERNS}
        | {"target_modules": [*TARGETS, "up_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "rank_pattern": {"down_proj": 5}},
    ],
    "five, partial, mixed ranks": [
        {"r": i + 1, "use_rslora": i % 2 == 0, "target_modules": TARGETS[: i % 3 + 1]}
        for i in range(5)
    ],
    "one": [{"r": 2, "lora_alpha": 4, "target_modules": TARGETS}],
    "layers apart": [
        {"r": 2, "target_modules": TARGETS, "layers_to_transform": [0]},
        {"r": 3, "target_modules": TARGETS, "layers_to_transform": [1]},
    ],
    "tied head and embedding": [
        {"r": 2, "target_modules": ["lm_head", "q_proj"]},
        {"r": 3, "target_modules": ["embed_tokens", "q_proj"]},
    ],
}


@pytest.mark.parametrize("case", ODD)
def test_signed_and_zero_weights_give_the_sum_of_pefts_deltas(case, tmp_path):
    """Written by peft, merged here, read again by peft; the oracle is a dense float64 sum."""
    paths = [
        peft_adapter(tmp_path / f"a{i}", tiny_llama(), i + 1, **config)
        for i, config in enumerate(ODD[case])
    ]
    weights = [(0.7, -0.4, 0.0, 1.3, -1.0)[i] for i in range(len(paths))]
    loraprobe.merge(paths, method="task_arithmetic", weights=weights).save(tmp_path / "out")
    sources = [_pefts_deltas(tiny_llama(), path) for path in paths]
    out = _pefts_deltas(tiny_llama(), tmp_path / "out")
    assert set(out) == {path for source in sources for path in source}
    for path, delta in out.items():
        terms = zip(weights, sources, strict=True)
        expected = sum(w * source[path] for w, source in terms if path in source)
        assert (delta - expected).norm() <= 1e-6 * expected.norm(), path


def _pefts_deltas(model, directory):
    """The change of each module of a model by peft, in float64."""
    wrapped = PeftModel.from_pretrained(model, str(directory)).double()
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in wrapped.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
