"""A verification on a terminal, in Python and as plain data."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from rich.console import Console

from loraprobe.adapters import local_name
from loraprobe.formatting import clean, count
from loraprobe.records import Check, Served, Verification
from loraprobe.report.answer import Answer
from loraprobe.report.layout import fitted
from loraprobe.report.phrases import FILL_IN
from loraprobe.report.table import Table, text
from loraprobe.report.terminal import print_answer
from loraprobe.secrets import public_text


def as_plain(found: Verification) -> dict[str, Any]:
    """The fields of the document: each check with whether it passed and what was seen."""
    checks = [
        Check(clean(check.name), check.passed, clean(public_text(check.message)))
        for check in found.checks
    ]
    place = clean(local_name(found.directory))
    return {"directory": place, "verified": found.passed, "checks": checks}


SOURCE_THEN = "REF: the place of each adapter that it was made of, as it was then"
BASE_THEN = "BASE: the place of the base that was used"
COLUMNS = (
    text("check"),
    replace(text("result"), styles={"^ok$": "green", "^failed$": "bold red"}),
    text("what was seen", prose=True),
)
RESULTS = {True: "ok", False: "failed", None: "cannot tell"}


def render(found: Verification) -> None:
    """A row a check, then the answer."""
    console = Console(highlight=False)
    lines = [[c.name, RESULTS[c.passed], c.message] for c in found.checks]
    console.print(fitted(Table(found.directory, COLUMNS, lines), console.width))
    console.print()
    print_answer(console, verification_answer(found))


def verification_answer(found: Verification) -> Answer:
    """Whether the directory is what its card says, what is not, and what to do next."""
    place = shlex.quote(found.directory)
    load = ("in Python", f"loraprobe.load_composition({found.directory!r}).into(model)")
    if found.passed:
        composed = any(check.name == "composition.json" for check in found.checks)
        next_ = load if composed else ("next", f"loraprobe inspect {place}")
        return Answer("verified", "VERIFIED: this is what its card describes.", (next_,))
    open_ = [check for check in found.checks if check.passed is found.passed]
    why = [("why", clean(f"{check.name}: {check.message}")) for check in open_[:2]]
    if found.passed is False:
        fix = "Get it again from its origin, or make it again; then verify it again."
        cure = [("fix", fix), ("next", f"loraprobe verify {place}")]
        headline = "NOT VERIFIED: do not use it as what its card says."
        return Answer("not verified", headline, (*why[:1], *cure))
    names = {check.name.partition(" ")[0] for check in open_}
    words, fill = [f"loraprobe verify {place}"], list[str]()
    if "source" in names:
        words, fill = [*words, "REF"], [SOURCE_THEN]
    if "base" in names:
        words, fill = [*words, "--base BASE"], [*fill, BASE_THEN]
    cure = [("next", " ".join(words)), *((FILL_IN, one) for one in fill)]
    headline = "CANNOT TELL whether this is what its card describes."
    return Answer("inconclusive", headline, (*why, *(cure if fill else [])))


class ShownVerification(Verification):
    """A verification whose repr is its answer, in at most twelve lines."""

    def __repr__(self) -> str:
        return str(verification_answer(self))


HEADLINES = {
    "adapter": "APPLIED: the server runs this adapter under the name {model}.",
    "base": "NOT APPLIED: under the name {model} the server answers as the base alone.",
    "another": "DIFFERENT: {model} is neither this adapter nor the base as they run here.",
    "unclear": "UNCLEAR: this adapter hardly changes the answers to these prompts.",
}
CURES = {
    "adapter": (),
    "base": (
        ("fix", "start the server with the adapter, and ask for it by its own name (--model)"),
        ("next", "loraprobe inspect {place} --serve all"),
    ),
    "another": (
        ("why", "a file that the server misreads, another base or adapter, or a quantised base"),
        ("next", "loraprobe inspect {place} --serve all"),
    ),
    "unclear": (("fix", "give prompts of what it was trained on: --probe FILE, one a line"),),
}


def render_served(found: Served, directory: str) -> None:
    """What a server serves, on a terminal."""
    print_answer(Console(highlight=False), served_answer(found, directory))


def served_answer(found: Served, directory: str) -> Answer:
    """Whether a server applies an adapter, by which figures, and what to do if it does not."""
    figures = (
        f"log-probabilities of the first token after {count(found.prompts, 'prompt')}: "
        f"{found.to_adapter:.3f} from the adapter here, {found.to_base:.3f} from the base; these "
        f"two are {found.between:.3f} apart"
    )
    place = shlex.quote(directory)
    cures = [(label, text.format(place=place)) for label, text in CURES[found.serves]]
    headline = clean(HEADLINES[found.serves].format(model=found.model))
    decision = {"adapter": "verified", "unclear": "inconclusive"}.get(found.serves, "not verified")
    return Answer(decision, headline, (("measured", figures), *cures))
