"""Sketches of adapters: few random projections, from which the cosine of every pair is estimated.

The sketch of an adapter is a sum over its modules, each in one of BLOCKS blocks:

    S_b = sum over modules m of block b of  P_m^T dW_m Q_m / SIDE,    P [out, SIDE], Q [in, SIDE],

with independent random signs in P_m and Q_m. It is computed from the factors, (P^T B)(A Q), so it
depends on the delta alone and not on the basis in which factors are stored. Inner products are
estimated without bias, E <S_1, S_2> = <dW_1, dW_2>, and have, by the variance of such a form, the
squared standard error

    |dW_1| |dW_2| (crowding / SIDE^2 + 4 concentration / SIDE)         at most.

`crowding` is the sum over blocks of the squared share of the energy |dW|^2 that the block holds;
`concentration` is the sum over modules of |dW_m dW_m^T|^2 over |dW|^4, which is 1 for a single
module of rank one and 1/(modules x rank) where all singular values are equal. Estimated cosines
are normalised by the lengths of the sketches, so that equal deltas have exactly 1; to first order
their standard error is (1 - cosine^2) times that of an inner product.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from loraprobe.lora.grams import GramMatrices, Updates, own_blocks

SIDE, BLOCKS = 64, 4
NUMBERS = BLOCKS * SIDE * SIDE  # of a sketch; in 16 bits it takes 32 KiB
COLUMNS = 2048  # numbers of all sketches that are multiplied together

# A byte -> its eight bits as signs.
_SIGNS = 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) - 1


@dataclass(eq=False)
class SketchBuilder:
    """Collects the sketch of one adapter while `gram_matrices` reads it.

    `visit` is its visitor, which may run in several threads; `take` has to be called with every
    batch in order, and adds up what the visitor found.
    """

    seed: int = 0
    blocks: Float32[Tensor, "b k k"] = field(
        default_factory=lambda: torch.zeros(BLOCKS, SIDE, SIDE)
    )
    parts: dict[tuple[str, ...], Tensor] = field(default_factory=dict)  # of batches, by their paths
    energy: list[float] = field(default_factory=lambda: [0.0] * BLOCKS)
    fourth: float = 0.0  # the sum over modules of |dW dW^T|^2

    def visit(self, joint: GramMatrices, updates: Sequence[Updates]) -> None:
        """Sketches one batch of modules."""
        blocks = torch.zeros_like(self.blocks)
        for path, (update,) in zip(joint.paths, updates, strict=True):
            if update is not None:
                A, B = (factor.to(torch.float32) for factor in (update.A, update.B))
                left = B.mT @ signs(self.seed, f"out {path}", update.out_features)
                right = A @ signs(self.seed, f"in {path}", update.in_features)
                scale = float(update.scaling) / SIDE
                blocks[_block(path)].addmm_(left.mT, right, alpha=scale)
        self.parts[joint.paths] = blocks

    def take(self, joint: GramMatrices) -> None:
        """Adds one batch of modules."""
        self.blocks += self.parts.pop(joint.paths)
        products = own_blocks(joint.grams_in)[:, 0] @ own_blocks(joint.grams_out)[:, 0]
        fourth = (products @ products).diagonal(dim1=-2, dim2=-1).sum(-1)
        self.fourth += float((fourth * joint.scaling[:, 0] ** 4).sum())
        for path, square in zip(joint.paths, joint.square[:, 0].tolist(), strict=True):
            self.energy[_block(path)] += square

    def made(self) -> tuple[NDArray[np.float16] | None, float]:
        """The sketch [NUMBERS], of squared length NUMBERS on average, and its error.

        The error is the standard error of the cosine with an unrelated adapter of the same kind.
        There is no sketch of deltas that are zero, not finite or too large for float32.
        """
        energy = math.fsum(self.energy)
        numbers = self.blocks.flatten() * (NUMBERS / energy if energy > 0 else math.nan) ** 0.5
        if not 0 < energy < math.inf or not bool(torch.isfinite(numbers).all()):
            return None, 0.0
        crowding = sum((held / energy) ** 2 for held in self.energy)
        square = crowding / SIDE**2 + 4 * self.fourth / energy**2 / SIDE
        return numbers.to(torch.float16).numpy(), square**0.5


def estimate_cosines(sketches: Sequence[NDArray[np.float16]]) -> NDArray[np.float32]:
    """The estimated cosine of every pair: [n, n]; takes little more memory than the result."""
    n = len(sketches)
    inner = np.zeros((n, n), dtype=np.float32)
    for start in range(0, NUMBERS, COLUMNS):
        part = np.empty((n, COLUMNS), dtype=np.float32)
        for row, sketch in zip(part, sketches, strict=True):
            row[:] = sketch[start : start + COLUMNS]
        inner += part @ part.T
    lengths = np.sqrt(inner.diagonal())
    inner /= lengths[:, None]
    inner /= lengths
    return np.clip(inner, -1, 1, out=inner)


def signs(seed: int, name: str, rows: int) -> Float[Tensor, "rows k"]:
    """Random signs [rows, SIDE] that depend on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(rows * SIDE // 64)
    octets = bits.astype("<u8", copy=False).view(np.uint8)
    return torch.from_numpy(_SIGNS.take(octets, axis=0)).view(rows, SIDE)


def _block(path: str) -> int:
    return hashlib.sha256(path.encode()).digest()[0] % BLOCKS
