"""A PEFT directory is read to peft's function, and every tensor of the file is accounted for."""

import contextlib
import copy
import re
from dataclasses import replace
from pathlib import Path

import making
import pytest
import shelves
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import hidden, peft_adapter, peft_model, write_adapter
from peft import PeftModel
from safetensors.torch import load_file

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.adapters.names import public_name
from loraprobe.errors import UnsupportedAdapter

PREFIX = "base_model.model."
FORM = PREFIX + "{}.lora_{}.weight"
Q = "model.layers.0.self_attn.q_proj"


def codes(adapter: Adapter, severity: str = "error") -> set[str]:
    return {issue.code for issue in adapter.issues if issue.severity == severity}


def pair(path: str = Q, r: int = 4, out: int = 16, inp: int = 16, form: str = FORM):
    """A and B of one module under their keys, seeded by the path."""
    update = making.random_update(out, inp, r, seed=sum(map(ord, path)))
    return {form.format(path, "A"): update.A, form.format(path, "B"): update.B}


def peft_deltas(model) -> dict[str, torch.Tensor]:
    """Module path -> delta W as peft computes it, in the orientation of a torch Linear."""
    from peft.tuners.lora.layer import Embedding, LoraLayer

    found = {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default").detach()
            flip = isinstance(module, Embedding) or getattr(module, "fan_in_fan_out", False)
            found[path] = delta.T if flip else delta
    return found


def accounted(adapter: Adapter) -> None:
    """Every key of the file is a factor of one module or one extra, none both, none neither."""
    file = load_file(adapter.weights_file)
    extras = [extra.key for extra in adapter.extras]
    assert len(set(extras)) == len(extras) and set(extras) <= set(file)
    if "tensors-unused" in codes(adapter, "warning"):  # left out as peft leaves them out
        flagged = [k for k in file if k.endswith(("lora_magnitude_vector", "lora_B.bias"))]
        extras += [key for key in flagged if key not in extras]
    factors = [file[key] for key in file if key not in extras]
    assert len(factors) == 2 * len(adapter.modules)
    factors = [factor.flatten(1) for factor in factors]
    for update in adapter.modules.values():
        for factor in (update.A, update.B):
            matches = [f for f in factors if f.shape == factor.shape and torch.equal(f, factor)]
            assert matches
    for extra in adapter.extras:
        assert tuple(file[extra.key].shape) == extra.shape


LAYOUTS = {
    "linear": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"k_proj": 2, r"layers\.1\..*q_proj": 3, "1.mlp.up_proj": 5},
        "alpha_pattern": {"q_proj": 3, "^model.layers.0.mlp.up_proj": 7},
    },
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}
EXTRAS = {
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, {"dora_magnitude"}),
    "saved": ({"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]}, {"modules_to_save"}),
    "lora_bias": ({"target_modules": ["c_attn"], "lora_bias": True}, {"lora_bias"}),
    "bias": ({"target_modules": ["c_attn"], "bias": "all"}, {"bias"}),
    "bias_only": ({"target_modules": ["c_attn"], "bias": "lora_only"}, {"bias"}),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 3]}, {"token_delta"}),
    "copies": ({"target_modules": ["embed_tokens", "lm_head"]}, {"base_copy"}),
}
# config, and the mapping of the adapter that must hold what it adds
WHOLE = {
    "dora": ({"target_modules": ["q_proj", "up_proj"], "use_dora": True}, "magnitudes"),
    "dora_conv1d": ({"target_modules": ["c_attn", "c_proj"], "use_dora": True}, "magnitudes"),
    "dora_embedding": ({"target_modules": ["embed_tokens"], "use_dora": True}, "magnitudes"),
    "saved": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, "whole"),
    "lora_bias": ({"target_modules": ["c_attn"], "lora_bias": True}, "offsets"),
    "bias": ({"target_modules": ["c_attn"], "bias": "all"}, "whole"),
    "bias_only": ({"target_modules": ["c_attn"], "bias": "lora_only"}, "whole"),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 1]}, "token_rows"),
}
UP = "model.layers.1.mlp.up_proj"


def factors(a: tuple[int, ...], b: tuple[int, ...], path: str = "x") -> dict[str, torch.Tensor]:
    return {FORM.format(path, "A"): torch.ones(a), FORM.format(path, "B"): torch.ones(b)}


