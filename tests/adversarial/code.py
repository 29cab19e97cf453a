"""Files of others that would be taken for code, or for the user's own command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import making
from loopback import server

from adversarial import call, case, cases, outcome, timed
from adversarial.errors import tiny, told


@case("config-of-a-report")
def _(place: Path) -> str:
    """A report whose command line replaces a directory of the user."""
    making.saved_pair(place)
    outcome("merge", place / "a", place / "b", "-o", place / "mine")
    before = (place / "mine" / "README.md").read_text()
    words = ["merge", place / "a", place / "b", "--weights", "1,1"]
    words = list(map(str, [*words, "-o", place / "mine", "--overwrite"]))
    (place / "r.json").write_text(json.dumps({"provenance": {"arguments": words}}))
    found = outcome("merge", "--config", place / "r.json")
    same = (place / "mine" / "README.md").read_text() == before
    return found if same else "the directory is replaced"


@case("config-of-trust")
def _(place: Path) -> str:
    making.saved_pair(place)
    (place / "c.yaml").write_text("trust-remote-code: true\n")
    return outcome("inspect", place / "a", place / "b", "--config", place / "c.yaml")


CONFIGS = {
    "server": "adapters: [{a}, {b}]\nbase: {base}\ntask: {task}\nengine: {url}\n",
    "words": "adapters: [{a}, {b}, --engine={url}]\nbase: {base}\ntask: {task}\n",
    "flag": "adapters: [{a}, {b}]\nbase: {base}\ntask: {task}\njson: --engine={url}\n",
}


@cases("config-of-a", CONFIGS)
def _(place: Path, text: str) -> str:
    """A server of somebody else gets the user's key."""
    tiny(place)
    with (
        server(lambda path, body: (500, b"")) as (url, seen),
        mock.patch.dict(os.environ, {"OPENAI_API_KEY": "sk-mine"}),
    ):
        task, config = place / "t.jsonl", place / "c.yaml"
        named = {"a": place / "a", "b": place / "b", "base": place / "base"}
        config.write_text(text.format(**named, task=task, url=url))
        found = told("inspect", "--config", config)
    return "the key is sent" if "Bearer sk-mine" in seen else found


BOMB = "".join(f"\n- &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 9)}]" for n in "bcdefghijkl")
YAMLS = {
    "aliases": f"task:\n- &a [x, x, x, x, x, x, x, x, x]{BOMB}\n",
    "twice": "seed: 1\nseed: 2\n",
}


@cases("config", YAMLS)
def _(place: Path, text: str) -> str:
    making.saved_pair(place)
    (place / "c.yaml").write_text(text)
    return timed(lambda: outcome("inspect", place / "a", "--config", place / "c.yaml"))


@case("report-twice")
def _(place: Path) -> str:
    """A saved report that two readers of JSON would read differently."""
    making.saved_pair(place)
    saved = call("inspect", place / "a", place / "b", "--json").stdout
    (place / "r.json").write_text('{"compatibility": null,' + saved.strip()[1:])
    return outcome("report", place / "r.json")


@case("config-pipe")
def _(place: Path) -> str:
    making.saved_pair(place)
    os.mkfifo(place / "c.yaml")
    line = [sys.executable, "-m", "loraprobe", "inspect", place / "a", "--config", place / "c.yaml"]
    try:
        return f"exit {subprocess.run(line, capture_output=True, timeout=30).returncode}"
    except subprocess.TimeoutExpired:
        return "waits without end"
