"""Outputs that would replace a source, links as outputs, and places that cannot be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import making
from making import saved_pair

from adversarial import case, outcome
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


@contextlib.contextmanager
def inside(place: Path) -> Iterator[None]:
    """The process in another directory for a while."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def linked(place: Path) -> Path:
    """A link to the adapter a."""
    (place / "link").symlink_to("a")
    return place / "link"


SAME: dict[str, tuple[str, Callable[[Path], object]]] = {
    "output-is-a-source": ("`-o a`", lambda place: place / "a"),
    "output-is-a-source-slash": ("`-o a/`", lambda place: f"{place / 'a'}/"),
    "output-is-a-source-dotted": ("`-o ./b/../a`", lambda place: f"{place}/./b/../a"),
    "output-is-a-link-to-a-source": ("`-o LINK`, a link to a", linked),
    "output-inside-a-source": ("`-o a/sub`", lambda place: place / "a" / "sub"),
    "output-holds-the-sources": ("`-o .` in the directory that holds a and b", lambda place: place),
}
for name, (what, where) in SAME.items():

    @case(
        name,
        f"`merge a b --overwrite` with {what}",
        before={
            "output-inside-a-source": "exit 0, files are left",
            "output-holds-the-sources": "exit 2",
        }.get(name, "exit 0, a source is lost"),
        now="exit 2",
    )
    def merge_over(place: Path, where: Callable[[Path], object] = where) -> str:
        return unharmed(place, "merge", *saved_pair(place), "-o", where(place), "--overwrite")


@case(
    "output-is-a-source-given-by-a-link",
    "`merge LINK b -o a --overwrite`, LINK a link to a",
    before="exit 0, a source is lost",
    now="exit 2",
)
def source_by_link(place: Path) -> str:
    a, b = saved_pair(place)
    return unharmed(place, "merge", linked(place), b, "-o", a, "--overwrite")


@case(
    "output-is-a-source-relative",
    "`merge ../a ../b -o . --overwrite` inside a",
    before="exit 0, a source is lost",
    now="exit 2",
)
def relative(place: Path) -> str:
    saved_pair(place)
    with inside(place / "a"):
        return unharmed(place, "merge", "../a", "../b", "-o", ".", "--overwrite")


@case(
    "route-over-a-source",
    "`route a b -o a --overwrite`",
    before="exit 0, a source is lost",
    now="exit 2",
)
def route_over(place: Path) -> str:
    a, b = saved_pair(place)
    return unharmed(place, "route", a, b, "-o", a, "--overwrite")


@case(
    "route-over-its-own-experts",
    "`route out/experts/a out/experts/b -o out --overwrite` of a composition `out`",
    before="exit 0, a source is lost",
    now="exit 2",
)
def route_again(place: Path) -> str:
    outcome("route", *saved_pair(place), "-o", place / "out")
    experts = [place / "out" / "experts" / name for name in "ab"]
    return unharmed(
        place, "route", *experts, "--router", "arrow:top_k=1", "-o", place / "out", "--overwrite"
    )


@case(
    "output-is-what-is-subtracted",
    "`merge a b --subtract c -o c --overwrite`",
    before="exit 0, a source is lost",
    now="exit 2",
)
def over_subtracted(place: Path) -> str:
    making.random_adapter("c", seed=3).save(place / "c")
    c = place / "c"
    return unharmed(place, "merge", *saved_pair(place), "--subtract", c, "-o", c, "--overwrite")


@case(
    "output-inside-the-base",
    "`merge-and-eval ... -o BASE/out`, and `--html BASE/report.html`",
    before="a verdict, a verdict",
    now="exit 2, exit 2",
)
def inside_base(place: Path) -> str:
    arguments = world(place)
    os.environ["LORAPROBE_CACHE"] = str(place / "cache")
    try:
        ended = [
            outcome(*arguments, *more)
            for more in (
                ("-o", place / "base" / "out"),
                ("--html", place / "base" / "report.html"),
            )
        ]
    finally:
        del os.environ["LORAPROBE_CACHE"]
    return ", ".join("a verdict" if end in ("exit 0", "exit 1", "exit 3") else end for end in ended)


