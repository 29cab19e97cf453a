"""Outputs that would replace a source, links as outputs, and places that cannot be written."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import making
from making import saved_pair

from adversarial import call, case, cases, ended, outcome
from adversarial.resume import world


def files(place: Path) -> dict[str, object]:
    """Every file below a directory with its content, every link with its target."""
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def unharmed(place: Path, *arguments: object) -> str:
    """The outcome of a call, and whether the files are still exactly those from before."""
    before = files(place)
    ended = outcome(*arguments)
    after = files(place)
    lost = [name for name, content in before.items() if after.get(name) != content]
    new = [name for name in after if name not in before]
    return ended + (", a source is lost" if lost else ", files are left" if new else "")


def linked(place: Path) -> Path:
    """A link to the adapter a."""
    (place / "link").symlink_to("a")
    return place / "link"


SAME: dict[str, Callable[[Path], object]] = {
    "is-a-source": lambda place: place / "a",
    "is-a-source-slash": lambda place: f"{place / 'a'}/",
    "is-a-source-dotted": lambda place: f"{place}/./b/../a",
    "is-a-link-to-a-source": linked,
    "inside-a-source": lambda place: place / "a" / "sub",
    "holds-the-sources": lambda place: place,
}


@cases("output", SAME)
def _(place: Path, where: Callable[[Path], object]) -> str:
    return unharmed(place, "merge", *saved_pair(place), "-o", where(place), "--overwrite")


@case("output-is-a-source-given-by-a-link")
def _(place: Path) -> str:
    a, b = saved_pair(place)
    return unharmed(place, "merge", linked(place), b, "-o", a, "--overwrite")


def general(place: Path) -> list[object]:
    """A merge that would be written over what is subtracted."""
    making.random_adapter("c", seed=3).save(place / "c")
    return ["merge", "a", "b", "--subtract", "c", "-o", "c", "--overwrite"]


OVER: dict[str, Callable[[Path], list[object]]] = {
    "route-over-a-source": lambda place: ["route", "a", "b", "-o", "a", "--overwrite"],
    "output-is-what-is-subtracted": general,
}


@cases("", OVER)
def _(place: Path, words: Callable[[Path], list[object]]) -> str:
    saved_pair(place)
    with contextlib.chdir(place):
        return unharmed(place, *words(place))


@case("output-is-a-source-relative")
def _(place: Path) -> str:
    saved_pair(place)
    with contextlib.chdir(place / "a"):
        return unharmed(place, "merge", "../a", "../b", "-o", ".", "--overwrite")


@case("route-over-its-own-experts")
def _(place: Path) -> str:
    outcome("route", *saved_pair(place), "-o", place / "out")
    experts = [place / "out" / "experts" / name for name in "ab"]
    return unharmed(
        place, "route", *experts, "--router", "arrow:top_k=1", "-o", place / "out", "--overwrite"
    )


@case("output-inside-the-base")
def _(place: Path) -> str:
    arguments = world(place)
    end = outcome(*arguments, "-o", place / "base" / "out")
    return "a verdict" if end in ("exit 0", "exit 1", "exit 3") else end


@case("api-save-over-a-source")
def _(place: Path) -> str:
    import loraprobe

    a, b = saved_pair(place)
    before = files(place)
    try:
        loraprobe.merge([a, b]).save(a, overwrite=True)
    except Exception as error:
        return type(error).__name__
    return "a source is lost" if files(place) != before else "nothing"


def state(place: Path, link: Path) -> str:
    """The state of a link after a call, and whether the directory holds anything else."""
    stray = [entry.name for entry in place.iterdir() if entry.name.startswith(".")]
    kept = "the link stays" if link.is_symlink() else "the link is gone"
    return kept + (", a stray is left" if stray else "")


@case("output-is-a-link-to-a-directory")
def _(place: Path) -> str:
    outcome("merge", *saved_pair(place), "-o", place / "real")
    link = place / "link"
    link.symlink_to("real")
    ended = outcome("merge", place / "a", place / "b", "-o", link, "--overwrite")
    return f"{ended}, {state(place, link)}"


@case("output-is-a-broken-link")
def _(place: Path) -> str:
    link = place / "link"
    link.symlink_to("nowhere")
    ended = outcome("merge", *saved_pair(place), "-o", link)
    return f"{ended}, {state(place, link)}"


@case("output-through-a-link-and-back")
def _(place: Path) -> str:
    refs = saved_pair(place)
    (place / "far" / "inner").mkdir(parents=True)
    (place / "link").symlink_to("far/inner")
    ended = outcome("merge", *refs, "-o", f"{place}/link/../out")
    there = (place / "far" / "out").is_dir()
    return f"{ended}, {'where the system puts it' if there else 'beside the link'}"


@case("output-with-a-long-name")
def _(place: Path) -> str:
    return outcome("merge", *saved_pair(place), "-o", place / ("n" * 255))


UNWRITABLE: dict[str, Callable[[Path], Path]] = {
    "name-too-long": lambda place: place / ("n" * 256),
    "below-a-file": lambda place: place / "a" / "README.md" / "out",
}


@cases("output", UNWRITABLE)
def _(place: Path, where: Callable[[Path], Path]) -> str:
    refs = saved_pair(place)
    (place / "a" / "README.md").write_text("x")
    (place / "b" / "adapter_model.safetensors").write_bytes(b"broken")
    result = call("merge", *refs, "-o", where(place))
    read = "broken" in result.stderr
    return f"{ended(result)}, {'after the adapters were' if read else 'before anything is'} read"
