"""Reports what the licences of the sources require. Licence names are those of the Hub's cards.

A merge is derived from all of its sources and a composition contains them, so all of their licences
apply. The issues repeat what the cards declare; they are not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.records import Issue

NONCOMMERCIAL = re.compile(r"(^|[-_ ])(nc|non-?commercial|research)($|[-_ ])")
NO_DERIVATIVES = re.compile(r"(^|[-_ ])nd($|[-_ ])")
SHARE_ALIKE = re.compile(r"(^|[-_ ])(a?gpl|lgpl|sa|eupl|osl)($|[-_ ])")
OWN_TERMS = re.compile(r"^(llama|gemma|other|.*openrail|.*-?research|bigscience-|deepseek|qwen)")


def licence_issues(
    licences: Mapping[str, str | None], gated: Sequence[str] = ()
) -> Iterator[Issue]:
    """Issues about licences: name of a source -> licence in its card, None if there is none.

    gated: the names of sources whose card requires consent before a download.
    """
    unknown = [name for name, licence in licences.items() if not licence]
    declared = {name: licence.lower() for name, licence in licences.items() if licence}
    if unknown:
        message = f"No licence is declared by {listing(unknown)}: nobody may share a derived work."
        yield finding("licence-unknown", tuple(unknown), message)
    if found := _matching(declared, NONCOMMERCIAL):
        message = f"{_listed(found)} forbids commercial use, also of what is made of it."
        yield finding("licence-noncommercial", tuple(found), message)
    if found := _matching(declared, NO_DERIVATIVES):
        message = f"{_listed(found)} forbids sharing what is derived from it."
        yield finding("licence-no-derivatives", tuple(found), message)
    found = _matching(declared, SHARE_ALIKE)
    if found and (len(set(declared.values())) > 1 or unknown):
        message = (
            f"{_listed(found)} requires the same licence for what is derived from it, which the "
            "other sources' licences may not allow."
        )
        yield finding("licence-conflict", tuple(found), message)
    own = {n: x for n, x in declared.items() if OWN_TERMS.search(x) and not NONCOMMERCIAL.search(x)}
    if own:
        message = f"{_listed(own)} has terms of its own, which also apply to the result."
        yield finding("licence-terms", tuple(own), message)
    if gated:
        message = (
            f"The repository of {listing(list(gated))} is gated: a download requires acceptance of "
            "its terms, which also apply to users of the result."
        )
        yield finding("licence-gated", tuple(gated), message)


def licence_of_merge(licences: Mapping[str, str | None]) -> str | None:
    """The licence for a merge's card: the one that all sources declare, else "other"."""
    found = set(licences.values())
    if not found or found == {None}:
        return None
    return found.pop() if len(found) == 1 else "other"


def _matching(declared: Mapping[str, str], pattern: re.Pattern[str]) -> dict[str, str]:
    return {name: licence for name, licence in declared.items() if pattern.search(licence)}


def _listed(found: Mapping[str, str]) -> str:
    return listing([f"{name} ({licence})" for name, licence in found.items()])
