"""--full-model: what the command line writes, says and refuses; `verify`; nothing half-written."""

import contextlib
import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import making
import pytest
import torch
from forks import Fork
from making import call
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraprobe
from loraprobe.base import open_base
from loraprobe.base.loading import load_model
from loraprobe.composition import Composition, composed
from loraprobe.demo import shipped_world
from loraprobe.extensions.files import full_model
from loraprobe.extensions.files.verification import verification_answer
from loraprobe.front_matter import read_front_matter
from loraprobe.records import BY_PROMPT, Command
from loraprobe.routing.constant import ConstantGates

FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
FILES |= {"tokenizer.json", "tokenizer_config.json"}
WEIGHTS, CARD = "model.safetensors", "README.md"


@pytest.fixture
def world(tmp_path, small_base):
    """The arguments of a merge of two adapters of the small base."""
    shapes = {p: s for p, s in open_base(small_base).shapes.items() if "self_attn" in p}
    refs = making.saved_pair(tmp_path, shapes, scaling=0.01)
    return [*refs, "--base", small_base]


def done(*arguments) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


def test_a_directory_that_transformers_loads_alone(world, tmp_path, small_base):
    told = done("merge", *world, "--method", "sum", "--full-model", tmp_path / "full")
    assert "rounding to the base's dtype" in told
    assert {path.name for path in (tmp_path / "full").iterdir()} == FILES
    for name in FILES - {CARD, "config.json", WEIGHTS}:
        assert (tmp_path / "full" / name).read_bytes() == (small_base / name).read_bytes()
    AutoTokenizer.from_pretrained(tmp_path / "full")
    found = making.hidden(AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval())
    base = load_model(open_base(small_base))
    adapters = tuple(loraprobe.load(ref) for ref in world[:2])
    with composed(base, Composition("sum", adapters, ConstantGates.ones(2))):
        torch.testing.assert_close(found, making.hidden(base), rtol=1e-5, atol=1e-5)


def test_the_card_says_what_it_is(world, tmp_path):
    done("merge", *world, "--method", "ties", "--full-model", tmp_path / "full")
    card = (tmp_path / "full" / CARD).read_text()
    matter = read_front_matter(card)
    assert matter["base_model_relation"] == "merge" and matter["library_name"] == "transformers"
    assert matter["base_model"] == "owner/base" and "lora" not in matter["tags"]
    assert matter["loraprobe"]["full_model"] is True and matter["loraprobe"]["base"]["sha256"]
    assert "from the base and 2 adapters" in card
    assert "PeftModel" not in card and 'AutoModelForCausalLM.from_pretrained(".")' in card
    assert str(tmp_path) not in card + (tmp_path / "full" / "config.json").read_text()


def test_the_adapter_beside_it_is_the_one_that_is_written_alone(world, tmp_path):
    merge = ["merge", *world, "--method", "ties"]
    done(*merge, "-o", tmp_path / "out", "--full-model", tmp_path / "full")
    done(*merge, "-o", tmp_path / "alone")
    for name in ("adapter_model.safetensors", "adapter_config.json", CARD):
        both = [(tmp_path / place / name).read_bytes() for place in ("out", "alone")]
        assert both[0] == both[1]


def test_what_is_told_of_a_full_model_alone_is_not_that_of_an_adapter(world, tmp_path):
    merge = ["merge", *world, "--method", "ties", "--json"]
    full = json.loads(call(*merge, "--full-model", tmp_path / "full").stdout)
    cut = json.loads(call(*merge, "--rank", "2", "-o", tmp_path / "out").stdout)

    def figure(document, name):
        rows = [row for row in document["diagnostics"] if row["name"] == name]
        return next(row["value"] for row in rows if row["adapters"] == ["ties"])

    assert figure(full, "compression_error") == 0 < figure(cut, "compression_error")
    change = sum(
        float((now.double() - then.double()).square().sum())
        for now, then in _both(tmp_path / "full", world[-1])
    )
    assert figure(full, "norm") == pytest.approx(change**0.5, rel=1e-4)
    codes = {issue["code"] for issue in full["compatibility"]["issues"]}
    assert "compression-lost" not in codes
    assert any(i["code"] == "compression-lost" for i in cut["compatibility"]["issues"])


