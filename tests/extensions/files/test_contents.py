"""`verify DIR --base B --of A`: what is in a merge that another tool wrote.

Each of the commonest faults is made here, by peft itself where peft makes it, and has to be found
by name. mergekit and bitsandbytes make their cases where they are installed.
"""

import json
import shutil
import warnings
from pathlib import Path

import making
import pytest
import torch
from making import call, dense
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.errors import UsageError
from loraprobe.extensions.files.contents.fit import Fit, grid_of, unlike
from loraprobe.lora.lowrank import LowRank

WIDTH, INNER, LAYERS = 128, 256, 4
SIZES = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.v_proj": (WIDTH // 2, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }.items()
}
SCALING = 2e-4  # a change of 2 % of the weights, as of real adapters
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base whose head is tied, and two adapters of it."""
    place = tmp_path_factory.mktemp("world")
    making.tiny_model("Llama", tie_word_embeddings=True, **SIZES).save_pretrained(place / "base")
    for seed, name in enumerate("ab", 1):
        adapter = making.random_adapter(name, SHAPES, seed=seed, scaling=SCALING)
        adapter.save(place / name)
    return place


@pytest.fixture
def merged(world, tmp_path):
    """Writes a full model that peft merges, and changes its tensors by a function."""

    def write(*names: str, dtype=torch.float32, change=None, **config) -> Path:
        place = tmp_path / "merged"
        by_peft(world, names or ("a",), dtype).save_pretrained(place)
        if change is not None:
            rewrite(place, change, **config)
        return place

    return write


def by_peft(world: Path, names, dtype=torch.float32, base=None):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base or world / "base", dtype=dtype)
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, world / name).merge_and_unload()
    return model


def rewrite(place: Path, change, **config) -> None:
    """The tensors of a directory after a change, which may return others."""
    tensors = load_file(place / "model.safetensors")
    made = change(tensors) or tensors
    made = {key: tensor.contiguous().clone() for key, tensor in made.items()}
    save_file(made, place / "model.safetensors", metadata={"format": "pt"})
    making.edit(place / "config.json", **config)


def found(world: Path, place: Path, *names: str, code: int, **options) -> dict:
    """What is told of a directory: the fields of the document, with the exit code checked."""
    of = [word for name in names or ("a",) for word in ("--of", world / name)]
    more = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = call("verify", place, "--base", world / "base", *of, *more, "--json")
    assert done.exit_code == code, done.output
    document = json.loads(done.stdout)
    assert document["verified"] is {0: True, 1: False, 3: None}[code]
    return document["contents"]


def base_of(world: Path) -> dict[str, torch.Tensor]:
    return load_file(world / "base/model.safetensors")


def names_in(told: dict, state: str) -> set[str]:
    return {row["name"] for row in told["modules"] if row["state"] == state}


# ---- right ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["a", "ab", "ba"])
def test_a_merge_by_peft_in_float32_is_exact(world, merged, names):
    told = found(world, merged(*names), *names, code=0)
    assert told["verdict"] == "exact" and told["weights"] == [1.0] * len(names)
    assert told["states"] == {"as made": len(SHAPES)} and not told["differences"]


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_in_a_narrow_dtype_is_rounded_and_the_share_is_measured(
    world, merged, names, dtype
):
    place = merged(*names, dtype=dtype)
    told = found(world, place, *reversed(names), code=0)
    assert told["verdict"] == "rounded" and told["weights"] == [1.0] * len(names)
    before, after, lost2, change2 = base_of(world), load_file(place / "model.safetensors"), 0.0, 0.0
    adapters = [loraprobe.load(world / name) for name in names]
    for path in SHAPES:
        key = f"{path}.weight"
        delta = sum(dense(one.modules[path]) for one in adapters)
        made = after[key].double() - before[key].double()
        lost2 += float((made - delta).square().sum())
        change2 += float(made.square().sum())
    assert told["rounding"] == pytest.approx((lost2 / change2) ** 0.5, rel=0.02)


@pytest.mark.parametrize("safe", [False, True])
def test_two_merges_by_peft_in_bfloat16_are_repeated_number_by_number(world, tmp_path, safe):
    """peft rounds after each adapter; the change itself only with safe_merge."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(model, world / "a", adapter_name="a")
    model.load_adapter(world / "b", "b")
    model = model.merge_and_unload(safe_merge=safe, adapter_names=["a", "b"])
    model.save_pretrained(tmp_path / "out")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in ("base", "out"))
    deltas = [dense(loraprobe.load(world / x).modules[UP[:-7]]).float() for x in "ab"]
    how = "safely in order" if safe else "in order"
    fit = Fit(after[UP], before[UP], deltas, torch.bfloat16, (how,))
    wrong = unlike(fit.stored([1, 1], fit.sum([1, 1])).bfloat16(), after[UP].flatten())
    assert wrong <= 3 or (safe and wrong <= 30)
    for name in "ab":
        shutil.copytree(world / name, tmp_path / name)
    assert found(tmp_path, tmp_path / "out", "a", "b", code=0)["verdict"] == "rounded"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_numbers_of_narrow_dtypes_are_compared_by_their_bits(dtype):
    one = torch.randn(7, 33).to(dtype)
    other = one.clone()
    other[3, 5:9] = 16.0  # which no draw is
    assert unlike(one, other) == int((one.float() != other.float()).sum()) == 4
    assert unlike(one[2:5], other[2:5]) == 4 and unlike(one[4:], other[4:]) == 0


