"""What a model card declares in its front matter: a licence, and terms to accept first."""

from __future__ import annotations

from loraprobe.front_matter import read_front_matter

LONGEST = 100  # characters of a licence's name that are kept


def declared_licence(card: str | None) -> str | None:
    """`license`, or `license_name` where that says "other"; None where the card says nothing.

    A text or a list of texts is taken and nothing else.
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
    """Whether a card asks those who download to accept something first (`extra_gated_...`)."""
    return any(
        isinstance(key, str) and key.startswith("extra_gated") for key in read_front_matter(card)
    )
