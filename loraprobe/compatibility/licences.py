"""What the licences of sources ask of what is made of them. Names are those of the Hub's cards.

A merge is derived from all of its sources and a composition holds them, so each is bound by all of
their licences. This says what a card declares; it is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from loraprobe.formatting import listing
from loraprobe.records import Issue

NONCOMMERCIAL = re.compile(r"(^|[-_ ])(nc|non-?commercial|research)($|[-_ ])")
NO_DERIVATIVES = re.compile(r"(^|[-_ ])nd($|[-_ ])")
SHARE_ALIKE = re.compile(r"(^|[-_ ])(a?gpl|lgpl|sa|eupl|osl)($|[-_ ])")
OWN_TERMS = re.compile(r"^(llama|gemma|other|.*openrail|.*-?research|bigscience-|deepseek|qwen)")


def licence_issues(
    licences: Mapping[str, str | None], gated: Sequence[str] = ()
) -> Iterator[Issue]:
    """Findings about source name -> licence as its card gives it, None where it gives none.

    gated: names of those whose card asks for consent before a download.
    """
    unknown = [name for name, licence in licences.items() if not licence]
    said = {name: licence.lower() for name, licence in licences.items() if licence}
    if unknown:
        message = (
            f"No licence is declared by {listing(unknown)}, which by itself gives no right to "
            "share what is made of it."
        )
        cure = "Ask its author."
        yield Issue("note", "licence-unknown", tuple(unknown), message, cure)
    yield from _asking(
        said,
        NONCOMMERCIAL,
        "licence-noncommercial",
        "forbids commercial use, also of what is made of it",
        "Keep the result out of products, or leave that source out.",
    )
    yield from _asking(
        said,
        NO_DERIVATIVES,
        "licence-no-derivatives",
        "forbids sharing what is derived from it",
        "Keep the result to yourself, or leave that source out.",
    )
    yield from _share_alike(said, unknown)
    own = {n: x for n, x in said.items() if OWN_TERMS.search(x) and not NONCOMMERCIAL.search(x)}
    if own:
        message = f"{_listed(own)} comes with terms of its own, which the result inherits."
        cure = "Read them before sharing it."
        yield Issue("note", "licence-terms", tuple(own), message, cure)
    if gated:
        message = (
            f"The repository of {listing(list(gated))} is gated: it is had by those alone who "
            "accept its terms, which bind whoever uses the result too."
        )
        cure = "Point to those terms where the result is shared."
        yield Issue("note", "licence-gated", tuple(gated), message, cure)


def licence_of_merge(licences: Mapping[str, str | None]) -> str | None:
    """What the merge's card declares: the one licence that all sources declare, else "other"."""
    found = set(licences.values())
    if not found or found == {None}:
        return None
    return found.pop() if len(found) == 1 else "other"


def _asking(
    said: Mapping[str, str], pattern: re.Pattern[str], code: str, what: str, cure: str
) -> Iterator[Issue]:
    """One warning for all sources whose licence matches."""
    found = {name: licence for name, licence in said.items() if pattern.search(licence)}
    if found:
        yield Issue("warning", code, tuple(found), f"{_listed(found)} {what}.", cure)


def _share_alike(said: Mapping[str, str], unknown: list[str]) -> Iterator[Issue]:
    found = {name: licence for name, licence in said.items() if SHARE_ALIKE.search(licence)}
    if found and (len(set(said.values())) > 1 or unknown):
        message = (
            f"{_listed(found)} asks that what is derived from it bears the same licence, which the "
            "other sources' need not allow."
        )
        cure = "Check that the licences go together, or take sources of one licence."
        yield Issue("warning", "licence-conflict", tuple(found), message, cure)


def _listed(found: Mapping[str, str]) -> str:
    return listing([f"{name} ({licence})" for name, licence in found.items()])