@pytest.mark.needs("--serve")
def test_a_server_of_a_full_model_loads_no_adapter(world, tmp_path):
    done = call("merge", *world, "--full-model", tmp_path / "full", "--json")
    commands = json.loads(done.stdout)["serve"]
    assert commands and all("lora" not in command for command in commands)


def _both(full: Path, base: Path):
    now, then = (load_file(place / WEIGHTS) for place in (full, base))
    return [(now[key], then[key]) for key in then]


def test_what_is_done_to_the_files_of_the_base_is_said(world, tmp_path):
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    torch.save(load_file(base / WEIGHTS), base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    told = done("merge", *world[:2], "--base", base, "--full-model", tmp_path / "full")
    assert "became safetensors" in told and (tmp_path / "full" / WEIGHTS).is_file()


def test_a_link_out_of_the_base_is_not_followed(world, tmp_path):
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    (tmp_path / "secret").write_text("{}")
    (base / "chat_template.jinja").symlink_to(tmp_path / "secret")
    told = refused("merge", *world[:2], "--base", base, "--full-model", tmp_path / "full")
    assert "leads out" in told and not (tmp_path / "full").exists()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_it_is_verified_tensor_by_tensor(world, tmp_path, method):
    full = tmp_path / "full"
    done("merge", *world, "--method", method, "--full-model", full)
    verify = ["verify", full, "--base", world[-1], "--json"]
    assert json.loads(done(*verify))["verified"] is True
    tensors = load_file(full / WEIGHTS)
    for key in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        changed = {k: t.clone() for k, t in tensors.items()}
        changed[key].view(-1)[7] += 0.01 * changed[key].abs().max()
        save_file(changed, full / WEIGHTS, metadata={"format": "pt"})
        assert _failed(verify) == [WEIGHTS]
    save_file(tensors, full / WEIGHTS, metadata={"format": "pt"})
    making.edit(full / "config.json", rms_norm_eps=0.1)
    (full / "tokenizer.json").write_text("{}")
    (full / "modeling.py").write_text("")
    assert _failed(verify) == ["config.json", "files", "tokenizer.json"]


def test_verify_does_not_repeat_a_fault_of_writing(world, tmp_path, monkeypatch):
    """Here the last file is the base's own, in the directory as in every one written after it."""
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    load_model(open_base(base)).save_pretrained(base, max_shard_size="200KB")
    (base / WEIGHTS).unlink()
    save = full_model.save_full_model

    def faulty(merged, directory, *rest, **more):
        lost = save(merged, directory, *rest, **more)
        last = max(Path(directory).glob("*.safetensors"))
        shutil.copyfile(base / last.name, last)
        return lost

    monkeypatch.setattr(full_model, "save_full_model", faulty)
    merge = ["merge", *world[:2], "--base", base, "--method", "sum"]
    done(*merge, "--full-model", tmp_path / "full")
    failed = _failed(["verify", tmp_path / "full", "--base", base, "--json"])
    assert failed == [max(tmp_path.glob("full/*.safetensors")).name]


def test_verify_ends_in_a_step_with_all_that_was_given(world, tmp_path):
    full, base = tmp_path / "full", str(world[-1])
    done("merge", *world, "--full-model", full)
    verify = partial(loraprobe.verify, full)
    assert "AutoModelForCausalLM" in str(_step(verify(world[:2], base)))
    shutil.copytree(world[0], tmp_path / "other" / "c")
    changed = load_file(world[0] / "adapter_model.safetensors")
    changed = {key: tensor + 1 for key, tensor in changed.items()}
    save_file(changed, tmp_path / "other" / "c" / "adapter_model.safetensors")
    given = [str(world[0]), str(tmp_path / "other" / "c")]
    shutil.move(world[1], tmp_path.parent / f"{tmp_path.name}-b")
    lacking = verify(given, base)
    (open_,) = [check for check in lacking.checks if check.passed is None]
    assert given[1] in open_.message
    assert _step(lacking) == Command("verify", (str(full), *given, "REF"), (("--base", base),))
    given[1] = str(tmp_path.parent / f"{tmp_path.name}-b")
    wrong = verify(given, full)
    (open_,) = [check for check in wrong.checks if check.passed is None]
    assert str(full) in open_.message
    assert _step(wrong) == Command("verify", (str(full), *given), (("--base", "BASE"),))
    tensors = load_file(full / WEIGHTS)
    tensors["model.norm.weight"] += 1
    save_file(tensors, full / WEIGHTS, metadata={"format": "pt"})
    failed = verify(given, base)
    (open_,) = [check for check in failed.checks if check.passed is False]
    assert open_.message.startswith("model.norm.weight ")
    assert _step(failed) == Command("verify", (str(full), *given), (("--base", base),))


def _step(verification) -> Command:
    commands = [part for _, part in verification_answer(verification).lines]
    (step,) = [part for part in commands if isinstance(part, Command)]
    return step


@pytest.mark.needs("--served")
def test_no_server_is_asked_for_a_full_model(world, tmp_path):
    done("merge", *world, "--full-model", tmp_path / "full")
    line = refused("verify", tmp_path / "full", "--served", "http://localhost:9")
    assert "full model" in line and "--base" not in line


def test_an_old_transformers_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("loraprobe.extensions.files.full_model.TRANSFORMERS", (99, 0))
    line = refused("merge", tmp_path / "nothing", "--full-model", tmp_path / "full")
    assert "transformers 99.0" in line


def _failed(verify) -> list[str]:
    result = call(*verify)
    assert result.exit_code == 1
    return sorted(c["name"] for c in json.loads(result.stdout)["checks"] if c["passed"] is False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give -o DIR"),
        (["--full-model", "full", "--dtype", "bfloat16"], "--dtype"),
        (["--full-model", "full", "-o", "full"], "two directories"),
        (["--full-model", "full/inner", "-o", "full"], "two directories"),
        (["--full-model", "other"], "exists already"),
        (["--full-model", "a", "--overwrite"], "which is read"),
        (["--full-model", "other", "--overwrite"], "more than"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    world, tmp_path, monkeypatch, more, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"broken")
    before = sorted(tmp_path.rglob("*"))
    assert words in refused("merge", *world, *more)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_disk_that_tells_no_size_is_not_called_full(world):
    assert "/proc/other cannot be written" in refused(
        "merge", *world, "--full-model", "/proc/other"
    )


def test_a_recommended_merge_is_written_with_what_was_measured(tmp_path):
    method = ["--system", "task_arithmetic", "--weights", "1,1"]
    out = ["-o", tmp_path / "out", "--full-model", tmp_path / "full"]
    done("merge-and-eval", *making.shipped("skill-and-facts"), *method, "--limit", "30", *out)
    base, full = open_base(shipped_world().base), open_base(tmp_path / "full")
    merged = loraprobe.load(tmp_path / "out").modules
    for path in merged:
        change = full.weight(path) - base.weight(path)
        delta = merged[path].to(torch.float32).delta()
        assert (change - delta).norm() < 0.05 * delta.norm()  # the base is bf16
    card = (tmp_path / "full" / CARD).read_text()
    assert "What was measured" in card and "licence-unknown" in card


def test_advice_that_no_weights_are_writes_none(tmp_path):
    """A router chooses by the prompt."""
    options = ["--system", BY_PROMPT, "--limit", "40", "--full-model", tmp_path / "full", "--json"]
    result = call("merge-and-eval", *making.shipped("keep-both"), *options)
    reasons = json.loads(result.stdout)["verdict"]["reasons"]
    (told,) = [row["message"] for row in reasons if row["code"] == "nothing-written"]
    assert "full" in told and not (tmp_path / "full").exists()


def test_overwriting_replaces_a_full_model(world, tmp_path):
    merge = ["merge", *world, "--full-model", tmp_path / "full"]
    done(*merge)
    first = (tmp_path / "full" / WEIGHTS).read_bytes()
    assert "--overwrite" in refused(*merge)
    done(*merge, "--method", "sum", "--overwrite")
    assert (tmp_path / "full" / WEIGHTS).read_bytes() != first
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused(*merge, "--overwrite")


def write_slowly() -> None:
    """Half of the weights are written, and then a minute passes."""
    import safetensors.torch

    def slow(tensors, file, **more):
        Path(file).write_bytes(b"half")
        time.sleep(60)

    safetensors.torch.save_file = slow


def test_an_interruption_leaves_nothing(world, tmp_path):
    """^C while the weights are written."""
    place = tmp_path / "new" / "full"
    merge = ["merge", *world, "--full-model", place]
    child = Fork.of_command(merge, tmp_path / "said", write_slowly)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("new/.full.*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGINT)
    code, out, err = child.end()
    assert code == 130 and out == "" and "Traceback" not in err
    assert not (tmp_path / "new").exists()
