"""An audit with a library, and one with a short list too."""

import dataclasses

from audits import NOTHING, an_audit
from evidences import replaced

from loraprobe.extensions.screen.records import (
    Forecast,
    Library,
    LibraryAdapter,
    LibraryScore,
    Screened,
    Shortlisted,
)
from loraprobe.records import Audit, Issue


def a_library(name: str) -> Library:
    """An adapter of every state."""
    lost = Issue("error", "adapter", (name,), f"{name} is empty.", "Download it again.")
    far = Issue("warning", "norm-outlier", (name,), f"The norm of {name} is large.", "Look at it.")
    one = LibraryAdapter(
        name, name, None, "e" * 64, "gpt2", {"min": 8, "max": 8}, 2, 4096, 1.5, "usable", (far,)
    )
    one = dataclasses.replace(one, scores=(LibraryScore("t", "question", 0.5, 20),))
    rows = [
        dataclasses.replace(one, family=1, place=(x, 0.25), outlier=x > 0) for x in (-1.0, 0.0, 1.0)
    ]
    broken = dataclasses.replace(one, state="broken", issues=(lost,), norm=None, rank=None)
    copy = dataclasses.replace(one, state="duplicate", same_as=name)
    scaled = dataclasses.replace(rows[0], same_as=name)
    unfit = dataclasses.replace(broken, state="unfit")
    adapters = (*rows, scaled, broken, unfit, copy)
    return Library(adapters, 0.02, 0.5)


def a_screen(name: str = "a") -> Audit:
    """One of everything, with a library and a short list."""
    forecast = Forecast("sum", 0.1, (0.0, 0.2), 9)
    shortlist = (Shortlisted((name, "b"), "pair", 1, 3, forecast),)
    return replaced(an_audit(name), added=(Screened(a_library(name), shortlist),))


def library_audit(copies: int = 1, adapters: int = 7) -> Audit:
    """The audit of a library without a task."""
    library = a_library("an-adapter")
    rows = [
        replaced(row, name=f"{row.name}-{i}", family=row.family and i % 90 + 1)
        for i in range(copies)
        for row in library.adapters[:adapters]
    ]
    screened = Screened(replaced(library, adapters=tuple(rows)))
    nothing = {**NOTHING, "adapters": (), "diagnostics": (), "layers": (), "verdict": None}
    return replaced(an_audit(), **nothing, command="screen", added=(screened,))
