"""Strangers' files that mean harm: nothing of theirs runs, nothing is followed out or drawn. Tokens
and passwords: put into every place they could come out of, found in none."""

import copy
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from bases import subwords
from making import call, edit, random_adapter, saved_pair, write_adapter

from loraprobe.adapters import read_adapter
from loraprobe.base import load_base, open_base
from loraprobe.errors import AdapterError, BaseError, LoraprobeError, UsageError
from loraprobe.hub import model_card
from loraprobe.scoring.encoding import Encoder
from loraprobe.secrets import scrub
from loraprobe.untrusted import deadline


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self):
        return (Path.touch, (self.where / "harmed",))


class TestPickles:
    """No pickle executes: neither an adapter's nor a base's nor our own."""

    def bomb(self, file: Path, mark: Path) -> None:
        torch.save({"base_model.model.q_proj.lora_A.weight": Malicious(mark.parent)}, file)
        # It is a bomb indeed.
        with pytest.raises(Exception):  # noqa: B017
            torch.load(file, weights_only=True)
        torch.load(file, weights_only=False)
        assert mark.exists()
        mark.unlink()

    def test_of_an_adapter(self, tmp_path):
        place, mark = write_adapter(tmp_path / "a", {}, pickle=True), tmp_path / "harmed"
        self.bomb(place / "adapter_model.bin", mark)
        for command in (["inspect", place], ["merge", place, place, "-o", tmp_path / "out"]):
            result = call(*command)
            assert result.exit_code == 2 and "broken" in result.stderr
        assert not mark.exists() and not (tmp_path / "out").exists()

    def test_of_a_base(self, small_base, tmp_path):
        base, mark = tmp_path / "base", tmp_path / "harmed"
        shutil.copytree(small_base, base)
        for file in base.glob("*.safetensors*"):
            file.unlink()
        self.bomb(base / "pytorch_model.bin", mark)
        for read in (load_base, lambda base: base.weight("model.layers.0.self_attn.q_proj")):
            with pytest.raises(BaseError):
                read(open_base(base))
        assert not mark.exists()

    def test_nothing_of_ours_unpickles(self):
        """Every torch.load in the package says weights_only, and nothing imports pickle.

        An extension may pickle what it sends to processes of its own.
        """
        for file in (Path(__file__).parents[3] / "loraprobe").rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if "extensions" not in file.parts:
                assert "import pickle" not in text and "import marshal" not in text, file
            for part in text.split("torch.load(")[1:]:
                assert "weights_only=True" in part[:120], file
            # One loader of strangers' YAML, with bounds of its own.
            assert text.count("yaml.load(") == (file.name == "front_matter.py"), file
            assert "yaml.safe_load(" not in text, file
            assert not re.search(r"(?<![.\w])(eval|exec)\(", text)


