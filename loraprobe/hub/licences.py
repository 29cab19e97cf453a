"""What a model card declares in its front matter: a licence, and terms to accept first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

LONGEST = 100  # characters of a licence's name that are kept


def declared_licence(card: str | None) -> str | None:
    """`license`, or `license_name` where that says "other"; None where the card says nothing.

    The front matter is read by a YAML library that builds plain data only.
    """
    matter = _front_matter(card)
    licence, name = matter.get("license"), matter.get("license_name")
    if isinstance(licence, list):
        licence = " and ".join(map(str, licence))
    if str(licence).lower() == "other" and isinstance(name, str) and name.strip():
        licence = name
    return licence.strip()[:LONGEST] if isinstance(licence, str) and licence.strip() else None


def is_gated(card: str | None) -> bool:
    """Whether a card asks those who download to accept something first (`extra_gated_...`)."""
    return any(str(key).startswith("extra_gated") for key in _front_matter(card))


def _front_matter(card: str | None) -> Mapping[Any, Any]:
    match = re.match(r"---\s*\n(.*?)\n---", card or "", re.DOTALL)
    if not match:
        return {}
    try:
        matter = yaml.safe_load(match[1])
    except Exception:  # the library raises more than its own errors, on a bad !!timestamp say
        return {}
    return matter if isinstance(matter, dict) else {}
