"""Select entries of each delta and combine what was selected, block by block.

An elementwise method selects entries of each delta and combines them entry by entry. Both steps run
over blocks of rows, so besides the deltas and the result only one scratch matrix of full size is
held, whatever the number of adapters.

A selection is a function from the blocks [n, rows, q] of the deltas, in order, to the same blocks
with zeros for the dropped entries. It may be called twice: a random one draws the same masks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.merging._method import Deltas, Matrix

Block = Float[Tensor, "n _ q"]
Selection = Callable[[Sequence[Block]], Iterator[Block]]

# Entries of all adapters in one block, so that temporaries are small and fit into the cache.
BLOCK = 1 << 18
# Entries processed together, so that they fit into the cache.
COUNTED = 1 << 17
# Entries of a sample that brackets a magnitude.
SAMPLE = 1 << 16
# Below this number of entries numpy's selection is used directly.
FEW = 1 << 18

ORDERS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}


# The deltas by blocks of rows.


def in_blocks(deltas: Deltas) -> tuple[Block, ...]:
    """Views [n, rows, q] that together are the deltas [n, p, q]."""
    return deltas.split(max(1, BLOCK // max(1, deltas[:, 0].numel())), dim=1)


def fuse(
    deltas: Deltas, selection: Selection, combine: Callable[[Deltas], Matrix], norm: str = "off"
) -> Matrix:
    """The selected entries of the deltas [n, p, q], combined into [p, q].

    norm: "l1", "l2" or "linf" rescales what is left of each delta to the norm that the delta had;
    anything else does not rescale.
    """
    factors = _factors(deltas, selection, ORDERS[norm]) if norm in ORDERS else None
    kept = selection(in_blocks(deltas))
    merged, start = torch.empty_like(deltas[0]), 0
    for block in kept:
        rows = slice(start, start + block.shape[1])
        merged[rows] = combine(block if factors is None else block * factors)
        start = rows.stop
    return merged


def _factors(deltas: Deltas, selection: Selection, order: float) -> Tensor:
    """||dW_i|| / ||what is kept of it||: [n, 1, 1], and 1 where nothing is kept."""
    norm = partial(torch.linalg.vector_norm, ord=order, dtype=torch.float64)
    blocks = in_blocks(deltas)
    pairs = [
        torch.stack([norm(block, dim=(1, 2)), norm(kept, dim=(1, 2))])
        for block, kept in zip(blocks, selection(blocks), strict=True)
    ]
    before, after = norm(torch.stack(pairs), dim=0)
    ratio = torch.where(after > 0, before / after, torch.ones_like(after))
    return ratio[:, None, None].to(deltas)


# Selections.


def between(deltas: Deltas, density: float, gamma: float = 0.0) -> Selection:
    """Keep int(density p q) entries of each delta by magnitude, at least one.

    The int(gamma p q) largest are dropped first, then the smallest; with gamma 0 the largest are
    kept. If there are not enough small entries to drop, fewer of the largest are dropped. All
    entries as large as a kept one are kept, so the order in memory does not matter.
    """
    entries = deltas[0].numel()
    kept = max(1, int(density * entries))
    top = min(int(gamma * entries), entries - kept)
    bottom = entries - kept - top
    if kept == entries:
        return iter
    places = [bottom, entries - top - 1] if top else [bottom]
    flat = [delta.contiguous().view(-1).numpy() for delta in deltas]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # one for each delta
        limits = list(threads.map(partial(magnitudes_at, places=places), flat))
    # hardshrink keeps what is strictly above its bound, and the smallest kept magnitude must stay.
    lows = [float(np.nextafter(limit[0], limit[0].dtype.type(0))) for limit in limits]
    highs = [float(limit[1]) if top else None for limit in limits]
    return partial(_banded, lows=lows, highs=highs)


def _banded(
    blocks: Sequence[Block], lows: Sequence[float], highs: Sequence[float | None]
) -> Iterator[Block]:
    shrink = torch.nn.functional.hardshrink
    for block in blocks:
        kept = torch.empty_like(block)
        for out, delta, low, high in zip(kept, block, lows, highs, strict=True):
            out.copy_(shrink(delta, low))
            if high is not None:
                out.sub_(shrink(delta, high))
        yield kept


def at_random(
    density: float,
    generators: Sequence[torch.Generator],
    divide: bool = True,
    epsilon: float | None = None,
) -> Selection:
    """Keep each entry with probability `density` (DARE), divided by that probability or not.

    epsilon: let the probability depend on the magnitude (DELLA's MagPrune): it rises evenly with
    the rank of the magnitude in its row, from density - epsilon to density + epsilon.
    """
    if density == 1:
        return iter
    states = [generator.get_state() for generator in generators]
    chances: Callable[[Matrix], Tensor] = partial(chances_of, density=density, epsilon=epsilon)
    return partial(_drawn, chances=chances, states=states, divide=divide)


def chances_of(delta: Matrix, density: float, epsilon: float | None) -> Tensor:
    """The probability of keeping each entry: [p, q] -> [p, q] float64; density without epsilon.

    With epsilon it is density - epsilon for the smallest magnitude of each row, density + epsilon
    for the largest, in even steps; density where a row has one entry.
    """
    if epsilon is None:
        return torch.tensor(density, dtype=torch.float64)
    steps = np.linspace(-epsilon, epsilon, delta.shape[1]) if delta.shape[1] > 1 else np.zeros(1)
    order = np.argsort(delta.abs().numpy(), axis=1)
    chances = np.empty(delta.shape, dtype=np.float64)
    np.put_along_axis(chances, order, density + steps[None], axis=1)
    return torch.from_numpy(chances)


def _drawn(
    blocks: Sequence[Block],
    chances: Callable[[Matrix], Tensor],
    states: Sequence[Tensor],
    divide: bool,
) -> Iterator[Block]:
    generators = [torch.Generator() for _ in states]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    for block in blocks:
        kept = torch.empty_like(block)
        for out, delta, generator in zip(kept, block, generators, strict=True):
            chance = chances(delta)
            torch.mul(delta, uniform(delta.shape, generator) < chance, out=out)
            if divide:
                out.div_(chance)
        yield kept


def uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers in [0, 1) of a shape. Blocks of rows draw the same numbers as all rows."""
    return torch.rand(shape, generator=generator, dtype=torch.float32)


# Order statistics of magnitudes, without sorting all of them.


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
    memory = np.empty(min(COUNTED, len(entries)), entries.dtype)
    below, inside = 0, []
    for start in range(0, len(entries), COUNTED):
        block = entries[start : start + COUNTED]
        magnitudes = np.abs(block, out=memory[: len(block)])
        under = magnitudes < low
        below += int(np.count_nonzero(under))
        inside.append(magnitudes[(magnitudes <= high) ^ under])
    return below, np.concatenate(inside)


def _selected(magnitudes: np.ndarray, places: Sequence[int]) -> np.ndarray:
    magnitudes.partition(places)
    return magnitudes[list(places)]
