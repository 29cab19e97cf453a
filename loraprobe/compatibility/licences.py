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
# The identifiers that the Hub knows (hf.co/docs/hub/repositories-licenses), without "unknown".
KNOWN = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 "
    "postgresql ofl-1.1 ncsa unlicense zlib pddl deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma other".split()
)
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
            f"No licence is declared by {listing(unknown)}: ask before you share what is made of "
            f"{'it' if len(unknown) == 1 else 'them'}.",
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
    declared = {licence and known_licence(licence) for licence in licences.values()}
    if not declared or declared == {None}:
        return None
    return declared.pop() if len(declared) == 1 else "other"


def known_licence(licence: str) -> str:
    """A licence by its identifier on the Hub; "other" for any other text."""
    return licence.lower() if licence.lower() in KNOWN else "other"
