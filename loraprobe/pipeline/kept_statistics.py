"""The statistics of batches of modules in files, which shards write and `combine` reads.

A file is named by everything on which it depends: the inputs, the options and the modules. So a
shard that runs again computes nothing twice, and statistics of other inputs are never read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.diagnostics import BatchStatistics, FigureKey
from loraprobe.errors import OutputError
from loraprobe.evaluation.ledger import digest

Named = Mapping[tuple[str, FigureKey], Mapping[str, Tensor]]


@dataclass(frozen=True)
class KeptStatistics:
    """Files in several directories; new ones are written to the first.

    fingerprint: of inputs and options, as plain data.
    """

    places: Sequence[Path]
    fingerprint: Any

    def read(self, paths: Sequence[str]) -> BatchStatistics | None:
        """The statistics of these modules; None where no directory has them whole."""
        for file in (place / self._name(paths) for place in self.places):
            if file.is_file():
                try:
                    return _batch(torch.load(file, map_location="cpu", weights_only=True))
                except Exception:  # whatever a damaged file raises: it is computed again
                    continue
        return None

    def write(self, batch: BatchStatistics) -> None:
        """Raises OutputError where the file cannot be written."""
        file = self.places[0] / self._name(batch.paths)
        beside = file.with_suffix(f".{os.getpid()}")
        try:
            torch.save(_plain(batch), beside)
            beside.replace(file)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            raise OutputError(f"{file} cannot be written ({error}); free space there.") from None

    def _name(self, paths: Sequence[str]) -> str:
        return f"modules-{digest([self.fingerprint, list(paths)])}.pt"


def _plain(batch: BatchStatistics) -> dict[str, Any]:
    named = {
        part: [(name, *key, dict(sums)) for (name, key), sums in getattr(batch, part).items()]
        for part in ("sums", "rows")
    }
    return {**vars(batch), **named, "paths": list(batch.paths)}


def _batch(plain: Mapping[str, Any]) -> BatchStatistics:
    named = {
        part: {(name, FigureKey(side, rank)): sums for name, side, rank, sums in plain[part]}
        for part in ("sums", "rows")
    }
    return BatchStatistics(**{**plain, **named, "paths": tuple(plain["paths"])})
