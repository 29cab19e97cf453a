"""Compares a written adapter with the one in memory: keys, bits and scalings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loraprobe.errors import OutputError

if TYPE_CHECKING:
    from loraprobe.adapters.types import Adapter

# Saving multiplies the scaling by r and reading divides by r: two roundings of a double.
SCALING_ERROR = 1e-12


def check_readback(directory: Path, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Raises OutputError unless the directory holds exactly these tensors and is this adapter.

    Compared are the bits of every tensor, and the modules, kinds, ranks and scalings that result
    from the config. The written delta therefore differs from the intended one only by the rounding
    that a merge measures (`Merged.rounding_error`). The check reads the file once more.
    """
    from loraprobe.adapters.reading import read_adapter
    from loraprobe.adapters.tensors import open_tensors

    file = open_tensors(directory)
    wrong = sorted(file.shapes.keys() ^ tensors.keys())
    if not wrong:
        wrong = [key for key, tensor in tensors.items() if not _same_bits(file.read(key), tensor)]
    if wrong:
        raise OutputError(
            f"What was written to {directory.parent} is not what was meant: {wrong[0]} differs "
            "when it is read back; check the disk and run again."
        )
    read = read_adapter(directory, adapter.name)
    problem = _difference(read, adapter)
    if problem:
        raise OutputError(
            f"What was written to {directory.parent} would not be read as it was "
            f"meant: {problem}; please report this."
        )


def _difference(read: Adapter, meant: Adapter) -> str | None:
    """The first difference between two adapters, apart from tensors; None if there is none."""
    errors = [issue.message for issue in read.issues if issue.severity == "error"]
    if errors:
        return errors[0].rstrip(".")
    for held in ("modules", "magnitudes", "whole", "offsets"):
        names = set(getattr(read, held)) ^ set(getattr(meant, held))
        if names:
            return f"{held} differ by {sorted(names)[0]}"
    for path, info in read.layout.items():
        wanted = meant.layout[path]
        if not math.isclose(info.scaling, wanted.scaling, rel_tol=SCALING_ERROR):
            return f"the scaling of {path} is {info.scaling!r} instead of {wanted.scaling!r}"
        shape = (info.rank, info.in_features, info.out_features, info.kernel)
        if shape != (wanted.rank, wanted.in_features, wanted.out_features, wanted.kernel):
            return f"the shape of {path} differs"
        if (info.kind == "embedding") != (wanted.kind == "embedding"):
            return f"{path} is of kind {info.kind} instead of {wanted.kind}"
    return None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, other = (t.detach().cpu().contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)
