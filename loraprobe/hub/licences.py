"""Reads from the front matter of a model card the licence and whether the model is gated."""

from __future__ import annotations

from loraprobe.front_matter import read_front_matter

LONGEST = 100  # characters of a licence's name that are kept


def declared_licence(card: str | None) -> str | None:
    """The `license` of a card, or its `license_name` if that is "other"; None without a licence.

    A value that is neither a text nor a list of texts counts as none.
    """
    matter = read_front_matter(card)
    licence, name = matter.get("license"), matter.get("license_name")
    if isinstance(licence, list) and all(isinstance(one, str) for one in licence):
        licence = " and ".join(licence)
    if not isinstance(licence, str):
        return None
    if licence.lower() == "other" and isinstance(name, str) and name.strip():
        licence = name
    return licence.strip()[:LONGEST] or None


def is_gated(card: str | None) -> bool:
    """Whether a card requires consent before a download (it has `extra_gated_...` keys)."""
    return any(
        isinstance(key, str) and key.startswith("extra_gated") for key in read_front_matter(card)
    )