UNFIT = [((4, 16), (16, 3)), ((64,), (16, 4)), ((0,), (0,)), ((0, 16), (16, 0))]
UNFIT.append(((4, 16), (16, 4, 1)))
MATHS, LAW = (f"{PREFIX}{{}}.lora_{{}}.{name}.weight" for name in ("maths", "law"))
TWO = pair(form=MATHS) | pair(form=LAW)
PROMISES = {
    "use_dora": True,
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
}
# What is odd and stands in no row of docs/pathologies.md -> tensors, config, codes of findings.
ODD = {
    "two adapters in one file": (TWO, {}, {"several-adapters"}),
    "A without B": (pair() | {PREFIX + "x.lora_A.weight": torch.ones(4, 4)}, {},
        {"unpaired-factor"}),
    **{f"A {a}, B {b}": (factors(a, b), {}, {"shape-mismatch", "no-modules"}) for a, b in UNFIT},
    "another rank of one module": (
        pair() | pair(UP, out=24),
        {"r": 8, "rank_pattern": {"q_proj": 4}, "target_modules": ["q_proj", "up_proj"]},
        {"rank-contradicts-config"},
    ),
    **{f"{key} unkept": (pair(), {key: v}, {"missing-tensors"}) for key, v in PROMISES.items()},
}  # fmt: skip


FORMS = """
{}.lora_A.weight {}.lora_B.weight {}.lora_A.default.weight {}.lora_B.bias {}.lora_embedding_A
{}.lora_embedding_B {}.lora_magnitude_vector {}.weight {}.bias {}.base_layer.weight
{}.base_layer.lora_A.weight {}.alpha {} {}.token_adapter.trainable_tokens_delta
{}.lora_down.weight {}.modules_to_save.default.weight {}.original_module.bias
""".split()


def _kinds(adapter: Adapter) -> dict:
    return {path: info.kind for path, info in adapter.layout.items()}


