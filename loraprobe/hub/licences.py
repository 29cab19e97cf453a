"""The licence that a model card declares in its front matter."""

from __future__ import annotations

import re

import yaml

LONGEST = 100  # characters of a licence's name that are kept


def declared_licence(card: str | None) -> str | None:
    """`license`, or `license_name` where that says "other"; None where the card says nothing.

    The front matter is read by a YAML library that builds plain data only.
    """
    match = re.match(r"---\s*\n(.*?)\n---", card or "", re.DOTALL)
    if not match:
        return None
    try:
        matter = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(matter, dict):
        return None
    licence, name = matter.get("license"), matter.get("license_name")
    if isinstance(licence, list):
        licence = " and ".join(map(str, licence))
    if str(licence).lower() == "other" and isinstance(name, str) and name.strip():
        licence = name
    return licence.strip()[:LONGEST] if isinstance(licence, str) and licence.strip() else None
