"""Order statistics of magnitudes, without sorting all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Entries processed together, so that they fit into the cache.
BLOCK = 1 << 17
# Entries of a sample that brackets a magnitude.
SAMPLE = 1 << 16
# Below this number of entries numpy's selection is used directly.
FEW = 1 << 18


def magnitudes_at(entries: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """|entries| at these places of the ascending order, exactly; entries: [n], places: [k].

    A sample gives a bracket for each; one pass counts the magnitudes below the bracket and collects
    those inside it, so only these few are sorted. Where the bracket misses, or most entries are
    equal, numpy's selection is used, in a fifth of the time of torch.kthvalue or torch.topk.
    """
    if len(entries) < FEW:
        return _selected(np.abs(entries), places)
    sample = np.sort(np.abs(entries[:: max(1, len(entries) // SAMPLE)]))
    return np.array([_at(entries, place, sample) for place in places], dtype=entries.dtype)


def _at(entries: np.ndarray, place: int, sample: np.ndarray) -> np.floating:
    share = place / len(entries)
    margin = 4 * math.sqrt(share * (1 - share) * len(sample)) + 2
    low = sample[max(0, int(share * len(sample) - margin))]
    high = sample[min(len(sample) - 1, int(share * len(sample) + margin))]
    below, inside = _bracketed(entries, low, high)
    if below <= place < below + len(inside):
        return _selected(inside, [place - below])[0]
    return _selected(np.abs(entries), [place])[0]


def _bracketed(entries: np.ndarray, low: np.floating, high: np.floating) -> tuple[int, np.ndarray]:
    """How many magnitudes lie below `low`, and those from `low` to `high`."""
    memory = np.empty(min(BLOCK, len(entries)), entries.dtype)
    below, inside = 0, []
    for start in range(0, len(entries), BLOCK):
        block = entries[start : start + BLOCK]
        magnitudes = np.abs(block, out=memory[: len(block)])
        under = magnitudes < low
        below += int(np.count_nonzero(under))
        inside.append(magnitudes[(magnitudes <= high) ^ under])
    return below, np.concatenate(inside)


def _selected(magnitudes: np.ndarray, places: Sequence[int]) -> np.ndarray:
    magnitudes.partition(places)
    return magnitudes[list(places)]
