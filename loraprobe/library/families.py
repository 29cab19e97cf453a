"""How the adapters of a library relate: families, outliers and a map, from cosines and norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loraprobe.defaults import FAMILY_COSINE, NORM_RATIO, OUTLIER_DEVIATIONS

FEWEST_NORMS = 5  # from which an extreme norm is told

Cosines = NDArray[np.float32]


def families(cosines: Cosines, least: float = FAMILY_COSINE) -> list[int | None]:
    """The family of every adapter, from 1, the largest first; None for one that is alone.

    Groups are joined while the mean cosine between their members is at least `least` (average
    linkage; Sokal and Michener 1958).
    """
    n = len(cosines)
    if n < 2:
        return [None] * n
    from scipy.cluster.hierarchy import fcluster, linkage

    distances = 1 - cosines[np.triu_indices(n, 1)].astype(np.float64)
    labels = fcluster(linkage(distances, "average"), 1 - least, "distance").tolist()
    sizes = {label: labels.count(label) for label in dict.fromkeys(labels)}  # in order of members
    together = [label for label, size in sizes.items() if size > 1]
    order = sorted(together, key=lambda label: -sizes[label])
    numbers = {label: number for number, label in enumerate(order, 1)}
    return [numbers.get(label) for label in labels]


def outliers(norms: Sequence[float]) -> list[float | None]:
    """How many times the median norm an adapter has whose norm is extreme; None for the others.

    Extreme is more than NORM_RATIO times larger or smaller than the median and further from it
    than OUTLIER_DEVIATIONS robust standard deviations (median absolute deviation of the logarithms
    over 0.6745; Iglewicz and Hoaglin 1993).
    """
    if len(norms) < FEWEST_NORMS:
        return [None] * len(norms)
    from scipy.special import ndtri  # scipy.stats takes seconds to import

    logs = np.log(np.asarray(norms, dtype=np.float64))
    middle = float(np.median(logs))
    deviation = float(np.median(np.abs(logs - middle)) / ndtri(0.75))  # of a normal distribution
    found: list[float | None] = []
    for log in logs.tolist():
        far = abs(log - middle)
        extreme = far > np.log(NORM_RATIO) and far > OUTLIER_DEVIATIONS * deviation
        found.append(float(np.exp(log - middle)) if extreme else None)
    return found


def places(cosines: Cosines) -> tuple[list[tuple[float, float]], float | None]:
    """Positions on a map of two dimensions, and the share of the squared distances that it shows.

    Classical scaling (Torgerson 1952) of the distances sqrt(2 - 2 cosine), which are those of
    deltas of length one. The larger extent of each axis is on its positive side.
    """
    n = len(cosines)
    if n < 2:
        return [(0.0, 0.0)] * n, None
    from scipy.linalg import eigh

    centred = cosines.astype(np.float64)
    centred -= centred.mean(0)
    centred -= centred.mean(1)[:, None]
    total = float(np.trace(centred))
    values, vectors = eigh(centred, subset_by_index=[n - 2, n - 1])
    axes = vectors[:, ::-1] * np.sqrt(np.clip(values[::-1], 0, None))
    largest = axes[np.abs(axes).argmax(0), [0, 1]]
    axes *= np.where(largest < 0, -1.0, 1.0)
    share = float(np.clip(values, 0, None).sum() / total) if total > 0 else None
    return [(float(x), float(y)) for x, y in axes], share
