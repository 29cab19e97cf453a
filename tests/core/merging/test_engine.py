"""A merge as a whole: what is read, written, refused and dropped, and what peft makes of it."""

import json
import re
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    LLAMA,
    hidden,
    peft_adapter,
    random_adapter,
    random_update,
    tiny_gpt2,
    tiny_llama,
    write_adapter,
)
from merges import F64, delta, merge
from peft import PeftModel

import loraprobe
from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.checkpoint import SafetensorsFile
from loraprobe.errors import (
    AdapterError,
    CompatibilityError,
    OutputError,
    UnsupportedAdapter,
    UsageError,
)
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.threads import threads_at_once
from loraprobe.merging import METHODS
from loraprobe.merging._method import ELSEWHERE

# What is written.


def test_the_widest_dtype_is_written_and_its_rounding_measured():
    half, single, narrow = (
        random_adapter(name, rank=2, seed=seed, dtype=dtype)
        for seed, (name, dtype) in enumerate(
            (("a", torch.bfloat16), ("b", torch.float32), ("c", torch.float16)), 1
        )
    )
    tiny = random_adapter("d", rank=2, seed=4)
    tiny = adapter_of("d", {p: u.to(torch.float8_e4m3fn) for p, u in tiny.modules.items()})
    for adapters, dtype in (
        ([half], torch.bfloat16),
        ([half, single], torch.float32),
        ([half, narrow], torch.float32),
        ([tiny, half], torch.bfloat16),
    ):
        assert merge(adapters).adapter.dtype == dtype
    exact = merge([half, single], dtype=F64).adapter
    for dtype in (torch.bfloat16, torch.float32):
        written = merge([half, single], dtype=dtype)
        gap = sum(
            float((delta(exact, p) - delta(written.adapter, p)).square().sum()) for p in LLAMA
        )
        size = sum(float(delta(exact, p).square().sum()) for p in LLAMA)
        assert written.rounding_error == pytest.approx((gap / size) ** 0.5, rel=1e-3), dtype


def test_one_conv1d_among_linear_sources_is_conv1d_in_either_order():
    path = next(iter(LLAMA))
    plain = random_adapter("a", seed=1)
    flagged = random_adapter("b", seed=2, kinds={path: "conv1d"})
    for pair in ([plain, flagged], [flagged, plain]):
        assert merge(pair).adapter.layout[path].kind == "conv1d"


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (({}, {}), (None, None)),
        (({"task_type": None}, {"task_type": "SEQ_CLS"}), ("SEQ_CLS", None)),
        (({"task_type": "CAUSAL_LM", "revision": "v1"},) * 2, ("CAUSAL_LM", "v1")),
        (({"revision": "v1"}, {"revision": "v2"}), (None, None)),
    ],
)
def test_task_type_and_revision_are_kept_and_never_invented(configs, expected, tmp_path):
    sources = [
        adapter_of(name, dict(random_adapter(name, seed=i).modules), base_model="b", config=config)
        for i, (name, config) in enumerate(zip("ab", configs, strict=True))
    ]
    merge(sources).save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["task_type"], written["revision"]) == expected


def test_each_module_is_read_once_and_forgotten(tmp_path, monkeypatch):
    for i, name in enumerate("ab"):
        random_adapter(name, seed=i).save(tmp_path / name)
    reads: list[str] = []
    living: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def read(self, key, real=SafetensorsFile.read):
        nonlocal most
        tensor = real(self, key)
        reads.append(key)
        living.add(tensor)
        most = max(most, len(living))
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", read)
    adapters = [read_adapter(tmp_path / name) for name in "ab"]
    for method in ("uniform", "ties", "factor_average"):
        reads.clear()
        seen: list[tuple[str, int, int]] = []
        merge(adapters, method, rank=2, progress=lambda *step, seen=seen: seen.append(step))
        assert len(reads) == 2 * 2 * len(LLAMA)
        # A and B of two adapters, of the module before, of those in work and of the next one.
        assert most <= 2 * 2 * (2 + threads_at_once())
        assert seen == [("merge", i + 1, len(LLAMA)) for i in range(len(LLAMA))]


# The same combinations by peft: equal where peft is right, a pinned difference where it is not.

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


