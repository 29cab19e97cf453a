"""Read the factors of many adapters once and form their Gram matrices.

`gram_matrices` reads each module of all adapters once, forms the two matrices and drops the
factors, so memory holds a few modules of all adapters and not their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.lora.gram_products import gram_of
from loraprobe.lora.grams import GramMatrices, factor_lengths, own_blocks
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.workers import in_order

Updates = Sequence[LowRank | None]
Visitor = Callable[[GramMatrices, Sequence[Updates]], None]

# Size of the Gram matrices, and of the factors in float32, that are collected into one batch.
BATCH_BYTES = 1 << 24


def batches_of(
    adapters: Sequence[Mapping[str, Any]], paths: Sequence[str], rank: int = 0
) -> list[tuple[str, ...]]:
    """The modules in batches of about BATCH_BYTES; ranks are padded to at least `rank`.

    adapters: module path -> update, or its rank, in_features and out_features, for each adapter.
    """
    found: list[tuple[str, ...]] = []
    waiting: list[str] = []
    size = 0
    for path in paths:
        own = [adapter[path] for adapter in adapters if path in adapter]
        waiting.append(path)
        size += 2 * 8 * (len(adapters) * max([rank, *(one.rank for one in own)])) ** 2
        size += sum(4 * one.rank * (one.in_features + one.out_features) for one in own)
        if size >= BATCH_BYTES:
            found.append(tuple(waiting))
            waiting, size = [], 0
    return [*found, tuple(waiting)] if waiting else found


def gram_matrices(
    adapters: Sequence[Mapping[str, LowRank]],
    paths: Sequence[str] | None = None,
    *,
    rank: int = 0,
    batches: Sequence[Sequence[str]] | None = None,
    visitor: Visitor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[GramMatrices]:
    """Read every module of all adapters once and yield the Gram matrices in batches.

    adapters: module path -> update, for each adapter. paths: the modules in order (default: as the
    adapters list them). Ranks are padded to the largest of a batch, or to `rank` if it is larger.
    batches: the modules of each batch, in place of paths; otherwise those of `batches_of`.
    visitor: called with each batch and the stored updates of its modules, None where an adapter
    lacks one, before the batch is yielded; batches are computed in several threads.
    """
    if batches is None:
        if paths is None:
            paths = list(dict.fromkeys(path for a in adapters for path in a))
        batches = batches_of([getattr(a, "infos", a) for a in adapters], paths, rank)
    count = sum(map(len, batches))

    def batch(part: tuple[Sequence[str], Sequence[Updates]]) -> GramMatrices:
        names, updates = part
        grams = _batch(tuple(names), updates, rank)
        if visitor is not None:
            visitor(grams, updates)
        return grams

    done = 0
    parts = ((some, [[a.get(path) for a in adapters] for path in some]) for some in batches)
    for grams in in_order(batch, parts):
        done += len(grams.paths)
        if progress is not None:
            progress(done, count)
        yield grams


def _batch(paths: tuple[str, ...], modules: Sequence[Updates], rank: int) -> GramMatrices:
    """The Gram matrices of some modules. modules: the updates of all adapters for each."""
    A = [[None if u is None else u.A for u in updates] for updates in modules]
    B = [[None if u is None else u.B.mT for u in updates] for updates in modules]
    grams_in = _together([gram_of(factors) for factors in A], rank)
    grams_out = _together([gram_of(factors) for factors in B], rank)
    # A NaN or infinity in a factor makes the length of its row or column NaN or infinite.
    lengths = factor_lengths(own_blocks(grams_in)) + factor_lengths(own_blocks(grams_out))
    finite = torch.isfinite(lengths).all(-1)
    if not finite.all():
        bad = ~finite
        for grams in (grams_in, grams_out):
            grams[bad] = 0.0
            grams.permute(0, 3, 1, 2, 4)[bad] = 0.0
    absent = LowRank(torch.zeros(0, 0), torch.zeros(0, 0), 0.0)
    held = [[absent if u is None else u for u in updates] for updates in modules]
    scaling = [[float(u.scaling) for u in updates] for updates in held]
    return GramMatrices(
        paths=paths,
        grams_in=grams_in,
        grams_out=grams_out,
        scaling=torch.tensor(scaling, dtype=torch.float64),
        rank=torch.tensor([[u.rank for u in updates] for updates in held]),
        shape=torch.tensor(
            [[(u.out_features, u.in_features) for u in updates] for updates in held]
        ),
        finite=finite,
    )


def _together(grams: list[Float64[Tensor, "n _ n _"]], rank: int) -> Float64[Tensor, "m n r n r"]:
    """The matrices of some modules as one tensor, padded with zeros to one rank."""
    r = max([rank, *(gram.shape[1] for gram in grams)])
    more = [r - gram.shape[1] for gram in grams]
    pad = torch.nn.functional.pad
    grams = [pad(g, (0, k, 0, 0, 0, k)) if k else g for g, k in zip(grams, more, strict=True)]
    return torch.stack(grams) if len(grams) > 1 else grams[0][None]