class TestWhatPeftWrote:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_llama_deltas_are_those_of_peft(self, tmp_path, llama, layout):
        config = {"r": 4, "lora_alpha": 6} | LAYOUTS[layout]
        model = peft_model(llama, seed=1, **config)
        model.save_pretrained(str(tmp_path))
        adapter = read_adapter(tmp_path)
        expected = peft_deltas(model)
        assert set(adapter.modules) == set(expected) and not codes(adapter)
        for path, delta in expected.items():
            torch.testing.assert_close(adapter.modules[path].delta(), delta, rtol=1e-5, atol=1e-6)
            info = adapter.layout[path]
            assert (info.out_features, info.in_features) == tuple(delta.shape)
        accounted(adapter)

    @pytest.mark.parametrize(
        "targets", ["c_attn c_proj c_fc".split(), "c_attn lm_head wte".split()]
    )
    @pytest.mark.parametrize("flag", [True, False])
    def test_gpt2_deltas_are_those_of_peft(self, tmp_path, gpt2, targets, flag):
        model = peft_model(gpt2, r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=flag)
        model.save_pretrained(str(tmp_path))
        adapter = read_adapter(tmp_path)
        for path, delta in peft_deltas(model).items():
            torch.testing.assert_close(adapter.modules[path].delta(), delta, rtol=1e-5, atol=1e-6)
        kinds = {path.rpartition(".")[2]: info.kind for path, info in adapter.layout.items()}
        if "lm_head" in targets:  # peft itself leaves the flag to whichever layer came last
            assert kinds["lm_head"] == "linear" and kinds["wte"] == "embedding"
        else:
            assert set(kinds.values()) == {"conv1d"}

    @pytest.mark.parametrize("layout", EXTRAS)
    def test_extras_are_named(self, tmp_path, llama, gpt2, layout):
        config, kinds = EXTRAS[layout]
        model = gpt2 if "c_attn" in config["target_modules"] else llama
        adapter = read_adapter(peft_adapter(tmp_path, model, r=4, lora_alpha=8, **config))
        assert {extra.kind for extra in adapter.extras} == kinds
        assert codes(adapter) <= {"no-modules"}
        accounted(adapter)
        if "base_copy" in kinds:
            with pytest.raises(UnsupportedAdapter, match=adapter.extras[0].key):
                adapter.save(tmp_path / "again")
            assert not (tmp_path / "again").exists()

    @pytest.mark.parametrize("case", WHOLE)
    def test_what_stands_beside_the_factors_is_read_and_written(self, tmp_path, llama, gpt2, case):
        """peft's own file, ours of it, and ours of the same adapter in memory: one function."""
        config, kind = WHOLE[case]
        base = gpt2 if "c_attn" in config["target_modules"] else llama
        kept = copy.deepcopy(base)
        model = peft_model(base, r=4, lora_alpha=8, **config)
        model.save_pretrained(str(tmp_path / "peft"))
        adapter = read_adapter(tmp_path / "peft")
        fields = ("magnitudes", "whole", "offsets", "token_rows")
        held = {field: dict(getattr(adapter, field)) for field in fields}
        assert {k for k, tensors in held.items() if tensors} == {kind}
        memory = adapter_of("memory", adapter.modules, kinds=_kinds(adapter), **held)
        keys = sorted(e.key for e in adapter.extras if e.kind != "base_copy")
        assert sorted(e.key for e in memory.extras) == keys
        adapter = replace(adapter, extras=memory.extras)  # without the copy of the base's table
        adapter.save(tmp_path / "ours")
        memory.save(tmp_path / "memory")
        wanted = hidden(model)
        assert (hidden(kept) - wanted).abs().max() > 1e-3
        for written in ("ours", "memory"):
            found = PeftModel.from_pretrained(copy.deepcopy(kept), str(tmp_path / written))
            torch.testing.assert_close(hidden(found), wanted, rtol=1e-5, atol=1e-6)
            accounted(read_adapter(tmp_path / written))
            assert not codes(read_adapter(tmp_path / written))

    @pytest.mark.parametrize("use_dora", [False, True])
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_convolution(self, tmp_path, dims, use_dora):
        """A and B are one matrix product; saved again, peft computes the same."""
        conv = getattr(torch.nn, f"Conv{dims}d")
        model = torch.nn.Sequential(conv(3, 6, 2), conv(6, 5, 1 + dims // 3))  # peft fails at 1x1x1
        x = torch.randn(2, 3, *(4,) * dims)
        kept = copy.deepcopy(model)
        config = {"target_modules": ["0", "1"], "r": 2, "lora_alpha": 3, "task_type": None}
        wrapped = peft_model(model, use_dora=use_dora, **config)
        wrapped.save_pretrained(str(tmp_path / "peft"))
        adapter = read_adapter(tmp_path / "peft")
        assert {i.kind for i in adapter.layout.values()} == {"convolution"} and not codes(adapter)
        assert adapter.layout["0"].kernel == (2,) * dims and adapter.layout["1"].out_features == 5
        assert set(adapter.magnitudes) == ({"0", "1"} if use_dora else set())
        for path in adapter.modules:
            delta = wrapped.base_model.model.get_submodule(path).get_delta_weight("default")
            assert torch.allclose(adapter.modules[path].delta(), delta.flatten(1), atol=1e-6)
        adapter.save(tmp_path / "ours")
        found = PeftModel.from_pretrained(kept, str(tmp_path / "ours"))
        torch.testing.assert_close(found(x), wrapped(x), rtol=1e-5, atol=1e-5)

    def test_a_convolution_with_groups_is_an_extra(self, tmp_path):
        model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2), torch.nn.Linear(4, 5))
        peft_adapter(tmp_path, model, target_modules=["0", "1"], r=2, task_type=None)
        adapter = read_adapter(tmp_path)
        assert set(adapter.modules) == {"1"}
        assert [extra.kind for extra in adapter.extras] == ["convolution"] * 2
        accounted(adapter)


