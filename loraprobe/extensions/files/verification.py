"""What `verify` found, as an answer and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraprobe.adapters import local_name
from loraprobe.extensions.files import FullModel
from loraprobe.formatting import clean
from loraprobe.records import Command
from loraprobe.report.parts import TERMINAL, Answer, Line, Section, Table, text
from loraprobe.routing._saved import Routed
from loraprobe.secrets import map_texts, public_text

MISSING = {  # what was not found -> what has to be filled in
    "source": "REF: the place of each adapter that it was made of, as it was then",
    "base": "BASE: the place of the base that was used",
    "prompts": "FILE: the place of each file of prompts that is named above",
}
COLUMNS = (
    text("check"),
    text("result"),
    text("what was seen", prose=True),
)
LOADED = {"composition.json": Routed.load, "config.json": FullModel.load}  # by a file
RESULTS = {True: "ok", False: "failed", None: "cannot tell"}


@dataclass(frozen=True)
class Check:
    """One check of a merged or routed directory: whether it passed, and what was found.

    passed: None where it cannot be told, such as for a source that was not found. checked: whether
    all of a file was compared; the text of a card is free.
    """

    name: str
    passed: bool | None
    message: str
    checked: bool = True


@dataclass(frozen=True, repr=False)
class Verification:
    """All checks of one merged directory (`loraprobe verify`), and what was given for them."""

    directory: str
    checks: tuple[Check, ...]
    sources: tuple[str, ...] = ()
    base: str | None = None

    @property
    def passed(self) -> bool | None:
        """Whether everything holds; None where nothing differs and something cannot be told."""
        found = {check.passed for check in self.checks}
        return False if False in found else None if None in found else True

    def __repr__(self) -> str:
        return str(verification_answer(self))


def as_plain(verification: Verification) -> dict[str, Any]:
    """The fields of the document: each check with whether it passed and what was seen."""
    place = clean(local_name(verification.directory))
    checks = map_texts(verification.checks, lambda text: clean(public_text(text)))
    return {"directory": place, "verified": verification.passed, "checks": checks}


def verification_sections(verification: Verification) -> list[Section]:
    """The answer, and a row a check."""
    answer = verification_answer(verification)
    lines = [
        [c.name, RESULTS[c.passed] if c.checked else "not checked", c.message]
        for c in verification.checks
    ]
    return [
        Section("verdict", "Verdict", [(TERMINAL, answer)], concludes=True),
        Section("checks", "Checks", [(TERMINAL, Table(verification.directory, COLUMNS, lines))]),
    ]


def verification_answer(verification: Verification) -> Answer:
    """Whether the directory is what its card says, what is not, and what to do next."""
    place = verification.directory
    if verification.passed:
        loads = (LOADED[check.name] for check in verification.checks if check.name in LOADED)
        load = next(loads, "")
        step = Command("python" if load else "inspect", (place,), text=load)
        label = "in Python" if step.in_python else "next"
        return Answer("verified", "VERIFIED: this is what its card describes.", ((label, step),))
    given, base = (place, *verification.sources), verification.base
    open_ = [check for check in verification.checks if check.passed is verification.passed]
    why: list[Line] = [("why", f"{check.name}: {check.message}") for check in open_[:2]]
    if verification.passed is False:
        fix = "Get it again from its origin, or make it again; then verify it again."
        headline = "NOT VERIFIED: do not use it as what its card says."
        again = ("next", Command("verify", given, (("--base", base),) if base else ()))
        return Answer("not verified", headline, (*why[:1], ("fix", fix), again))
    names = {check.name.partition(" ")[0] for check in open_}
    fill: list[Line] = [("fill in", text) for name, text in MISSING.items() if name in names]
    if fill:
        places = {"source": "REF", "prompts": "FILE"}
        adapters = (*given, *(word for name, word in places.items() if name in names))
        base = "BASE" if "base" in names else base
        options = (("--base", base),) if base else ()
        why += [("next", Command("verify", adapters, options)), *fill]
    return Answer(
        "inconclusive", "CANNOT TELL whether this is what its card describes.", tuple(why)
    )