def test_numbers_that_went_through_bfloat16_are_rounded_though_stored_in_float32(world, merged):
    def through(tensors):
        return {key: tensor.bfloat16().float() for key, tensor in tensors.items()}

    told = found(world, merged(change=through), code=0)
    assert (told["verdict"], told["dtype"], told["through"]) == ("rounded", "float32", "bfloat16")


def test_a_merge_of_ours_is_right_whatever_its_card_says(world, tmp_path):
    out = tmp_path / "out"
    done = call(*("merge", world / "a", world / "b", "--base", world / "base", "--full-model", out))
    assert done.exit_code == 0, done.output
    told = found(world, out, "a", "b", code=0)
    assert told["verdict"] == "exact" and told["weights"] == [0.5, 0.5]
    found(world, out, "a", "b", code=1, weights="1,1")


def test_weights_that_are_given_are_the_ones_that_are_right(world, merged):
    def weigh(tensors):
        base = base_of(world)
        return {key: base[key] + 0.7 * (tensors[key] - base[key]) for key in base}

    place = merged(change=weigh)
    told = found(world, place, code=1)
    assert told["verdict"] == "scaled" and told["weights"] == pytest.approx([0.7], abs=1e-4)
    assert found(world, place, code=0, weights="0.7")["verdict"] == "exact"


def test_a_head_that_is_written_beside_its_embedding_is_no_other_base(world, merged):
    def untie(tensors):
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}

    assert found(world, merged(change=untie), code=0)["verdict"] == "exact"


# ---- the commonest faults ------------------------------------------------------------------------


def test_the_base_is_saved_because_the_merged_model_was_dropped(world):
    told = found(world, world / "base", code=1)
    assert told["verdict"] == "not-of-these" and told["weights"] == [0.0]


def test_the_model_with_the_adapter_beside_it_is_saved(world, tmp_path):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(world / "base")
    wrapped = PeftModel.from_pretrained(model, world / "a")
    model.config.save_pretrained(tmp_path / "out")
    state = {key: t.clone() for key, t in wrapped.state_dict().items() if "lm_head" not in key}
    save_file(state, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    told = found(world, tmp_path / "out", code=1)
    assert told["verdict"] == "not-of-these" and told["wrapped"] == len(state)


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (2.0, "merged into a model that already held it"),
        (2.0**-1, "use_rslora was probably ignored"),
        (2.0**1.5, "another lora_alpha"),
        (1 / SCALING, "lora_alpha was probably ignored"),
    ],
)
def test_a_wrong_scale_is_told_with_its_usual_cause(world, merged, factor, reason):
    def scale(tensors):
        base = base_of(world)
        return {key: base[key] + factor * (tensors[key] - base[key]) for key in base}

    told = found(world, place := merged(change=scale), code=1)
    assert told["verdict"] == "scaled" and told["weights"] == pytest.approx([factor], rel=0.01)
    answer = repr(loraprobe.verify(place, base=world / "base", of=[world / "a"]))
    assert reason in " ".join(answer.split())


