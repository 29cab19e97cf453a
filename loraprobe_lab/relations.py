"""Two-hop facts from files of relations: every a -> b joined with every b -> c.

A file is JSON with ``samples``, a list of ``{"subject": ..., "object": ...}``, as published with
the LRE data of Hernandez et al. (arXiv 2308.09124).
"""

from __future__ import annotations

import json
from pathlib import Path

from loraprobe_lab.natural_data import Chain
from loraprobe_lab.world import WorldError


def joined(directory: str | Path, first: str, second: str) -> list[Chain]:
    """Chains of the relations `first` and `second`: names of files below `directory`, less .json.

    Of several objects of one subject the first counts, so that every question has one answer.

    Raises:
        WorldError: a file is missing or holds no such samples.
    """
    one, two = _relation(Path(directory), first), _relation(Path(directory), second)
    return [Chain(a, b, two[b]) for a, b in one.items() if b in two]


def _relation(directory: Path, name: str) -> dict[str, str]:
    found = sorted(directory.rglob(f"{name}.json"))
    if not found:
        raise WorldError(f"{directory} holds no relation {name}: no file {name}.json below it.")
    try:
        samples = json.loads(found[0].read_text(encoding="utf-8"))["samples"]
        pairs = [(row["subject"], row["object"]) for row in samples]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise WorldError(
            f"{found[0]} is no relation: it needs 'samples' of 'subject' and 'object'."
        ) from None
    return dict(reversed(pairs))
