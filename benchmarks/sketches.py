"""The error of sketched cosines of deltas shaped like those of a 7B model, with planted cosines.

    python benchmarks/sketches.py [--seeds 8] [--layers 32]

The standard deviation of the sketched cosine over seeds of the sketch, beside the error that is
stated and beside the exact cosine of the Gram matrices.
"""

from __future__ import annotations

import argparse

from adapters_7b import RANK, modules
from machine import about


def planted(cosine: float, layers: int, shared: bool):
    """Two adapters of rank RANK and 2 RANK with this cosine in every module, spectra decaying.

    shared: the parts that differ have one A, the worst case of unrelated adapters.
    """
    import torch

    from loraprobe.lora.lowrank import LowRank

    draw = torch.Generator().manual_seed(0)
    decay = 0.8 ** torch.arange(RANK)
    one, other = {}, {}
    for path, (out, into) in modules(layers).items():
        U = torch.linalg.qr(torch.randn(out, 2 * RANK, generator=draw)).Q
        V = torch.linalg.qr(torch.randn(into, 2 * RANK, generator=draw)).Q.mT
        own, rest = V[:RANK], V[:RANK] if shared else V[RANK:]
        sine = (1 - cosine**2) ** 0.5
        B = torch.cat([U[:, :RANK] * decay * cosine, U[:, RANK:] * decay * sine], 1)
        one[path] = LowRank(own, U[:, :RANK] * decay)
        other[path] = LowRank(torch.cat([own, rest]), B)
    return one, other


def sketch(modules, seed: int):
    """The numbers of the sketch of one adapter, and its error."""
    from loraprobe.extensions.screen.sketches import SketchBuilder
    from loraprobe.lora.grams import gram_matrices

    builder = SketchBuilder(seed)
    for joint in gram_matrices([modules], visitor=builder.visit):
        builder.take(joint)
    return builder.made()


def errors(layers: int, seeds: int) -> None:
    """A line for each planted cosine."""
    import numpy as np

    from loraprobe.extensions.screen.sketches import estimate_cosines

    for shared in (False, True):
        for cosine in (0.0, 0.3, 0.9, 1.0):
            one, other = planted(cosine, layers, shared)
            inner = sum(float(one[p].inner(other[p])) for p in one)
            norms = [sum(float(u.inner(u)) for u in a.values()) ** 0.5 for a in (one, other)]
            pairs = [(sketch(one, s), sketch(other, s)) for s in range(seeds)]
            found = np.array([estimate_cosines([one[0], other[0]])[0, 1] for one, other in pairs])
            error = (1 - cosine**2) * (pairs[0][0][1] * pairs[0][1][1]) ** 0.5
            kind = "one A" if shared else "two A"
            print(
                f"  {kind}, exact {inner / norms[0] / norms[1]:+.4f}: sketched "
                f"{found.mean():+.4f}, standard deviation {found.std(ddof=1):.5f} over {seeds} "
                f"seeds, stated at most {error:.5f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=32)
    given = parser.parse_args()
    print(about())
    print(f"cosines of adapters of {7 * given.layers} modules and rank {RANK} and {2 * RANK}:")
    errors(given.layers, given.seeds)


if __name__ == "__main__":
    main()
