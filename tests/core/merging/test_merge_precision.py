"""Numerical error of every method on 16-bit factors, against dense float64 algebra on their values.

Bounds are relative Frobenius errors over a module. Before anything is rounded on writing:

- methods that stay with the factors, in `core`, or ask for float64: FLOAT64;
- elementwise methods in the full space, where entries are formed in float32: FLOAT32. Entries
  within rounding of a threshold or of a tied vote may fall on the other side; each is then off by
  its own size, about 1e-4 of the norm of a module of 4096 x 4096, and there are a few at most.

Writing adds the rounding of two factors, u each, with u = 2^-8 in bfloat16 and 2^-11 in float16:
at most 2u + u^2, and 0.6 u where roundings are independent.

    python tests/core/merging/test_merge_precision.py      writes the figures of docs/precision.md
    anew
"""

from pathlib import Path

import pytest
import torch
from making import dense, random_update
from merges import merge

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, FactorMethod, MergeMethod
from loraprobe.merging._engine import seeded_generators

F64 = torch.float64
FLOAT64, FLOAT32 = 1e-13, 1e-5
UNITS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
WEIGHTS = [0.8, 0.5]
PATH = "layers.0.up"
PAGE = Path(__file__).parents[3] / "docs" / "precision.md"


def pair(dtype: torch.dtype, held: torch.dtype) -> list[Adapter]:
    """Two adapters of rank 6 on 120 x 90, their factors rounded to a dtype and held in another."""
    adapters = []
    for i, name in enumerate("ab"):
        update = random_update(120, 90, 6, 70 + i, 0.5 + i / 4, F64)
        A, B = (factor.to(dtype).to(held) for factor in (update.A, update.B))
        adapters.append(adapter_of(name, {PATH: LowRank(A, B, update.scaling)}))
    return adapters


def exact(method: MergeMethod, dtype: torch.dtype, rank: int) -> torch.Tensor:
    """The definition in float64 on dense deltas, cut to a rank by a dense SVD."""
    adapters = pair(dtype, F64)
    if isinstance(method, FactorMethod):
        weights_A, weights_B = method.factor_weights(torch.tensor(WEIGHTS, dtype=F64))
        updates = [a.modules[PATH] for a in adapters]
        roots = [float(u.scaling) ** 0.5 for u in updates]
        A = sum(w * r * u.A for w, r, u in zip(weights_A.tolist(), roots, updates, strict=True))
        B = sum(w * r * u.B for w, r, u in zip(weights_B.tolist(), roots, updates, strict=True))
        return B @ A
    draws = seeded_generators([a.modules[PATH] for a in adapters], PATH, 3)
    weights = WEIGHTS if method.takes_weights else list(method.default_weights(2))
    deltas = torch.stack([dense(a.modules[PATH]) for a in adapters])
    merged = method(deltas, torch.tensor(weights, dtype=F64), draws)
    U, S, Vh = torch.linalg.svd(merged.to(F64), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def bound(method: MergeMethod) -> float:
    """By family: full in float32 where the method has no other space."""
    stays = isinstance(method, FactorMethod) or type(method).default_space() == "core"
    return FLOAT64 if stays else FLOAT32


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("name", METHODS.names())
def test_sixteen_bit_factors_are_merged_to_within_a_stated_bound(name, dtype):
    method = METHODS.make(name)
    adapters = pair(dtype, dtype)
    made = merge(adapters, method, weights=WEIGHTS, seed=3, dtype=F64)
    wanted = exact(method, dtype, made.rank)
    unrounded = error(dense(made.adapter.modules[PATH]), wanted)
    assert made.rounding_error == 0.0 and unrounded < bound(method)

    written = merge(adapters, method, weights=WEIGHTS, seed=3)
    assert written.adapter.dtype == dtype, "as wide as its sources"
    rounded, u = error(dense(written.adapter.modules[PATH]), wanted), UNITS[dtype]
    assert 0.2 * u < rounded < u
    assert written.rounding_error == pytest.approx(rounded, rel=0.02), "as it is reported"


def test_the_page_names_every_method_with_its_family():
    """Figures differ from machine to machine; their order of magnitude does not."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row[1].strip(" `") for row in rows] == METHODS.names()
    for row in rows:
        method = METHODS.make(row[1].strip(" `"))
        assert max(float(row[2]), float(row[4])) < bound(method)
        assert float(row[3]) < UNITS[torch.bfloat16] and float(row[5]) < UNITS[torch.float16]


def main() -> None:
    """Writes the figures of every method into the page, whose text stays."""
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("| `")]
    place = lines.index("| --- | --- | --- | --- | --- |") + 1
    rows = []
    for name in METHODS.names():
        method, found = METHODS.make(name), []
        for dtype in UNITS:
            made = merge(pair(dtype, dtype), method, weights=WEIGHTS, seed=3, dtype=F64)
            wanted = exact(method, dtype, made.rank)
            found.append(error(dense(made.adapter.modules[PATH]), wanted))
            written = merge(pair(dtype, dtype), method, weights=WEIGHTS, seed=3)
            found.append(error(dense(written.adapter.modules[PATH]), wanted))
        rows.append(f"| `{name}` | " + " | ".join(f"{value:.1e}" for value in found) + " |")
    lines[place:place] = rows
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
