"""Module paths: their natural order, and what repeats in every layer."""

from __future__ import annotations

import re


def natural(path: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which layer 2 comes before layer 10."""
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"[.]", path))


def layer_pattern(path: str) -> str:
    """What a module's path is in every layer: `model.layers.*.mlp.up_proj`."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
