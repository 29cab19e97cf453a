"""Reads model cards: the text, the form of its prompts, the licence, and whether it is gated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from loraprobe import limits
from loraprobe.adapters import Adapter, Source
from loraprobe.checkpoint import check_link
from loraprobe.errors import HubError
from loraprobe.front_matter import read_front_matter
from loraprobe.hub.reference import Reference
from loraprobe.hub.repository import fetch_first

# What a file of a tokenizer, or code that asks a model, shows of a chat template or a plain prompt.
CHAT = re.compile(r"""chat_template|\bmessages\s*=|\bin messages\b|["']role["']\s*:\s*["']user""")
PLAIN = re.compile(r"\.generate\(|\bpipeline\(")
LONGEST = 100  # characters of a licence's name that are kept


def model_card(adapter: Adapter) -> str | None:
    """The text of an adapter's README.md, downloaded if it is on the Hub; None if there is none."""
    return beside(adapter.source, "README.md")


def beside(source: Source, name: str) -> str | None:
    """The text of a file of an adapter or a base, or of its repository; None if there is none."""
    file = None if source.path is None else source.path / name
    if source.commit is not None and not (file and file.is_file()):
        reference = replace(Reference.parse(source.reference), revision=source.commit)
        file = fetch_first(reference, [reference.inside(name), name])
    return read_card(file, source.public) if file else None


def prompt_form(text: str | None) -> bool | None:
    """Whether a card or a tokenizer's file shows prompts as user turns; None if it shows none."""
    if CHAT.search(text or ""):
        return True
    return False if PLAIN.search(text or "") else None


def read_card(file: Path, reference: str) -> str | None:
    """The text of a model card, up to the limit; None if the file does not exist.

    Raises HubError for a link that leads out of its repository.
    """
    if not file.is_file():
        return None
    check_link(file, reference, HubError)
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read(limits.CARD)


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
