"""The extension in examples/extension, which somebody else may have written, installed and used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import making
import pytest

from loraprobe import errors, formatting, wiring
from loraprobe.extension import Extension

ROOT = Path(__file__).parents[2]
SETUP = "from site import getsitepackages as found; print(found()[0])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment that has the packages of this one and the extension."""
    home = tmp_path_factory.mktemp("stranger")
    shutil.copytree(ROOT / "examples" / "extension", home / "source")
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv")
    python = home / "venv" / "bin" / "python"
    place = Path(run(python, "-c", SETUP).strip())
    (place / "with_these.pth").write_text("\n".join([str(ROOT), run(sys.executable, "-c", SETUP)]))
    given = "--quiet --no-deps --no-build-isolation --disable-pip-version-check".split()
    run(sys.executable, "-m", "pip", "--python", python, "install", *given, home / "source")
    return python


def run(*words, **rest):
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [*map(str, words)], env=environment, capture_output=True, text=True, **rest
    )
    assert done.returncode in (0, 1, 3), done.stderr
    return done.stdout


def test_a_task_source_and_an_engine_of_a_stranger(installed, tmp_path):
    one, other, *rest = making.shipped("skill-and-facts")
    base = rest[rest.index("--base") + 1]
    right = {"base": (), "newcomers": range(10), "steps": range(5), "sum": range(36)}
    rows = [
        {"system": name, "prompt": f"Question {at}?", "answer": "bo"}
        | {"reply": "bo" if at in known else "al"}
        for name, known in right.items()
        for at in range(40)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = "--method sum --router none --all-items --json --quiet --exit-zero".split()
    asked = ["--task", "replies:r.jsonl", "--replies", "r.jsonl", "--base", base]
    call = [installed, "-m", "loraprobe", "merge-and-eval", one, other, *asked, *options]
    found = json.loads(run(*call, cwd=tmp_path))
    scores = {row["system"]: row["value"] for row in found["evaluation"]}
    assert {name: scores[name] for name in right} == {
        "base": 0,
        "newcomers": 0.25,
        "steps": 0.125,
        "sum": 0.9,
    }
    assert found["provenance"]["engine"] == "recorded replies"
    assert found["verdict"]["system"] == "sum"
    shown = run(installed, "-m", "loraprobe", "merge-and-eval", "--help")
    assert "Replies" in shown and "replies:FILE" in shown
    # what is wrong with a file of the stranger's, and with the stranger's code
    place = [installed, "-m", "loraprobe", "merge-and-eval", one, other, "--base", base]
    asked[1] = "replies:nowhere.jsonl"
    wrong = subprocess.run([*place, *asked[:4]], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "nowhere.jsonl has no recorded replies" in wrong.stderr


def test_a_defect_is_that_of_the_innermost_frame_of_an_extension(monkeypatch):
    """Also where it calls what is of loraprobe; else it is loraprobe's."""
    monkeypatch.setitem(errors.PACKAGES, "stranger", "the package strange-things")
    theirs: dict = {"__name__": "stranger.tasks", "call": formatting.listing}
    exec("def read():\n    return call([1])\ndef fail():\n    raise KeyError('x')", theirs)
    for name in ("read", "fail"):
        try:
            theirs[name]()
        except Exception as error:
            told = str(errors.reported(error))
        assert "in stranger.tasks, line" in told and "defect of the package strange-things" in told
    try:
        formatting.listing([1])
    except Exception as error:
        assert "defect of loraprobe:" in str(errors.reported(error))


def test_an_extension_of_another_package_is_known_by_it(monkeypatch):
    one = SimpleNamespace(
        name="x",
        value="things.inner:EXTENSION",
        dist=SimpleNamespace(name="my-things"),
        load=Extension,
    )
    monkeypatch.setattr(wiring, "entry_points", lambda group: [one])
    monkeypatch.setattr(wiring, "PACKAGES", (known := {}))
    wiring.extensions.__wrapped__()
    assert known == {"things": "the package my-things"}


def test_an_extension_that_cannot_be_loaded_is_left_out_and_named(tmp_path):
    place = tmp_path / "broken-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text("[loraprobe.extensions]\nbroken = nowhere:EXTENSION\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "loraprobe", "--help"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "merge-and-eval" in done.stdout
    assert "broken-package" in done.stderr and "Traceback" not in done.stderr