@case(
    "page-inside-a-source",
    "`inspect a b --html a/report.html`",
    before="exit 0, files are left",
    now="exit 2",
)
def page_inside(place: Path) -> str:
    a, b = saved_pair(place)
    return unharmed(place, "inspect", a, b, "--html", a / "report.html")


@case(
    "api-save-over-a-source",
    '`loraprobe.merge(["a", "b"]).save("a", overwrite=True)`',
    before="a source is lost",
    now="OutputError",
)
def api_over(place: Path) -> str:
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


@case(
    "output-is-a-link-to-a-directory",
    "`merge a b -o LINK --overwrite`, LINK a link to an old output",
    before="exit 0, the link is gone, a stray is left",
    now="exit 0, the link stays",
)
def over_link(place: Path) -> str:
    outcome("merge", *saved_pair(place), "-o", place / "real")
    link = place / "link"
    link.symlink_to("real")
    ended = outcome("merge", place / "a", place / "b", "-o", link, "--overwrite")
    return f"{ended}, {state(place, link)}"


@case(
    "output-is-a-broken-link",
    "`merge a b -o LINK`, LINK a link to nothing",
    before="exit 2, the link stays",
    now="exit 2, the link stays",
)
def over_broken(place: Path) -> str:
    link = place / "link"
    link.symlink_to("nowhere")
    ended = outcome("merge", *saved_pair(place), "-o", link)
    return f"{ended}, {state(place, link)}"


@case(
    "output-through-a-link-and-back",
    "`merge a b -o LINK/../out`, LINK a link into another directory",
    before="exit 0, beside the link",
    now="exit 0, where the system puts it",
)
def through_link(place: Path) -> str:
    refs = saved_pair(place)
    (place / "far" / "inner").mkdir(parents=True)
    (place / "link").symlink_to("far/inner")
    ended = outcome("merge", *refs, "-o", f"{place}/link/../out")
    there = (place / "far" / "out").is_dir()
    return f"{ended}, {'where the system puts it' if there else 'beside the link'}"


@case(
    "output-with-a-long-name",
    "`merge a b -o NAME`, NAME of 255 bytes, the longest that the file system takes",
    before="exit 2",
    now="exit 0",
)
def long_name(place: Path) -> str:
    return outcome("merge", *saved_pair(place), "-o", place / ("n" * 255))


@case(
    "page-with-a-long-name",
    "`inspect a b --html NAME`, NAME of 255 bytes",
    before="exit 2",
    now="exit 0",
)
def long_page(place: Path) -> str:
    return outcome("inspect", *saved_pair(place), "--html", place / ("n" * 250 + ".html"))


UNWRITABLE: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "name-too-long": ("a name of 256 bytes", lambda place: place / ("n" * 256)),
    "below-a-file": ("a path below a file", lambda place: place / "a" / "README.md" / "out"),
}
for name, (what, where) in UNWRITABLE.items():

    @case(
        f"output-{name}",
        f"`merge a b -o OUT`, OUT {what}",
        before="exit 2, after the adapters were read",
        now="exit 2, before anything is read",
    )
    def told(place: Path, where: Callable[[Path], Path] = where) -> str:
        refs = saved_pair(place)
        (place / "a" / "README.md").write_text("x")
        (place / "b" / "adapter_model.safetensors").write_bytes(b"broken")
        from typer.testing import CliRunner

        from loraprobe.cli import app

        result = CliRunner().invoke(app, ["merge", *map(str, refs), "-o", str(where(place))])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return f"traceback {type(result.exception).__name__}"
        read = "broken" in result.stderr
        when = "after the adapters were read" if read else "before anything is read"
        return f"exit {result.exit_code}, {when}"
