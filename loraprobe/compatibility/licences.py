"""What licences ask of somebody who publishes what is made of adapters.

A merge is derived from all of its sources and a composition contains them, so all of their licences
apply. Licence names are those of the Hub's cards. The issues repeat what the cards declare; they
are not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.records import Issue

NONCOMMERCIAL = re.compile(r"(^|[-_ ])(nc|non-?commercial|research)($|[-_ ])")
# Finding -> the licences that it is about, and what they require.
TERMS = {
    "licence-noncommercial": (
        NONCOMMERCIAL,
        "forbids commercial use, also of what is made of it.",
    ),
    "licence-no-derivatives": (
        re.compile(r"(^|[-_ ])nd($|[-_ ])"),
        "forbids sharing what is derived from it.",
    ),
    "licence-conflict": (
        re.compile(r"(^|[-_ ])(a?gpl|lgpl|sa|eupl|osl)($|[-_ ])"),
        "requires the same licence for what is derived from it, which the other sources' licences "
        "may not allow.",
    ),
    "licence-terms": (
        re.compile(r"^(llama|gemma|other|.*openrail|.*-?research|bigscience-|deepseek|qwen)"),
        "has terms of its own, which also apply to the result.",
    ),
}


def licence_issues(
    licences: Mapping[str, str | None], gated: Sequence[str] = ()
) -> Iterator[Issue]:
    """Issues about licences: name of a source -> licence in its card, None if there is none.

    gated: the names of sources whose card requires consent before a download.
    """
    unknown = [name for name, licence in licences.items() if not licence]
    declared = {name: licence.lower() for name, licence in licences.items() if licence}
    if unknown:
        yield finding(
            "licence-unknown",
            tuple(unknown),
            f"No licence is declared by {listing(unknown)}: nobody may share a derived work.",
        )
    for code, (pattern, requirement) in TERMS.items():
        concerned = {name: licence for name, licence in declared.items() if pattern.search(licence)}
        if code == "licence-terms":  # those that forbid commercial use have been told
            concerned = {
                n: licence for n, licence in concerned.items() if not NONCOMMERCIAL.search(licence)
            }
        alone = len(set(declared.values())) == 1 and not unknown
        if concerned and not (code == "licence-conflict" and alone):
            listed = listing(f"{name} ({licence})" for name, licence in concerned.items())
            yield finding(code, tuple(concerned), f"{listed} {requirement}")
    if gated:
        yield finding(
            "licence-gated",
            tuple(gated),
            f"The repository of {listing(gated)} is gated: a download requires acceptance of "
            "its terms, which also apply to users of the result.",
        )


def licence_of_merge(licences: Mapping[str, str | None]) -> str | None:
    """The licence for a merge's card: the one that all sources declare, else "other"."""
    declared = set(licences.values())
    if not declared or declared == {None}:
        return None
    return declared.pop() if len(declared) == 1 else "other"