class TestKeys:
    @pytest.mark.parametrize(
        ("form", "code"),
        [
            ("{}.lora_{}.weight", "unprefixed-keys"),
            (PREFIX + "{}.lora_{}.default.weight", None),
            (PREFIX + PREFIX + "{}.lora_{}.weight", "doubled-prefix"),
        ],
    )
    def test_prefixes_as_peft_takes_them(self, tmp_path, llama, form, code):
        """The finding says whether peft loads such keys with any effect; peft is asked."""
        write_adapter(tmp_path, pair(form=form))
        adapter = read_adapter(tmp_path)
        before = hidden(llama)
        with pytest.warns() if code else contextlib.nullcontext():
            effect = (hidden(PeftModel.from_pretrained(llama, str(tmp_path))) - before).abs().max()
        assert (effect > 0) == (code is None)
        assert {issue.code for issue in adapter.issues} == ({code} if code else set())
        accounted(adapter)
        if code != "doubled-prefix":
            assert set(adapter.modules) == {Q}

    @pytest.mark.parametrize("case", ODD)
    def test_what_is_odd_has_its_code_and_its_place(self, tmp_path, case):
        tensors, config, expected = ODD[case]
        adapter = read_adapter(write_adapter(tmp_path, tensors, **config))
        found = {issue.code: issue for issue in adapter.issues}
        assert set(found) - {"targets-without-weights", "layers-uneven"} == expected
        accounted(adapter)
        if case == "another rank of one module":
            assert found["rank-contradicts-config"].module == UP

    def test_a_head_is_never_conv1d(self, tmp_path):
        """peft writes one flag for all layers, and a GPT-2's head is a Linear."""
        tensors = pair("transformer.h.0.attn.c_attn") | pair("lm_head") | pair("score")
        adapter = read_adapter(write_adapter(tmp_path, tensors, fan_in_fan_out=True))
        kinds = {path: info.kind for path, info in adapter.layout.items()}
        head = {"lm_head": "linear", "score": "linear"}
        assert kinds == head | {"transformer.h.0.attn.c_attn": "conv1d"}

    def test_factors_of_two_dtypes_and_of_one_byte(self, tmp_path):
        (key_a, A), (key_b, B) = pair().items()
        mixed = {key_a: A.to(torch.bfloat16), key_b: B}
        update = read_adapter(write_adapter(tmp_path / "m", mixed)).modules[Q]
        assert update.A.dtype == update.B.dtype == torch.float32
        assert torch.equal(update.A, A.to(torch.bfloat16).float())
        small = {k: t.to(torch.float8_e4m3fn) for k, t in pair().items()}
        adapter = read_adapter(write_adapter(tmp_path / "f", small))
        assert adapter.dtype == torch.bfloat16 and not adapter.issues
        assert torch.equal(adapter.modules[Q].A.float(), A.to(torch.float8_e4m3fn).float())

    @settings(max_examples=60)
    @given(st.data())
    def test_whatever_the_keys_every_tensor_is_accounted_for(self, tmp_path_factory, data):
        names = "q model.layers.1.mlp.up_proj lm_head a.base_layer x.lora"
        paths, forms = st.sampled_from(names.split()), st.sampled_from(FORMS)
        prefixes = st.sampled_from([PREFIX, "", PREFIX + PREFIX, "base_model."])
        keys = data.draw(st.lists(st.tuples(prefixes, forms, paths), max_size=12))
        shapes = st.lists(st.sampled_from([0, 1, 2, 4]), max_size=3)
        count = iter(range(1, 10**6))
        tensors = {
            prefix + form.format(path): torch.full(data.draw(shapes), float(next(count)))
            for prefix, form, path in keys
        } or {"x": torch.ones(1)}
        choices = {
            "r": [1, 2, 4],
            "target_parameters": [None, ["q.weight"], ["up_proj.weight"]],
            "modules_to_save": [None, ["lm_head"]],
            "fan_in_fan_out": [False, True],
        }
        config = {key: data.draw(st.sampled_from(values)) for key, values in choices.items()}
        adapter = read_adapter(write_adapter(tmp_path_factory.mktemp("x"), tensors, **config))
        accounted(adapter)
        unusable = {e.key for e in adapter.extras if e.kind == "unknown"}
        assert bool(unusable) <= bool(codes(adapter) - {"no-modules", "missing-tensors"})


class TestWhatPeftLeavesOutOrReplaces:
    """The file says one thing, the config another: a model that peft loads is the oracle."""

    def loaded(self, place: Path, tensors=(), **config):
        """GPT-2 with the adapter of a directory, whose file and config were changed by hand."""
        from peft import PeftModel
        from safetensors.torch import save_file

        file = place / "adapter_model.safetensors"
        save_file(load_file(file) | dict(tensors), file)
        making.edit(place / "adapter_config.json", **config)
        return PeftModel.from_pretrained(making.tiny_gpt2(), str(place)).eval()

    @pytest.mark.parametrize("flag, held", [("lora_bias", "offsets"), ("use_dora", "magnitudes")])
    @pytest.mark.filterwarnings("ignore")
    def test_a_flag_that_is_off(self, tmp_path, flag, held):
        settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 4}
        peft_adapter(tmp_path / "a", making.tiny_gpt2(), **{flag: True}, **settings)
        assert getattr(read_adapter(tmp_path / "a"), held)
        model = self.loaded(tmp_path / "a", **{flag: False})
        read = read_adapter(tmp_path / "a")
        assert codes(read, "warning") == {"tensors-unused"} and not codes(read)
        assert not getattr(read, held) and not read.extras
        read.save(tmp_path / "b")
        again = PeftModel.from_pretrained(making.tiny_gpt2(), str(tmp_path / "b")).eval()
        torch.testing.assert_close(hidden(again), hidden(model))


