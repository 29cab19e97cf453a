"""Published files: they hold no private path, and strangers' cards and strings cannot harm them."""

import os
import resource
from pathlib import Path
from unittest import mock

import making

from adversarial import call, case, outcome, timed
from adversarial.errors import tiny
from adversarial.reading import adapter
from adversarial.resume import cached, world

USER, SECRET = "alice-of-acme", "hunter2"
PLANTED = '<img src=x onerror=alert(1)> **b** [x](http://e.vil) http://e.vil "><script>'
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join([f'*{before}'] * 9)}]\n"
    for before, here in zip("abcdefghi", "bcdefghij", strict=True)
)


def leaks(*texts: bytes) -> str:
    found = sum(USER.encode() in text for text in texts)
    return "holds the path" if found else "no path"


@case("markup-in-a-card")
def _(place: Path) -> str:
    from markdown_it import MarkdownIt

    refs = making.saved_pair(place)
    odd = place / PLANTED.replace("/", ":")
    os.rename(refs[1], odd)
    options = ("--weights", "1,-1", "--method", "task_arithmetic")
    outcome("merge", refs[0], odd, "-o", place / "out", *options)
    text = (place / "out" / "README.md").read_text().split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inside = [part.type for token in tokens for part in token.children or ()]
    marks = [t for t in inside if t in ("strong_open", "em_open", "link_open", "html_inline")]
    return f"{len(marks)} links or tags" if marks else "no markup"


def limited(*call: object) -> str:
    """The outcome of a call that may take two more gigabytes of address space."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    try:
        return timed(lambda: outcome(*call))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@case("alias-bomb-in-a-source's-card")
def _(place: Path) -> str:
    refs = making.saved_pair(place)
    (refs[0] / "README.md").write_text(f"---\n{BOMB}license: *j\n---\n")
    return limited("merge", *refs, "-o", place / "out")


@case("defect-path")
def _(place: Path) -> str:
    adapter(place)
    bad = ValueError(f"cannot read {place}/{USER}/x.json")
    with mock.patch("loraprobe.pipeline.commands.inspect", side_effect=bad):
        error = call("--debug", "inspect", place / "a").stderr
    assert "defect" in error and "Traceback" in error
    return "holds the path" if USER in error or 'File "/' in error else "no path"


# What is written for others to read.
@case("path-in-an-error-document")
def _(place: Path) -> str:
    home = place / f"{USER} x"
    home.mkdir()
    directory = adapter(home)
    (directory / "adapter_config.json").write_text("{")
    return leaks(call("inspect", directory, "--json").stdout.encode())


@case("path-in-kept-results")
def _(place: Path) -> str:
    home = place / USER
    home.mkdir()
    arguments = world(home)
    making.edit(home / "a" / "adapter_config.json", base_model_name_or_path=str(home / "base"))
    cached(home, arguments)
    kept = [file for file in (home / "cache").rglob("*") if file.is_file()]
    assert kept
    return leaks(*(file.read_bytes() for file in kept))


ADDRESSES = (
    f"https://{USER}:{SECRET}/x@example.org/a",
    f"https://{USER}:{SECRET}@x@example.org/a",
    f"https://example.org/a?token={SECRET}",
    f"https://{USER}:{SECRET}@example.org/a",
)


@case("password-in-an-address")
def _(place: Path) -> str:
    tiny(place)
    shown = []
    for address in ADDRESSES:
        for words in (
            ("inspect", address),
            ("inspect", place / "a", "--base", address),
            ("inspect", place / "a", "--task", address),
            ("report", address),
            ("find", address),
            ("merge", place / "a", "--config", address),
        ):
            result = call(*words, "--json", env={"HF_HUB_OFFLINE": "1"})
            shown += [words] if SECRET in result.output else []
    return "printed" if shown else "never printed"
