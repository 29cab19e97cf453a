"""A merged directory is read back before it appears, and verified against its card later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from making import random_adapter, tiny_llama
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import loraprobe
from loraprobe.adapter import adapter_of, read_adapter
from loraprobe.cli import app
from loraprobe.errors import AdapterError, OutputError
from loraprobe.lowrank import LowRank
from loraprobe.merging import METHODS
from loraprobe.pipeline.peft_skeleton import problems_in_peft
from loraprobe.shelf import spec_of

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


@pytest.fixture
def pair(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        random_adapter(name, seed=seed, scaling=0.1).save(tmp_path / name)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def merged(pair, tmp_path, *options: str) -> Path:
    out = tmp_path / "out"
    done = call("merge", *pair, "-o", out, *options)
    assert done.exit_code == 0, done.output
    return out


def failed(out: Path) -> list[str]:
    """The names of the checks that do not hold."""
    result = call("verify", out, "--json")
    assert result.exit_code in (0, 1), result.output
    document = json.loads(result.stdout)
    assert document["verified"] == (result.exit_code == 0)
    return [check["name"] for check in document["checks"] if not check["passed"]]


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_verified(pair, tmp_path, name):
    assert failed(merged(pair, tmp_path, "--method", name, "--rank", "6")) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "task_arithmetic", "--weights", "1,-0.3", "--balance", "norm"],
        ["--method", "ties:density=0.4,variant=mergekit", "--space", "core", "--dtype", "bfloat16"],
        ["--method", "dare_linear:density=0.3", "--seed", "7", "--rank", "3"],
    ],
)
def test_every_choice_is_in_the_card(pair, tmp_path, options):
    assert failed(merged(pair, tmp_path, *options)) == []


def test_a_subtraction_is_repeated(pair, tmp_path):
    random_adapter("g", seed=9, scaling=0.1).save(tmp_path / "g")
    out = merged(pair, tmp_path, "--subtract", str(tmp_path / "g"))
    assert failed(out) == []
    random_adapter("g", seed=10, scaling=0.1).save(tmp_path / "g", overwrite=True)
    assert failed(out) == ["merge"]


def edit_weights(out: Path, change) -> None:
    tensors = load_file(str(out / WEIGHTS))
    save_file(change(tensors), str(out / WEIGHTS))


def one_entry(tensors):
    key = sorted(tensors)[0]
    tensors[key] = tensors[key].index_fill(0, torch.tensor([0]), 0.25)
    return tensors


def swapped(tensors):
    a, b = sorted(k for k in tensors if "q_proj.lora_A" in k)
    return tensors | {a: tensors[b], b: tensors[a]}


def renamed(tensors):
    key = next(k for k in sorted(tensors) if "q_proj.lora_A" in k)
    return {k.replace("q_proj", "r_proj") if k == key else k: t for k, t in tensors.items()}


@pytest.mark.parametrize(
    ("tamper", "caught"),
    [
        (one_entry, ["merge"]),
        (swapped, ["merge"]),
        (renamed, ["files", "peft", "merge"]),
    ],
)
def test_tampered_weights_are_caught(pair, tmp_path, tamper, caught):
    out = merged(pair, tmp_path)
    edit_weights(out, tamper)
    assert failed(out) == caught


@pytest.mark.parametrize("change", [{"lora_alpha": 3}, {"use_rslora": True}, {"r": 4}])
def test_a_tampered_config_is_caught(pair, tmp_path, change):
    out = merged(pair, tmp_path)
    config = json.loads((out / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps(config | change))
    assert failed(out)


def test_a_source_that_changed_is_named(pair, tmp_path):
    out = merged(pair, tmp_path)
    random_adapter("b", seed=3).save(pair[1], overwrite=True)
    assert failed(out) == ["source b"]


def test_a_source_that_is_gone_is_named(pair, tmp_path):
    out = merged(pair, tmp_path)
    (Path(pair[1]) / WEIGHTS).unlink()
    assert failed(out) == ["source b"]


@pytest.mark.parametrize(
    "card", [None, "", "no front matter", "---\nbroken: [\n---\n", "---\ntags: [lora]\n---\n",
             "---\nloraprobe: {sources: 3}\n---\n",
             "---\nloraprobe: {schema_version: 99, sources: []}\n---\n"],
)  # fmt: skip
def test_what_has_no_provenance_is_one_sentence(pair, tmp_path, card):
    out = merged(pair, tmp_path)
    (out / CARD).unlink() if card is None else (out / CARD).write_text(card)
    result = call("verify", out)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and not result.stdout
    with pytest.raises(AdapterError, match=r"README\.md"):
        loraprobe.verify(out)


def nested(depth: int) -> str:
    return f"---\nloraprobe: {'[' * depth}{']' * depth}\n---\n"


ODD = (None, "x", -1.5, True, [], {}, [1], ["a"], {"a": 1}, [[1]], 10**400, float("nan"))


@pytest.mark.parametrize("key", ["method", "weights", "space", "rank", "dtype", "seed", "allow",
                                 "balance", "subtract", "base", "sources"])  # fmt: skip
def test_a_card_that_lies_about_its_merge_is_no_traceback(pair, tmp_path, key):
    """Whatever stands in a stranger's card, the answer is a check that fails or one sentence."""
    out = merged(pair, tmp_path)
    _, front, body = (out / CARD).read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    right = told["loraprobe"][key]
    within = []
    if key == "sources":
        within = [[right[0] | {name: odd}, *right[1:]] for name in right[0] for odd in ODD]
    for odd in (*ODD, *within):
        told["loraprobe"][key] = odd
        (out / CARD).write_text(f"---\n{yaml.safe_dump(told)}---\n{body}")
        result = call("verify", out)
        assert result.exception is None or isinstance(result.exception, SystemExit), odd
        assert result.exit_code in (0, 1, 2) and "Traceback" not in result.output