def test_those_that_people_publish_are_clean(shelf):
    for adapter in shelf.adapters(*shelves.DOMAINS, "godspeed", "distil"):
        assert not codes(adapter) and not adapter.extras
        assert {i.kind for i in adapter.layout.values()} == {"conv1d"}
        for path in adapter.modules:
            assert re.fullmatch(r"transformer\.h\.\d+\..*c_(attn|proj)", path)
        accounted(adapter)


def test_what_it_says_of_itself(tmp_path):
    shapes = {"l.10.q": (6, 5), "l.2.q": (6, 5), "l.2.k": (3, 5)}
    making.random_adapter("x", shapes, {"l.10.q": 1, "l.2.q": 2, "l.2.k": 3}).save(tmp_path / "x")
    adapter = read_adapter(tmp_path / "x", "y")
    assert list(adapter.modules) == ["l.2.k", "l.2.q", "l.10.q"]  # layer 2 before layer 10
    assert adapter.rank_range == (1, 3) and adapter.parameters == 11 + 2 * 11 + 3 * 8
    summary = adapter.summary(norm=2.0)
    assert (summary.name, summary.modules, summary.norm) == ("y", 3, 2.0)
    assert summary.rank == {"min": 1, "max": 3} and summary.base_model == "owner/base"
    assert adapter.renamed("z").name == "z"
    with pytest.raises(KeyError):
        adapter.modules["nowhere"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Overwriting the values after opening changes what is read later."""
    making.random_adapter().save(tmp_path / "x")
    adapter = read_adapter(tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    with file.open("r+b") as stream:
        header = int.from_bytes(stream.read(8), "little")
        stream.seek(8 + header)
        stream.write(b"\0" * (file.stat().st_size - 8 - header))
    assert adapter.modules[Q].A.abs().max() == 0


def test_digest_follows_the_weights(tmp_path):
    making.random_adapter(seed=1).save(tmp_path / "x")
    making.random_adapter(seed=1).save(tmp_path / "y")
    making.random_adapter(seed=2).save(tmp_path / "z")
    x, y, z = (read_adapter(tmp_path / n).sha256 for n in "xyz")
    assert x == y != z and len(x) == 64
    memory = making.random_adapter(seed=1)
    assert memory.sha256 == making.random_adapter(seed=1).sha256
    assert memory.sha256 != making.random_adapter(seed=2).sha256


CACHE = "/home/alice/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf/snapshots/0123abc"


IDS = """
gpt2 owner/name owner/name/ gpt2@v1 owner/name@v1.0 owner/name@refs/pr/1 owner/name@v2:lora/math
HuggingFaceTB/SmolLM2-135M-Instruct models/base
""".split()


@pytest.mark.parametrize("name", IDS)
def test_ids_of_the_hub_stay(name):
    assert public_name(name) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/alice/secret-project/base", "base"),
        ("/home/alice/secret-project/base/", "base"),
        ("./models/base", "base"),
        ("../base", "base"),
        ("~/models/base", "base"),
        ("home/alice/secret/base", "base"),
        (r"C:\Users\alice\models\base", "base"),
        ("C:/Users/alice/models/base", "base"),
        (r"\\server\share\alice\base", "base"),
        ("file:///home/alice/base", "base"),
        ("s3://bucket/alice/base", "base"),
        ("https://alice:hf_token@example.org/models/base?token=hf_token#x", "base"),
        ("https://alice:hf_token@example.org", "example.org"),
        ("/home/alice/模型", "模型"),
        ("/home/alice/my base", "my base"),
        (CACHE, "meta-llama/Llama-2-7b-hf"),
        (CACHE.replace("/", "\\").replace("meta-llama--Llama-2-7b-hf", "gpt2"), "gpt2"),
    ],
)
def test_of_a_path_the_last_part_is_left(path, name):
    assert public_name(path) == name


@pytest.mark.parametrize("nothing", [None, "", "/", ".", "..", "../..", "~", "./"])
def test_what_names_nothing_has_no_public_name(nothing):
    assert public_name(nothing) is None


@pytest.mark.parametrize(
    "key", ["lora_unet_down_blocks_0.lora_{}.weight", "unet.to_q.lora.{}.weight"]
)
def test_adapters_of_images_are_refused_with_what_can_be_done(tmp_path, key):
    tensors = {key.format(which): torch.ones(4, 4) for which in ("down", "up")}
    adapter = read_adapter(write_adapter(tmp_path / "a", tensors, target_modules=["to_q"]))
    cures = {issue.code: issue.cure for issue in adapter.issues if issue.severity == "error"}
    assert cures.keys() == {"unknown-tensors", "no-modules"}
    assert all("diffusers" in cure and "images" in cure for cure in cures.values())
