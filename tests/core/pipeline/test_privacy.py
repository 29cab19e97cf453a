"""Nothing that is written for others holds a path, a home directory, a user's name or a token."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from making import call as run
from making import edit, known, random_adapter, saved_pair

from loraprobe.adapters import Source, read_adapter
from loraprobe.demo import shipped_world
from loraprobe.front_matter import read_front_matter
from loraprobe.records import STEPS
from loraprobe.routing._saved import FILE
from loraprobe.secrets import map_texts, public_text

USER, PROJECT, TOKEN = "alice-of-acme", "merger with initech", "hf_" + "Zz9" * 8
SECRETS = (USER, "initech", TOKEN)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A user's folder with adapters of a base and a task in it, as they would be at home."""
    home = tmp_path / "home" / USER
    place = home / PROJECT
    world = shipped_world()
    scenario = world.scenario("disjoint")
    (place / "adapters").mkdir(parents=True)
    os.symlink(world.base, place / "base")
    for name, source in zip("ab", scenario.adapters.values(), strict=True):
        adapter = read_adapter(source)
        adapter.save(place / "adapters" / name)
        # What trainers leave there, of their machine and of another one.
        edit(
            place / "adapters" / name / "adapter_config.json",
            base_model_name_or_path=f"/home/{USER}/{PROJECT}/base",
            revision=f"/mnt/{USER}/x",
            megatron_core=f"~/{PROJECT}/core",
        )
        (place / "adapters" / name / "README.md").write_text(f"---\nlicense: {TOKEN}\n---\n")
    for task in scenario.tasks:
        lines = Path(task).read_text().splitlines()[:24]
        (place / "questions.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(place)
    return place


def published(monkeypatch, place: Path, *call: str) -> str:
    """The standard output of a call that also writes a page, if it can, and `out`."""
    page = ["--html", str(place / "page.html")] if known("--html") else []
    arguments = [*call, "--json", *page]
    monkeypatch.setattr(sys, "argv", ["loraprobe", *arguments])
    done = run(*arguments)
    assert done.exit_code in (0, 1, 3), done.output
    return done.stdout


def leaks(place: Path, stdout: str) -> list[str]:
    """The user's secrets that occur in published files."""
    written = [place / "page.html", *(place / "out").rglob("*")]
    assert written[0].is_file() or not known("--html")
    files = {str(file.relative_to(place)): file for file in written if file.is_file()}
    texts = {"standard output": stdout.encode()}
    texts |= {name: file.read_bytes() for name, file in files.items()}
    return [f"{name}: {s}" for name, text in texts.items() for s in SECRETS if s.encode() in text]


REFERENCES = {
    "relative": lambda place: ["./adapters/a", "b=adapters/b"],
    "absolute": lambda place: [f"a={place / 'adapters/a'}", str(place / "adapters" / "b")],
    "at home": lambda place: [f"~/{PROJECT}/adapters/a", f"b=~/{PROJECT}/adapters/b"],
}
COMMANDS = {
    "inspect": ("--base", "base"),
    "merge": ("-o", "out"),
    "route": ("-o", "out", "--base", "base"),
    "merge-and-eval": tuple(
        "-o out --base base --task questions.jsonl --limit 8 --system uniform --threads 1".split()
    ),
}


@pytest.mark.parametrize("how", REFERENCES)
@pytest.mark.parametrize("command", ["inspect", "merge", "route"])
def test_nothing_private_is_written(desk, monkeypatch, command, how):
    options = [
        str(desk / text) if how == "absolute" and text in ("out", "base") else text
        for text in COMMANDS[command]
    ]
    stdout = published(monkeypatch, desk, command, *REFERENCES[how](desk), *options)
    assert leaks(desk, stdout) == []
    document = json.loads(stdout)
    assert [row["reference"] for row in document["adapters"]] == ["a", "b"]
    assert {row["base_model"] for row in document["adapters"]} == {"base"}
    assert PROJECT not in stdout, "what is above the working directory is cut"
    codes = [issue["code"] for issue in document["compatibility"]["issues"]]
    assert codes.count("base-is-a-path") == 2


def test_commands_that_run_a_model_write_nothing_private(desk, monkeypatch):
    refs = REFERENCES["absolute"](desk)
    stdout = published(monkeypatch, desk, "merge-and-eval", *refs, *COMMANDS["merge-and-eval"])
    assert leaks(desk, stdout) == [] and json.loads(stdout)["verdict"]


@pytest.mark.needs("verify")
def test_written_directories_are_verified(desk, monkeypatch):
    """By the names and hashes of its sources, also from elsewhere."""
    published(monkeypatch, desk, "merge", *REFERENCES["relative"](desk), "-o", "out")
    config = json.loads((desk / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    matter = read_front_matter((desk / "out" / "README.md").read_text())
    assert [source["reference"] for source in matter["loraprobe"]["sources"]] == ["a", "b"]
    monkeypatch.chdir("/")
    os.rename(desk / "adapters", desk / "elsewhere")
    done = run("verify", desk / "out", "--json")
    assert done.exit_code == 0, done.output
    assert not any(secret in done.stdout for secret in SECRETS)
    os.rename(desk / "elsewhere" / "a", desk.parents[1] / "far")
    done = run("verify", desk / "out", "--json")
    assert done.exit_code == 3 and not any(secret in done.stdout for secret in SECRETS)
    assert run("verify", desk / "out", desk.parents[1] / "far", "--json").exit_code == 0


def test_a_header_of_an_expert_loses_its_texts(desk, monkeypatch):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = desk / "adapters" / "a" / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "output": f"/home/{USER}/x"})
    stdout = published(monkeypatch, desk, "route", *REFERENCES["relative"](desk), "-o", "out")
    assert leaks(desk, stdout) == []
    with safe_open(desk / "out/experts/a" / file.name, "pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    listed = json.loads((desk / "out" / FILE).read_text())["experts"]
    assert [entry["reference"] for entry in listed] == ["a", "b"]


@pytest.mark.parametrize(
    ("reference", "commit", "public"),
    [
        ("./out/a", None, "a"),
        ("out/a", None, "a"),
        ("/home/x/a/", None, "a"),
        ("~/a b/c", None, "c"),
        ("owner/name@v2:sub/folder", "0" * 40, "owner/name@v2:sub/folder"),
    ],
)
def test_references_are_published_by_name(reference, commit, public):
    assert Source(reference, Path("x"), commit).public == public


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("see /home/alice/project/base now.", "see base now."),
        ("(/srv/x/y)", "(y)"),
        ("base=/a/b/", "base=b"),
        ("~/x/y ~bob/z", "y z"),
        ("file:///home/al/x", "x"),
        ("C:\\Users\\al\\x", "x"),
        ("https://host/a/b", "https://host/a/b"),
        ("1/2/3, a / b", "1/2/3, a / b"),
        ("owner/name@v2:sub/dir", "owner/name@v2:sub/dir"),
        (r".*\.layers\.\d+\.q", r".*\.layers\.\d+\.q"),
        ("https://me:secret@host/x", "https://***@host/x"),
        ("hf_abcdefghij", "***"),
    ],
)
def test_texts_are_published_without_paths(text, public):
    assert public_text(text) == public


def test_a_text_that_does_not_change_keeps_its_type():
    part, path = map_texts((STEPS, "/home/al/x"), public_text)
    assert part.words == "step by step" and path == "x"


def test_known_paths_with_spaces_are_replaced_whole():
    assert public_text("in /a b/c d/e f.", {"/a b/c d/e f": "e f", "/a b": "x"}) == "in e f."


def test_no_card_has_an_alias(tmp_path):
    """Our own reader refuses them, so that our own writer must not make them."""
    refs, general = saved_pair(tmp_path), tmp_path / "g"
    random_adapter("g", seed=9).save(general)
    for command, options in (("merge", ["--subtract", general]), ("route", [])):
        done = run(command, *refs, "-o", tmp_path / command, *options)
        assert done.exit_code == 0, done.output
        front = (tmp_path / command / "README.md").read_text().split("---\n")[1]
        assert read_front_matter(f"---\n{front}---\n") == yaml.safe_load(front) != {}