def test_a_kind_of_module_is_left_out(world, merged):
    base = base_of(world)
    lost = [key for key in base if "up_proj" in key]
    told = found(world, merged(change=lambda t: t | {key: base[key] for key in lost}), code=1)
    assert told["verdict"] == "partly" and names_in(told, "lacking") == set(lost)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shard_of_the_base_is_left_in_the_folder(world, merged, dtype):
    base = base_of(world)
    last = {key: base[key].to(dtype) for key in base if "layers.3." in key}
    told = found(world, merged(dtype=dtype, change=lambda t: t | last), code=1)
    assert told["verdict"] == "partly"
    assert names_in(told, "lacking") == {f"{path}.weight" for path in SHAPES if "layers.3." in path}


def test_one_of_two_adapters_is_missing(world, merged):
    told = found(world, merged("a"), "a", "b", code=1)
    assert told["verdict"] == "partly" and told["weights"] == [1.0, 0.0]


def test_another_adapter_is_in_it_too(world, merged):
    told = found(world, merged("a", "b"), "a", code=1)
    assert told["verdict"] == "partly"
    assert told["weights"] == pytest.approx([1.0], abs=0.05)
    assert told["states"] == {"changed": len(SHAPES)}


def test_another_adapter_is_in_it_instead(world, merged):
    told = found(world, merged("b"), code=1)
    assert told["verdict"] == "not-of-these" and abs(told["weights"][0]) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_another_revision_of_the_base(world, merged, dtype, spread):
    def revise(tensors):
        draw = torch.Generator().manual_seed(0)
        return {
            key: tensor + spread * tensor.float().std() * torch.randn(tensor.shape, generator=draw)
            if tensor.dim() == 2
            else tensor
            for key, tensor in tensors.items()
        }

    def written(tensors):
        return {key: tensor.to(dtype) for key, tensor in revise(tensors).items()}

    told = found(world, merged(change=written), code=1)
    assert told["verdict"] == "other-base"


def test_a_weight_is_found_though_rounding_eats_much_of_the_change(world, tmp_path):
    """Of a base in bfloat16 a change below half a spacing vanishes, which biases least squares."""
    base, place = tmp_path / "base", tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.bfloat16).save_pretrained(base)
    shutil.copytree(base, place)
    adapter = making.random_adapter("small", SHAPES, seed=3, scaling=SCALING / 8)
    adapter.save(tmp_path / "small")

    def add(tensors):
        for path, update in adapter.modules.items():
            key = f"{path}.weight"
            tensors[key] = (tensors[key].double() + 1.37 * dense(update)).bfloat16()

    rewrite(place, add)
    told = found(tmp_path, place, "small", code=1)
    assert told["verdict"] == "scaled" and told["rounding"] > 0.3
    assert told["weights"] == pytest.approx([1.37], abs=0.03)


def nf4(weight: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """A weight in blocks of 64, each with the levels times its largest number."""
    blocks = weight.reshape(-1, 64)
    size = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / size).unsqueeze(-1).sub(levels).abs().argmin(-1)
    return (levels[nearest] * size).view_as(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "every"), [(4, True), (4, False), (8, True)])