def pefts_merge(directories: list[Path], combination: str, **options: Any):
    """Module path -> dense delta of peft's own merge of these directories."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(tiny_llama(), str(directories[0]), "0")
        wrapped.load_adapter(str(directories[1]), "1")
        wrapped.add_weighted_adapter(
            ["0", "1"], WEIGHTS, "merged", combination_type=combination, **options
        )
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight("merged").detach()
        for path, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight") and "merged" in module.lora_A
    }


def our_merge(directories: list[Path], method: str, **options: Any) -> dict[str, torch.Tensor]:
    adapters = [read_adapter(d, name=str(i)) for i, d in enumerate(directories)]
    merged = merge(adapters, method, weights=WEIGHTS, **options).adapter
    return {path: update.delta() for path, update in merged.modules.items()}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[p] - theirs[p]).double().square().sum()) for p in ours)
    return (gap / sum(float(d.double().square().sum()) for d in ours.values())) ** 0.5


@pytest.mark.parametrize(
    ("method", "rank", "combination", "options", "low", "high"),
    [
        ("task_arithmetic", None, "cat", {}, 0, 1e-5),
        ("task_arithmetic", 8, "svd", {"svd_rank": 8}, 0, 1e-5),
        ("task_arithmetic", 3, "svd", {"svd_rank": 3}, 0, 1e-5),
        ("factor_average:variant=peft", None, "linear", {}, 0, 1e-5),
        ("task_arithmetic", None, "linear", {}, 0.7, 2),  # the cross terms
        ("ties:density=0.3", 8, "ties_svd", {"svd_rank": 8, "density": 0.3}, 0, 1e-5),
        ("magnitude_prune:density=0.3", 8, "magnitude_prune_svd", {"svd_rank": 8, "density": 0.3},
            0, 1e-5),
        # Without svd peft's work on A and on B, not on deltas.
        ("ties:density=0.3", 8, "ties", {"density": 0.3}, 0.3, 2),
        ("magnitude_prune", 8, "magnitude_prune", {"density": 0.5}, 0.3, 2),
    ],
)  # fmt: skip
def test_combinations_of_peft_have_a_name_here(pair, method, rank, combination, options, low, high):
    theirs = pefts_merge(pair, combination, **options)
    assert low <= distance(our_merge(pair, method, rank=rank), theirs) < high


PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
    "alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 16},
}
CONV = {"fan_in_fan_out": True}
ODD = {
    "rslora with patterns": [
        {"r": 4, "lora_alpha": 8, "use_rslora": True, **PATTERNS}
        | {"target_modules": [*TARGETS, "up_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "rank_pattern": {"down_proj": 5}},
    ],
    "five, partial, mixed ranks": [{"r": i + 1, "use_rslora": i % 2 == 0,
        "target_modules": TARGETS[: i % 3 + 1]} for i in range(5)],
    "one": [{"r": 2, "lora_alpha": 4, "target_modules": TARGETS}],
    "layers apart": [{"r": 2, "target_modules": TARGETS, "layers_to_transform": [0]},
        {"r": 3, "target_modules": TARGETS, "layers_to_transform": [1]}],
    "tied head and embedding": [{"r": 2, "target_modules": ["lm_head", "q_proj"]},
        {"r": 3, "target_modules": ["embed_tokens", "q_proj"]}],
    "gpt2": [{"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], **CONV},
        {"r": 3, "lora_alpha": 9, "target_modules": ["c_attn"], "use_rslora": True, **CONV}],
    # peft sets fan_in_fan_out anew at every layer and saves the last, here that of lm_head.
    "gpt2, one flag of two kinds of layer": [{"r": 2, "target_modules": ["c_attn", "lm_head"],
        **CONV}, {"r": 2, "target_modules": ["c_attn", "wte"], **CONV}],
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_peft_loads_a_merge_as_the_sum_of_its_deltas(case, tmp_path):
    """Written by peft, merged here, read again by peft; the oracle is a dense float64 sum."""
    build = tiny_gpt2 if case.startswith("gpt2") else tiny_llama
    paths = [
        peft_adapter(tmp_path / f"a{i}", build(), i + 1, **config)
        for i, config in enumerate(ODD[case])
    ]
    weights = [(0.7, -0.4, 0.0, 1.3, -1.0)[i] for i in range(len(paths))]
    loraprobe.merge(paths, method="task_arithmetic", weights=weights).save(tmp_path / "out")
    sources = [_pefts_deltas(build(), path) for path in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a key that fits nothing only warns
        for told in ("Model has `tie_word", "fan_in_fan_out is set to True"):
            warnings.filterwarnings("ignore", message=told)
        model = PeftModel.from_pretrained(build(), str(tmp_path / "out")).eval()
    assert (hidden(model) - hidden(build())).abs().max() > 0.01
    out = _pefts_deltas(build(), tmp_path / "out")
    assert set(out) == {path for source in sources for path in source}
    for path, found in out.items():
        terms = zip(weights, sources, strict=True)
        expected = sum(w * source[path] for w, source in terms if path in source)
        assert (found - expected).norm() <= 1e-6 * expected.norm(), path


def _pefts_deltas(model, directory):
    """The change of each module of a model by peft, in float64."""
    wrapped = PeftModel.from_pretrained(model, str(directory)).double()
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in wrapped.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


UP = "model.layers.0.mlp.up_proj"


def one(name="a", rank=2, seed=0, **options):
    return random_adapter(name, {UP: (12, 10)}, rank, seed, **options)


PAIR = [one("a"), one("b", seed=1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tie"}, r"Unknown merge method 'tie': did you mean 'ties'"),
        # Names of peft, mergekit and papers, with the method that computes that.
        ({"method": "linear"}, r"factor_average:variant=peft.*mergekit.*task_arithmetic"),
        ({"method": "average"}, r"deltas is uniform.*factor_average"),
        ({"method": "mean"}, r"deltas is uniform.*factor_average"),
        ({"method": "cat"}, r"task_arithmetic"),
        ({"method": "svd"}, r"task_arithmetic with --rank N"),
        ({"method": "weighted"}, r"--weights.*task_arithmetic"),
        ({"method": "dare-ties-svd:density=0.3"}, r"take dare_ties"),
        ({"method": "ties:densty=0.3"}, r"no option 'densty=0.3': did you mean 'density'"),
        ({"method": "ties:density=0"}, r"'ties:density=0': density.*above 0 and at most 1"),
        ({"method": "dare_ties:density=1.1"}, r"density.*not 1.1"),
        ({"method": "ties:variant=mine"}, r"must be 'peft' or 'mergekit', not 'mine'"),
        ({"method": "factor_average", "space": "core"}, r"has no space to choose; leave it"),
        # Weights that leave nothing to write.
        *(({"method": name, "weights": [0, 0]},
            r"zero in every module") for name in ("task_arithmetic", "ties", "factor_average")),
        ({"adapters": [one(), adapter_of("twin", dict(one().modules))], "method": "task_arithmetic",
            "weights": [1, -1]}, r"zero in every module"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        merge(**{"adapters": PAIR, **options})


@pytest.mark.parametrize(
    "adapters, method, said",
    [
        ([one(), random_adapter("wide", {UP: (12, 11)}, 2)], "uniform",
            rf"{UP} is \[12, 10\] in a and \[12, 11\] in wide"),
        ([one(), one("table", seed=1, kinds={UP: "embedding"})], "uniform",
            r"of kind linear in a and embedding in table"),
        ([one(), one("b", rank=3)], "factor_average", r"rank 2 in a and 3 in b.*use uniform"),
        (
            [
                random_adapter("a"),
                random_adapter("b", {p: s for p, s in LLAMA.items() if "up" not in p}),
            ],
            "factor_average",
            r"b leaves module .*up_proj alone.*use uniform",
        ),
    ],
)  # fmt: skip
def test_modules_that_do_not_correspond_are_named(adapters, method, said):
    with pytest.raises(CompatibilityError, match=said):
        merge(adapters, method)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_nan_and_inf_are_named(value, factor, method):
    update = random_update(12, 10, 2, 1)
    getattr(update, factor)[1, 1] = value
    with pytest.raises(AdapterError, match=rf"Adapter bad has NaN or Inf in module {UP}"):
        merge([one(), adapter_of("bad", {UP: update})], method)


def test_an_adapter_without_effect_is_refused_or_allowed_by_name():
    update = random_update(12, 10, 2, 1)
    idle = adapter_of("idle", {UP: LowRank(update.A, update.B * 0, 1.0)})
    with pytest.raises(UnsupportedAdapter, match=r"Adapter idle has no effect.*leave it out"):
        merge([one(), idle])
    merged = merge([one(), idle], allow=["no-effect"])
    assert [i.code for i in merged.issues] == ["no-effect"]


def test_twins_and_modules_that_cancel():
    twin = adapter_of("twin", {UP: one().modules[UP]})
    half = adapter_of("half", {UP: one().modules[UP], "other": random_update(12, 10, 2, 9)})
    merged = merge([half, twin], "task_arithmetic", weights=[1, -1]).adapter
    assert merged.layout[UP].rank == 1 and not merged.modules[UP].delta().any()
    for adapters, found in (([one(), twin], ["duplicate"]), (PAIR, [])):
        assert [i.code for i in merge(adapters).issues] == found


def test_a_dtype_that_is_too_small_is_an_error_not_an_infinity():
    large = adapter_of("large", {UP: random_update(12, 10, 2, 1, 1e12)})
    with pytest.raises(OutputError, match=r"does not fit into float16.*float32"):
        merge([large], dtype=torch.float16)


def test_equal_copies_of_base_weights_are_dropped_with_a_note(tmp_path):
    """peft saves an embedding that has a LoRA with it."""
    update, prefix = random_update(16, 40, 2, 3), "base_model.model.model.embed_tokens"
    factors = {f"{prefix}.lora_embedding_A": update.A, f"{prefix}.lora_embedding_B": update.B / 10}
    copy = torch.arange(640.0).reshape(40, 16)
    a, b, rounded, other = (
        read_adapter(
            write_adapter(tmp_path / n, {**factors, f"{prefix}.base_layer.weight": own}, r=2), n
        )
        for n, own in (("a", copy), ("b", copy), ("rounded", copy.bfloat16()), ("c", copy + 1))
    )
    for same in (b, rounded):
        merged = merge([a, same])
        assert [(i.severity, i.code) for i in merged.issues] == [
            ("note", "base-copy"),
            ("warning", "duplicate"),
        ]
        assert merged.adapter.layout["model.embed_tokens"].kind == "embedding"
    with pytest.raises(UnsupportedAdapter, match=r"a and c hold different copies.*embed_tokens"):
        merge([a, other])
    allowed = merge([a, other], allow=["base-copy"])
    assert ("warning", "base-copy") in [(i.severity, i.code) for i in allowed.issues]


def test_errors_found_on_reading_stop_a_merge(tmp_path):
    update, prefix = random_update(16, 16, 2, 3), "base_model.model.model.layers.0.self_attn"
    tensors = {
        f"{prefix}.q_proj.lora_A.weight": update.A,
        f"{prefix}.q_proj.lora_B.weight": update.B,
        f"{prefix}.k_proj.lora_A.weight": update.A.clone(),
    }
    adapter = read_adapter(write_adapter(tmp_path / "half", tensors, r=2))
    codes = [i.code for i in adapter.issues if i.severity == "error"]
    with pytest.raises(UnsupportedAdapter, match=r"Adapter half: .*k_proj"):
        merge([adapter])
    with pytest.raises(UnsupportedAdapter, match=r"holds unknown"):
        merge([adapter], allow=codes)  # one named issue accepts that one only
    merged = merge([adapter], allow=[*codes, "unknown"])
    assert {i.severity for i in merged.issues} == {"warning"}


def test_unused_weights_and_different_bases_are_reported():
    other = one("b", seed=1, base_model="owner/other")
    merged = merge([one(), other], "uniform", weights=[0.9, 0.1])
    assert [i.code for i in merged.issues] == ["weights-ignored", "base-mismatch"]
    assert merged.weights == (0.5, 0.5)
    merged = merge([one(base_model="/x/base"), one("b", seed=1, base_model="base")], "uniform")
    assert not merged.issues


def test_every_name_of_other_tools_leads_to_methods_that_exist():
    for name, told in ELSEWHERE.items():
        assert name not in METHODS
        named = re.findall(r"\b(?:is|as|take|or|than) ([a-z_]+_?[a-z]+(?::variant=peft)?)\b", told)
        known = [spec for spec in named if spec in METHODS]
        assert known and all(METHODS.make(spec) for spec in known), name