def test_a_card_nested_too_deeply_is_one_sentence(pair, tmp_path):
    out = merged(pair, tmp_path)
    (out / CARD).write_text(nested(20_000))
    with pytest.raises(AdapterError, match="says nothing of a merge"):
        loraprobe.verify(out)


def test_a_relative_source_says_where_to_run(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = merged([Path(place).name for place in pair], tmp_path)
    assert loraprobe.verify(out).passed
    monkeypatch.chdir("/")
    wrong = [check.message for check in loraprobe.verify(out).checks if not check.passed]
    assert len(wrong) == 2 and all("run verify where the merge was run" in w for w in wrong)


def test_the_front_matter_is_what_the_hub_reads(pair, tmp_path):
    out = merged(pair, tmp_path)
    matter = yaml.safe_load((out / CARD).read_text().split("---\n")[1])
    assert matter["base_model"] == "owner/base" and matter["library_name"] == "peft"
    told = matter["loraprobe"]
    assert told["method"] == "uniform" and told["weights"] == [0.5, 0.5]
    assert [source["sha256"] for source in told["sources"]] == [
        read_adapter(place).sha256 for place in pair
    ]


@pytest.mark.parametrize("name", METHODS.names())
def test_specs_make_equal_methods(name):
    method = METHODS.make(name)
    assert METHODS.make(spec_of(method)) == method


class TestReadback:
    """What is written wrong never appears."""

    def spoiled(self, monkeypatch, tmp_path, change, match):
        import safetensors.torch

        def spoil(tensors, path, metadata=None):
            save_file(change(dict(tensors)), path, metadata=metadata)

        monkeypatch.setattr(safetensors.torch, "save_file", spoil)
        with pytest.raises(OutputError, match=match):
            random_adapter("a").save(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_number(self, monkeypatch, tmp_path):
        self.spoiled(monkeypatch, tmp_path, one_entry, "differs when it is read back")

    def test_a_lost_tensor(self, monkeypatch, tmp_path):
        def lose(tensors):
            tensors.pop(sorted(tensors)[0])
            return tensors

        self.spoiled(monkeypatch, tmp_path, lose, "differs when it is read back")

    def test_another_dtype(self, monkeypatch, tmp_path):
        self.spoiled(
            monkeypatch, tmp_path, lambda t: {k: v.half() for k, v in t.items()}, "differs"
        )

    def test_a_wrong_scaling(self, monkeypatch, tmp_path):
        from loraprobe.adapter import saving

        config_of = saving.config_of
        monkeypatch.setattr(saving, "config_of", lambda a: config_of(a) | {"lora_alpha": 7})
        with pytest.raises(OutputError, match="the scaling of"):
            random_adapter("a").save(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


class TestSkeleton:
    def test_all_kinds_of_layer(self, tmp_path):
        def update(out: int, inp: int) -> LowRank:
            return LowRank(torch.randn(2, inp), torch.randn(out, 2), 0.5)

        adapter = adapter_of(
            "kinds",
            {
                "model.embed": update(8, 20), "model.layers.0.fc": update(6, 8),
                "model.conv": update(5, 3 * 4), "lm_head": update(20, 8),
            },
            kinds={"model.embed": "embedding", "model.conv": "convolution"},
            kernels={"model.conv": (2, 2)},
            whole={"score.weight": torch.ones(3, 8), "model.layers.0.fc.bias": torch.ones(6)},
        )  # fmt: skip
        adapter.save(tmp_path / "out")
        assert problems_in_peft(tmp_path / "out", adapter) == []

    def test_dora_and_conv1d(self, tmp_path):
        shapes = {"transformer.h.0.attn.c_attn": (48, 16), "transformer.h.0.mlp.c_fc": (64, 16)}
        plain = random_adapter("d", shapes, kinds=dict.fromkeys(shapes, "conv1d"))
        adapter = adapter_of(
            "d", plain.modules, kinds=dict.fromkeys(shapes, "conv1d"),
            magnitudes={path: torch.ones(out) for path, (out, _) in shapes.items()},
        )  # fmt: skip
        adapter.save(tmp_path / "out")
        assert problems_in_peft(tmp_path / "out", adapter) == []

    def test_what_peft_would_ignore_is_found(self, tmp_path):
        adapter = random_adapter("a")
        adapter.save(tmp_path / "out")
        edit_weights(tmp_path / "out", renamed)
        problems = problems_in_peft(tmp_path / "out", adapter)
        assert any("no place for" in problem for problem in problems)
        assert any("misses" in problem for problem in problems)

    def test_it_agrees_with_a_real_model(self, tmp_path):
        """What a skeleton takes, the model takes; tiny models stand for any."""
        import warnings

        from peft import PeftModel

        random_adapter("a").save(tmp_path / "out")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "out"))