def test_a_base_that_was_quantised_and_dequantised(world, bits, every, dtype, tmp_path):
    """every: also the linear layers that the adapter leaves alone."""
    base, place = base_of(world), tmp_path / "quantised"
    shutil.copytree(world / "base", place)
    normal = torch.distributions.Normal(0, 1)
    levels = normal.icdf(torch.linspace(0.03, 0.97, 16))
    levels = levels / levels.abs().max()

    def quantise(weight):
        if bits == 4:
            return nf4(weight, levels)
        size = weight.abs().amax(1, keepdim=True) / 127
        return (weight / size).round() * size

    def all_linear(tensors):
        chosen = [k for k in tensors if "proj" in k] if every else keys()
        return {k: quantise(t) if k in chosen else t for k, t in tensors.items()}

    rewrite(place, all_linear)
    by_peft(world, ["a"], dtype, base=place).save_pretrained(tmp_path / "out")
    told = found(world, tmp_path / "out", code=1)
    assert told["verdict"] == "other-base"
    if bits == 4:  # and the ratio of its error to the change
        error2 = sum(float((quantise(base[k]) - base[k]).square().sum()) for k in keys())
        change2 = sum(
            float(dense(u).square().sum()) for u in loraprobe.load(world / "a").modules.values()
        )
        assert told["rest"] == pytest.approx((error2 / change2) ** 0.5, rel=0.1)
    verification = loraprobe.verify(tmp_path / "out", base=world / "base", of=[world / "a"])
    assert f"{bits} bits" in " ".join(repr(verification).split())


def keys() -> list[str]:
    return [f"{path}.weight" for path in SHAPES]


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_base_that_bitsandbytes_quantised(world, tmp_path, form):
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    if form == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        world / "base", quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    ).dequantize()
    PeftModel.from_pretrained(model, world / "a").merge_and_unload().to(
        torch.bfloat16
    ).save_pretrained(tmp_path / "out")
    assert found(world, tmp_path / "out", code=1)["verdict"] == "other-base"


def test_a_resized_vocabulary(world, merged):
    def resize(tensors):
        table = tensors["model.embed_tokens.weight"]
        return tensors | {"model.embed_tokens.weight": torch.cat([table, table[:8]])}

    told = found(world, merged(change=resize, vocab_size=104), code=1)
    assert told["verdict"] == "other-base"
    assert [row["rows"] for row in told["differences"]] == [[96, 104]]


