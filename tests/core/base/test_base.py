"""The base's directory read without loading it agrees with what transformers loads."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import making
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraprobe.base import load_base, open_base, pick_device, pick_dtype
from loraprobe.base.declared import check_sizes, check_types
from loraprobe.errors import BaseError, UsageError


@pytest.fixture
def copied(small_base: Path, tmp_path: Path) -> Path:
    """A base's directory that a test may damage."""
    return Path(shutil.copytree(small_base, tmp_path / "base"))


def assert_same_weights(directory: Path, model: torch.nn.Module) -> None:
    """Every two-dimensional weight of the model is there, at its path, oriented as promised."""
    base = open_base(directory)
    expected = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2:
            expected[path] = weight if isinstance(module, torch.nn.Linear) else weight.T
    assert set(base.shapes) == set(expected)
    for path, weight in expected.items():
        assert base.shapes[path] == tuple(weight.shape), path
        assert torch.equal(base.weight(path), weight), path


def form(place: Path, model, saved=None, zipped: bool | None = None, **options):
    """The model, saved in the directory whole or as its part `saved`, or as a pickle."""
    (saved or model).save_pretrained(place, **options)
    if zipped is not None:
        state = load_file(place / "model.safetensors")
        (place / "model.safetensors").unlink()
        torch.save(state, place / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return model


LLAMA, GPT2 = making.tiny_llama(), making.tiny_gpt2()
FORMS = {
    "own head": {"model": making.tiny_llama(tied=False)},
    "conv1d, in the orientation of a linear": {"model": GPT2},
    "without its head, and so without the prefix": {"model": GPT2, "saved": GPT2.transformer},
    "without a prefix that only transformers knows": {"model": LLAMA, "saved": LLAMA.model},
    "shards": {"model": LLAMA, "max_shard_size": "4KB"},
    "pickle": {"model": LLAMA, "zipped": True},
    "pickle of old versions": {"model": LLAMA, "zipped": False},
}


class TestGeometry:
    @pytest.mark.parametrize("case", FORMS)
    def test_weights_are_those_of_the_model(self, tmp_path, case):
        assert_same_weights(tmp_path, form(tmp_path, **FORMS[case]))
        if case == "shards":
            assert len(list(tmp_path.glob("*.safetensors"))) > 2
        if "conv1d" in case:
            base = open_base(tmp_path)
            assert base.shapes["transformer.h.0.attn.c_attn"] == (48, 16)
            assert base.weights["transformer.h.0.attn.c_attn"].kind == "conv1d"

    def test_a_head_beside_a_body_without_prefix(self, tmp_path, gpt2):
        gpt2.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        state = {k.removeprefix("transformer."): t for k, t in load_file(file).items()}
        state["lm_head.weight"] = torch.randn(40, 16)
        save_file(state, file)
        base = open_base(tmp_path)
        assert torch.equal(base.weight("lm_head"), state["lm_head.weight"])
        assert base.shapes["transformer.wte"] == (16, 40)

    def test_names_that_change_while_loading(self, tmp_path):
        """A multimodal checkpoint: the text model lies elsewhere in memory than in the file."""
        model = making.tiny_gemma3_with_vision()
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert not any(key.startswith("model.") for key in stored)
        base = open_base(tmp_path)
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                assert torch.equal(base.weight(path), module.weight), path
        assert base.shapes["model.language_model.embed_tokens"] == (16, 40)
        assert base.vocab_size == 40

    def test_names_of_an_unknown_architecture_stay_as_stored(self, tmp_path, llama):
        llama.model.save_pretrained(tmp_path)
        making.edit(tmp_path / "config.json", model_type="nonesuch", architectures=["Nonesuch"])
        assert "layers.0.mlp.up_proj" in open_base(tmp_path).shapes

    def test_half_precision_is_read_as_float32(self, tmp_path, llama):
        llama.to(torch.bfloat16).save_pretrained(tmp_path)
        weight = open_base(tmp_path).weight("model.layers.0.mlp.up_proj")
        assert weight.dtype == torch.float32
        assert torch.equal(weight, llama.model.layers[0].mlp.up_proj.weight.float())

    def test_quantised_weights_are_refused(self, tmp_path, llama):
        llama.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        key = "model.layers.0.mlp.up_proj.weight"
        state[key] = torch.zeros(192, 1, dtype=torch.uint8)
        save_file(state, tmp_path / "model.safetensors")
        making.edit(tmp_path / "config.json", quantization_config={"quant_method": "bitsandbytes"})
        base = open_base(tmp_path)
        assert base.quantization == {"quant_method": "bitsandbytes"}
        assert "model.layers.0.mlp.up_proj" not in base.shapes
        with pytest.raises(BaseError, match="unquantised"):
            base.weight("model.layers.0.mlp.up_proj")

    def test_vocabulary(self, tmp_path, llama, gpt2, small_base):
        llama.save_pretrained(tmp_path / "l")
        making.edit(
            tmp_path / "l" / "config.json", vocab_size=99
        )  # the rows count, not what the config says
        assert open_base(tmp_path / "l").vocab_size == 40
        gpt2.save_pretrained(tmp_path / "g")
        assert open_base(tmp_path / "g").vocab_size == 40  # not the 64 positions
        assert open_base(small_base).vocab_size == open_base(small_base).tokenizer_size == 512
        assert open_base(tmp_path / "g").tokenizer_size is None

    def test_unknown_module_names_the_nearest(self, small_base):
        with pytest.raises(BaseError, match=r"model\.layers\.0\.mlp\.up_proj"):
            open_base(small_base).weight("model.layers.0.mlp.up_prj")


class TestHash:
    def test_is_that_of_the_file(self, small_base):
        digest = hashlib.sha256((small_base / "model.safetensors").read_bytes()).hexdigest()
        assert open_base(small_base).sha256 == digest
        assert open_base(small_base, "owner/name", "c" * 40).summary().sha256 == digest

    def test_of_shards_depends_on_every_shard(self, tmp_path, llama):
        llama.save_pretrained(tmp_path, max_shard_size="4KB")
        before = open_base(tmp_path).sha256
        last = sorted(tmp_path.glob("*.safetensors"))[-1]
        last.write_bytes(last.read_bytes()[:-1] + b"\x01")
        assert len(before) == 64 and open_base(tmp_path).sha256 != before

    def test_large_files_are_hashed_only_when_asked(self, small_base, monkeypatch):
        monkeypatch.setattr("loraprobe.base.model.HASH_WITHOUT_ASKING", 10)
        base = open_base(small_base)
        assert base.summary().sha256 is None
        assert base.summary().sha256 == (base.__dict__.get("sha256"))
        assert base.sha256 and base.summary().sha256 == base.sha256

    def test_a_file_of_the_hub_cache_is_taken_at_its_name(self, copied, monkeypatch):
        """By a name in a folder of blobs there, and by no other."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copied.parent / "hub"))
        for folder, taken in (("hub/m/blobs", True), ("hub/m/other", False), ("m/blobs", False)):
            blob = copied.parent / folder / ("ab" * 32)
            blob.parent.mkdir(parents=True)
            (copied / "model.safetensors").resolve().rename(blob)
            (copied / "model.safetensors").unlink(missing_ok=True)
            (copied / "model.safetensors").symlink_to(blob)
            assert (open_base(copied).sha256 == "ab" * 32) is taken


class TestLoading:
    def test_ready_to_score_and_silent(self, small_base, capfd):
        loaded = load_base(open_base(small_base))
        assert not loaded.model.training
        assert not any(p.requires_grad for p in loaded.model.parameters())
        assert loaded.model.dtype == torch.float32
        assert loaded.tokenizer.pad_token_id is not None
        out, err = capfd.readouterr()
        assert out == "" and err == ""

    def test_transformers_keeps_its_own_settings(self, small_base):
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        load_base(open_base(small_base))
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
        logging.set_verbosity(before)

    def test_missing_tokenizer(self, tmp_path, llama):
        llama.save_pretrained(tmp_path)
        with pytest.raises(BaseError, match="no tokenizer"):
            load_base(open_base(tmp_path))

    @pytest.mark.parametrize(
        ("config", "refused"),
        [
            ({"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"]}, "nonesuch"),
            ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "harm.C"}}, "--trust-remote-co"),
            ({"auto_map": {"AutoModelForCausalLM": "harm.Model"}}, None),  # a known architecture
        ],
    )
    def test_an_architecture_is_known_or_needs_the_switch(self, copied, config, refused):
        making.edit(copied / "config.json", **config)
        (copied / "harm.py").write_text(f"open({str(copied / 'harmed')!r}, 'w')\n")
        if refused:
            with pytest.raises(BaseError, match=refused):
                load_base(open_base(copied))
        else:
            assert type(load_base(open_base(copied)).model).__name__ == "LlamaForCausalLM"
        assert not (copied / "harmed").exists()

    def test_absent_weights_are_not_made_up(self, copied):
        state = load_file(copied / "model.safetensors")
        del state["model.layers.1.mlp.up_proj.weight"]
        save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BaseError, match=r"lacks 1 weights.*up_proj"):
            load_base(open_base(copied))


class TestBadDirectories:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "empty"),
            (b"abc", "header"),
            (b"\xff" * 30, "broken or incomplete"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ],
    )
    def test_broken_weights(self, copied, content, said):
        (copied / "model.safetensors").write_bytes(content)
        for read in (lambda base: base.shapes, lambda base: base.weight("model.embed_tokens")):
            with pytest.raises(BaseError, match=said) as caught:
                read(open_base(copied, "owner/name"))
            assert "owner/name" in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            *[("config.json", text, r"config\.json") for text in (b"", b"[1]", b"{", b"\xff")],
            ("config.json", None, r"config\.json"),
            ("model.safetensors", None, r"pytorch_model\.bin"),
            ("model.safetensors.index.json", b'{"weight_map": {"a": "lost-1.bin"}}', "lost-1"),
            ("", None, "not a directory"),
        ],
    )
    def test_what_is_broken_or_absent_is_named(self, copied, file, content, said):
        if content is not None:
            (copied / file).write_bytes(content)
        elif file:
            (copied / file).unlink()
        with pytest.raises(BaseError, match=said):
            _ = open_base(copied if file else copied / "nowhere").shapes

    def test_an_adapter(self, tmp_path):
        making.write_adapter(tmp_path, {"x": torch.zeros(1)})
        with pytest.raises(BaseError, match="--base owner/base"):
            open_base(tmp_path)


class TestDevices:
    def test_auto_takes_the_accelerator(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert pick_device("auto").type == "cuda"
        assert pick_dtype("auto", "cuda") == torch.bfloat16
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
        assert pick_dtype("auto", "cuda") == torch.float16
        assert pick_dtype("auto", "cpu") == torch.float32
        assert pick_dtype("bfloat16", "cpu") == torch.bfloat16

    @pytest.mark.parametrize("text", ["gpu", "cuda:x", "", "cpu:1", "int8"])
    def test_unknown_names(self, text):
        for pick, option in ((pick_device, "--device"), (pick_dtype, "--dtype")):
            with pytest.raises(UsageError, match=option):
                pick(text)

    def test_absent_device(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(UsageError, match="sees 0 cuda devices"):
            pick_device("cuda")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert pick_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(UsageError, match="sees 2 cuda devices"):
            pick_device("cuda:2")


class TestDeclared:
    """Compares the sizes in config.json with the shapes of a file."""

    def check(self, **config) -> None:
        shapes = {
            "model.embed_tokens.weight": (40, 16),
            "model.layers.0.mlp.up_proj.weight": (24, 16),
            "model.layers.3.mlp.experts.up_proj": (5000, 24, 16),
            "model.layers.3.mlp.down_proj.qweight": (2, 24),
        }
        tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
        check_types(config, "x")
        check_sizes(config, tensors, "x")

    @pytest.mark.parametrize(
        "config",
        [
            {"num_hidden_layers": 4, "hidden_size": 16, "vocab_size": 40},
            {"num_hidden_layers": 2},  # a file may hold more than is used
            {"num_experts": 5000, "num_attention_heads": 64},
            {"intermediate_size": 18432, "max_position_embeddings": 10**7, "seed": 2**62},
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 27}},
            {"text_config": None, "architectures": None, "auto_map": None},
            {"time_step_limit": [0.0, float("inf")], "rope_scaling": {"factor": 8.0}},
        ],
    )
    def test_what_a_sound_model_declares(self, config):
        self.check(**config)

    @pytest.mark.parametrize(
        "config",
        [
            {"num_hidden_layers": 5},
            {"n_layer": 5.0},
            {"text_config": {"num_hidden_layers": 5}},
            {"num_experts": 10**6},
            {"vision_config": {"num_hidden_layers": 10**6}},
            {"hidden_size": 10**7},
            {"n_inner": float("inf")},
            {"layer_sizes": [2**63]},
            {"vocab_size": True},
            {"architectures": ["A", 1]},
        ],
    )
    def test_what_none_does(self, config):
        with pytest.raises(BaseError, match=r"config\.json of x"):
            self.check(**config)