class TestCodeOfARepository:
    def test_remote_code_runs_only_when_trusted_and_is_reported(self, small_base, tmp_path):
        """The base's config asks for code of its own, which leaves a mark when it is imported."""
        mark, base = tmp_path / "mark", Path(shutil.copytree(small_base, tmp_path / "base"))
        code = {"AutoConfig": "harm.HarmConfig", "AutoModelForCausalLM": "harm.Harm"}
        edit(base / "config.json", model_type="harm", auto_map=code)
        (base / "harm.py").write_text(
            f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class HarmConfig(LlamaConfig):\n    model_type = 'harm'\n"
            "class Harm(LlamaForCausalLM):\n    config_class = HarmConfig\n"
        )
        shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
        refs = saved_pair(tmp_path, shapes, scaling=0.01, base_model=str(base))
        (tmp_path / "t.jsonl").write_text('{"prompt": "Once", "answer": "upon"}\n')
        words = f"--base {base} --task {tmp_path}/t.jsonl --max-new-tokens 2 --system uniform"
        command = ["merge-and-eval", *refs, "--json", *words.split()]
        refused = call(*command)
        assert refused.exit_code == 2 and "--trust-remote-code" in refused.stderr
        assert not mark.exists()
        allowed = call(*command, "--trust-remote-code")
        assert allowed.exit_code in (0, 1, 3), allowed.output
        assert mark.exists()
        assert any("allowed to run" in note for note in json.loads(allowed.stdout)["notes"])

    @pytest.mark.needs("verify")
    def test_auto_mapping_of_an_adapter_is_never_followed(self, tmp_path):
        mark, place = tmp_path / "mark", tmp_path / "a"
        random_adapter("a").save(place)
        (place / "harm.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
        code = {"base_model_class": "Harm", "parent_library": "harm"}
        edit(place / "adapter_config.json", auto_mapping=code)
        sys.path.insert(0, str(place))
        try:
            assert call("inspect", place).exit_code == 0
            assert call("merge", place, "-o", tmp_path / "out", "--rank", 4).exit_code == 0
            assert call("verify", tmp_path / "out").exit_code == 0
        finally:
            sys.path.remove(str(place))
        assert not mark.exists()


FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
LINKS = [  # the adapter's place, its files that are links, where they lead, whether they are read
    ("repository/a", FILES[:1], "elsewhere", False),
    ("repository/a", FILES[1:2], "elsewhere", False),
    ("a", FILES[2:], ".", False),
    ("clone/adapters/a", FILES[1:2], "clone/shared", True),  # inside a repository
    ("hub/models--o--a/snapshots/0000", FILES[:2], "hub/models--o--a/blobs", True),
    ("hub/models--o--a/snapshots/0000", FILES[:1], "hub/models--o--b/blobs", False),
]


class TestLinks:
    @pytest.mark.parametrize(("adapter", "files", "target", "read"), LINKS)
    def test_are_followed_within_a_repository_alone(self, tmp_path, adapter, files, target, read):
        place = tmp_path / adapter
        random_adapter("a").save(place, card="# sound")
        (tmp_path / "clone" / ".git").mkdir(parents=True)
        for name in files:
            moved = tmp_path / target / f"secret {name}"
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place / name, moved)
            (place / name).symlink_to(moved)
        if read:
            assert read_adapter(place).modules
        elif files == FILES[2:]:  # the card alone
            with pytest.raises(LoraprobeError, match="leads out of it"):
                model_card(read_adapter(place))
        else:
            with pytest.raises(AdapterError, match="leads out of it"):
                read_adapter(place)
            assert call("inspect", place).exit_code == 2

    def test_a_directory_may_be_a_link_itself(self, tmp_path):
        random_adapter("a").save(tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
        assert read_adapter(tmp_path / "link").modules


class TestNames:
    @pytest.mark.parametrize("name", ["../out", "a/b", "..", "a\\b", "", "a\0b", "base"])
    def test_an_adapters_name_is_no_path(self, tmp_path, name):
        one, other = saved_pair(tmp_path)
        refs = [f"{name}={one}", other]
        result = call("route", *refs, "--router", "arrow", "-o", tmp_path / "deep" / "out")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

    @pytest.mark.needs("verify")
    def test_yaml_and_markdown_of_cards_are_data(self, tmp_path):
        base = "x\n---\nlicense: mit\n{{ 1234 * 4321 }} <script>alert(1)</script> `|"
        refs, out = saved_pair(tmp_path, base_model=base), tmp_path / "out"
        result = call("merge", *refs, "-o", out, "--allow", "base-unverified")
        assert result.exit_code == 0, result.output
        card = (out / "README.md").read_text()
        front, _, body = card.removeprefix("---\n").partition("\n---\n")
        matter = yaml.safe_load(front)
        assert matter.get("license") is None and "\n" not in matter["base_model"]
        assert "5332114" not in card and "<script>" not in body
        assert call("verify", out).exit_code == 0


class TestTemplates:
    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{% include '/etc/passwd' %}",
            "{{ messages.append(1) }}",
            "{{ raise_exception('no') }}",
            "{{ 1 / 0 }}",
            "{% if %}",
        ],
    )
    def test_a_template_that_reaches_out_is_one_sentence(self, template):
        tokenizer = copy.deepcopy(subwords())
        tokenizer.chat_template = template
        try:
            text = Encoder(tokenizer, chat=True).text("x")
        except LoraprobeError as error:
            assert "--chat-template off" in str(error)
        else:
            assert "subclasses" not in text and "root:" not in text

    def test_the_clock_is_put_back(self):
        import signal

        before = signal.getsignal(signal.SIGALRM)
        with pytest.raises(UsageError), deadline(0.05, UsageError("late")):
            time.sleep(2)
        with deadline(5, UsageError("late")):
            pass
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0

    def test_memory_is_bounded_and_the_bound_put_back(self):
        """A new process has no freed memory that an allocation could take without the kernel."""
        code = """
import resource
from loraprobe.untrusted import memory_limit

before = resource.getrlimit(resource.RLIMIT_AS)
try:
    with memory_limit(2**26):
        bytearray(2**28)
except MemoryError:
    print("refused")
assert resource.getrlimit(resource.RLIMIT_AS) == before
with memory_limit(2**30):
    print(len(bytearray(2**28)))
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout.split() == ["refused", str(2**28)], run.stderr


TOKEN = "hf_QmFkVG9rZW5Gb3JUZXN0cw"
PLAIN = "a-token-of-another-form"


def test_scrubbing(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    text = scrub(f"{TOKEN} and {PLAIN} at https://me:pass@hub.example/x, https://hub.example/a@b")
    assert text == "*** and *** at https://***@hub.example/x, https://hub.example/a@b"
    for head, secret, rest in (
        ("https://", "me:p/w@", "a"),
        ("https://", "me:p@w@", "a"),
        ("https:/", "me:pw@", "a"),  # as pathlib writes it
        ("https://a?token=", "pw", "&b=c"),
    ):
        assert scrub(head + secret + rest) == head + ("***@" if "@" in secret else "***") + rest
    assert scrub("https://hub.example:8000/a@b") == "https://hub.example:8000/a@b"
    assert scrub("shelf_life hf_ hfabc") == "shelf_life hf_ hfabc"
    monkeypatch.setenv("HF_TOKEN", "")
    assert scrub("plain") == "plain"


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    saved_pair(tmp_path / TOKEN, base_model=f"https://me:{PLAIN}@hub/{TOKEN}")
    return [f"{PLAIN}-x={tmp_path / TOKEN / 'a'}", str(tmp_path / TOKEN / "b")]


@pytest.mark.parametrize("form", [["--json"], [], ["--quiet"], ["--per-module"]])
def test_reports_hold_no_token(pair, form):
    result = call("inspect", *pair, *form)
    assert result.exit_code == 0, result.output
    assert TOKEN not in result.output and PLAIN not in result.output
    if form == ["--json"]:
        document = json.loads(result.stdout)
        assert document["provenance"]["arguments"] is not None


def test_the_card_and_the_config_hold_no_token(pair, tmp_path):
    result = call("merge", *pair, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert TOKEN not in result.output and PLAIN not in result.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Sources" in card and TOKEN not in card and PLAIN not in card


def test_errors_hold_no_token(pair):
    result = call("inspect", f"./{TOKEN}-{PLAIN}")
    assert result.exit_code == 2 and "***" in result.stderr
    assert TOKEN not in result.output and PLAIN not in result.output