def test_an_untied_head_that_was_changed(world, merged):
    def untie(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 1.01}

    told = found(world, merged(change=untie, tie_word_embeddings=False), code=1)
    assert told["verdict"] == "other-base"
    assert [row["name"] for row in told["differences"]] == ["lm_head.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_number_is_found(world, merged, dtype):
    def change(tensors):
        tensors[UP][3, 4] += 0.05

    told = found(world, merged(dtype=dtype, change=change), code=1)
    assert told["verdict"] == "partly" and names_in(told, "changed") == {UP}


def test_a_changed_norm_is_found(world, merged):
    def change(tensors):
        tensors["model.norm.weight"] *= 1.01

    told = found(world, merged(change=change), code=1)
    assert told["verdict"] == "partly"
    assert [row["name"] for row in told["differences"]] == ["model.norm.weight"]


def test_a_module_that_is_missing_from_the_file(world, merged):
    told = found(world, merged(change=lambda t: {k: x for k, x in t.items() if k != UP}), code=1)
    assert told["verdict"] == "partly" and names_in(told, "missing") == {UP}


# ---- methods that are no weighted sum ------------------------------------------------------------


def test_factors_that_peft_adds_are_no_sum(world, tmp_path):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(world / "base")
    model = PeftModel.from_pretrained(model, world / "a", adapter_name="a")
    model.load_adapter(world / "b", "b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "mix", combination_type="linear")
    model.set_adapter("mix")
    model.save_pretrained(tmp_path / "adapter", selected_adapters=["mix"])
    model.merge_and_unload().save_pretrained(tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "adapter/mix"):
        told = found(world, place, "a", "b", code=3)
        assert told["verdict"] == "not-linear"
        verification = loraprobe.verify(place, base=world / "base", of=[world / "a", world / "b"])
        assert verification.contents.most("crossed")


@pytest.mark.parametrize(
    "method", ["ties:density=0.4", "ties:density=1.0", "dare_linear:density=0.5"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_entries_and_elected_signs_are_no_sum(world, tmp_path, method, dtype):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(world / "base", dtype=dtype).save_pretrained(base)
    out = tmp_path / "out"
    done = call(
        *("merge", world / "a", world / "b", "--method", method, "--base", base),
        *("--full-model", out),
    )
    assert done.exit_code == 0, done.output
    told = found(world, out, "a", "b", code=3)
    assert told["verdict"] == "not-linear"
    verification = loraprobe.verify(out, base=world / "base", of=[world / "a", world / "b"])
    form = "elected" if method.endswith("1.0") else "zeros"
    assert verification.contents.most(form)


@pytest.mark.parametrize(
    ("method", "verdict", "code"),
    [("task_arithmetic", "rounded", 0), ("linear", "rounded", 0), ("ties", "not-linear", 3)],
)
def test_merges_by_mergekit(world, tmp_path, method, verdict, code):
    pytest.importorskip("mergekit")
    from click.testing import CliRunner
    from mergekit.scripts.run_yaml import main

    models = [
        {
            "model": f"{world / 'base'}+{world / name}",
            "parameters": {"weight": 0.5} | ({"density": 0.5} if method == "ties" else {}),
        }
        for name in "ab"
    ]
    config = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    config |= {} if method == "linear" else {"base_model": str(world / "base")}
    (tmp_path / "config.yml").write_text(json.dumps(config))
    where = [tmp_path / "config.yml", tmp_path / "out", "--lora-merge-cache", tmp_path / "cache"]
    done = CliRunner().invoke(main, [*map(str, where), "--no-copy-tokenizer"])
    assert done.exit_code == 0, done.output
    told = found(world, tmp_path / "out", "a", "b", code=code)
    assert told["verdict"] == verdict


# ---- merged adapters -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "verdict", "code"),
    [("cat", "exact", 0), ("svd", "exact", 0), ("cut", "partly", 1), ("other", "not-of-these", 1)],
)
def test_an_adapter_that_peft_merged(world, tmp_path, kind, verdict, code):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(world / "base")
    model = PeftModel.from_pretrained(model, world / "a", adapter_name="a")
    model.load_adapter(world / "b", "b")
    rank = {"svd": {"svd_rank": 8}, "cut": {"svd_rank": 3}}.get(kind, {})
    how = "cat" if kind in ("cat", "other") else "svd"
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "mix", combination_type=how, **rank)
    model.save_pretrained(tmp_path, selected_adapters=["mix"])
    names = ("a", "b")
    if kind == "other":
        making.random_adapter("c", SHAPES, seed=9).save(tmp_path / "c")
        shutil.copytree(world / "base", tmp_path / "base")
        told = found(tmp_path, tmp_path / "mix", "c", code=code)
    else:
        told = found(world, tmp_path / "mix", *names, code=code)
        assert told["weights"] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert told["verdict"] == verdict
    assert all((row["cut"] < 0.99) == (kind == "cut") for row in told["modules"])


def test_a_merged_adapter_in_bfloat16_is_rounded(world, tmp_path):
    a, b = (loraprobe.load(world / name) for name in "ab")
    modules = {
        path: LowRank(torch.cat([u.A, v.A]), torch.cat([u.B, v.B], 1) * SCALING).to(torch.bfloat16)
        for (path, u), v in zip(a.modules.items(), b.modules.values(), strict=True)
    }
    adapter_of("mix", modules, base_model="owner/base").save(tmp_path / "mix")
    told = found(world, tmp_path / "mix", "a", "b", code=0)
    assert told["verdict"] == "rounded" and 1e-3 < told["rounding"] < 5e-3


# ---- what else adapters hold ---------------------------------------------------------------------


def test_dora_whole_modules_and_token_rows_are_compared(world, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    options = {
        "use_dora": True,
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["norm"],
        "trainable_token_indices": {"embed_tokens": [3, 5]},
    }
    making.peft_adapter(tmp_path / "rich", model, r=4, **options)
    shutil.copytree(world / "base", tmp_path / "base")
    by_peft(tmp_path, ["rich"]).save_pretrained(tmp_path / "out")
    assert found(tmp_path, tmp_path / "out", "rich", code=0)["verdict"] == "exact"


# ---- what is given -------------------------------------------------------------------------------


def test_a_directory_without_a_card_says_what_to_give(merged):
    done = call("verify", merged())
    assert done.exit_code == 2 and "--of" in done.output


@pytest.mark.parametrize(
    "more",
    [["--weights", "1,1"], ["--weights", "learn"], ["b"]],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused(world, merged, more):
    done = call("verify", merged(), *more, "--base", world / "base", "--of", world / "a")
    assert done.exit_code == 2, done.output


def test_weights_without_adapters_are_refused(world):
    with pytest.raises(UsageError):
        loraprobe.verify(world / "base", weights=[1.0])


def test_a_change_that_no_full_model_can_hold_is_refused_without_the_cure_of_merge(world, tmp_path):
    offsets = {UP[:-7]: torch.ones(INNER)}
    modules = {UP[:-7]: loraprobe.load(world / "a").modules[UP[:-7]]}
    adapter_of("biased", modules, offsets=offsets, base_model="owner/base").save(
        tmp_path / "biased"
    )
    of = tmp_path / "biased"
    done = call("verify", world / "base", "--base", world / "base", "--of", of)
    told = " ".join(done.output.split())
    assert done.exit_code == 2 and f"{UP[:-7]}.bias" in told
    assert "no full model can hold that" in told


def test_a_quantised_merge_is_refused_with_the_cure(world, merged):
    place = merged(change=lambda t: t, quantization_config={"quant_method": "bitsandbytes"})
    done = call("verify", place, "--base", world / "base", "--of", world / "a")
    assert done.exit_code == 2 and "unquantised" in done.output


def test_the_grid_of_a_tensor():
    x = torch.randn(50, 200)
    assert grid_of(x) is torch.float32
    assert grid_of(x.bfloat16().float()) is torch.bfloat16
    assert grid_of(x.half().float()) is torch.float16
    x = x.bfloat16().float()
    x[-1, -1] = 1 + 2**-20
    assert grid_of(x) is torch.float32


def test_weights_that_are_stored_transposed_are_compared(tmp_path):
    making.tiny_gpt2().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    making.peft_adapter(tmp_path / "a", model, r=4, target_modules=["c_attn", "c_proj"])
    by_peft(tmp_path, ["a"]).save_pretrained(tmp_path / "out")
    told = found(tmp_path, tmp_path / "out", code=0)
    assert told["verdict"] == "exact" and told["states"]["as made"] == len(told["modules"]) > 0


@pytest.mark.parametrize("by", ["loraprobe", "peft"])
def test_a_head_that_changes_with_the_embedding_is_found(tmp_path, by):
    """peft adds the change of an embedding to the head that is tied to it."""
    making.tiny_gpt2().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    making.peft_adapter(tmp_path / "a", model, r=4, target_modules=["wte", "c_fc"])
    out = tmp_path / "out"
    if by == "peft":
        by_peft(tmp_path, ["a"]).save_pretrained(out)
        told = found(tmp_path, out, code=1)
        assert told["verdict"] == "partly"
        assert [row["name"] for row in told["differences"]] == ["lm_head.weight"]
    else:
        done = call("merge", tmp_path / "a", "--base", tmp_path / "base", "--full-model", out)
        assert done.exit_code == 0, done.output
        assert found(tmp_path, out, code=0)["verdict"] == "exact"


def test_another_architecture_is_not_of_these(world, tmp_path):
    sizes = {**SIZES, "hidden_size": 64}
    making.tiny_model("Llama", tie_word_embeddings=True, **sizes).save_pretrained(tmp_path / "out")
    told = found(world, tmp_path / "out", code=1)
    assert told["verdict"] == "not-of-these" and told["states"] == {"missing": len(SHAPES)}
