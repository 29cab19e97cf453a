"""Cases of hostile places of pages."""

import contextlib
from pathlib import Path

from adversarial import case, outcome
from adversarial.outputs import unharmed
from adversarial.resume import world
from making import saved_pair

PAGE = "reports.md"


@case("page-inside-a-source")
def _(place: Path) -> str:
    saved_pair(place)
    with contextlib.chdir(place):
        return unharmed(place, "inspect", "a", "b", "--html", "a/report.html")


@case("page-inside-the-base")
def _(place: Path) -> str:
    end = outcome(*world(place), "--html", place / "base" / "report.html")
    return "a verdict" if end in ("exit 0", "exit 1", "exit 3") else end


@case("page-with-a-long-name")
def _(place: Path) -> str:
    return outcome("inspect", *saved_pair(place), "--html", place / ("n" * 250 + ".html"))
