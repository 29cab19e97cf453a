"""Whether two files hold the same adapter, up to rounding.

Another library of linear algebra adds numbers in another order, so it may give singular vectors
another sign, and those of equal singular values another basis. Factors are then other numbers
before they are rounded to the dtype of the file, and their products differ by

    dW' - dW  =  (dB A + B dA)' - (dB A + B dA),   errors within half a spacing

whose expected squared norm follows from the spacings of the dtype at the stored numbers: a uniform
error within half a spacing u has the variance u^2 / 12. What the order of the sums itself changes
is measured: the merge is made a second time from the same deltas with their factors in reverse
order. Both are compared for the whole module and for each of its rows and columns, in which a
single changed number cannot hide. dW is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import read_adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.experts import factors_of_expert, stacks
from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.tensors import SafetensorsFile

PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
# Two independent roundings differ by sqrt(2) times the expected error of one; in a row or column of
# rank 1 by at most sqrt(12) times.
MODULE, ROW = 3.0, 4.0
REORDERED = 10.0  # times the one measured effect of the order of sums
Held = tuple[Tensor, ...]  # both factors of a module, or one other tensor
FLOOR = 1e-12  # of the module's norm: rounding of float64


def difference_of_weights(found: Path, again: Path, reordered: Callable[[], Path]) -> str | None:
    """How `found` differs from `again` beyond rounding; None if it does not.

    All are safetensors files; `reordered` makes the third, and is called where bits differ. Stacked
    factors are compared by expert, with the config beside `again`. Raises AdapterError for a file
    that cannot be read.
    """
    ours, theirs = SafetensorsFile(found), SafetensorsFile(again)
    if ours.metadata != theirs.metadata:
        return "its header holds other texts"
    for key in sorted(theirs.shapes.keys() | ours.shapes.keys()):
        if key not in theirs.shapes:
            return f"{key} is in it and would not be written"
        if key not in ours.shapes:
            return f"{key} is missing"
        for what, one, other in (
            ("shape", ours.shapes, theirs.shapes),
            ("type", ours.dtypes, theirs.dtypes),
        ):
            if one[key] != other[key]:
                return f"{key} has the {what} {_shown(one[key])} instead of {_shown(other[key])}"
    differing = [
        k for k in ours.shapes if not torch.equal(_bits(ours.read(k)), _bits(theirs.read(k)))
    ]
    if not differing:
        return None
    third = SafetensorsFile(reordered())
    if third.shapes != theirs.shapes:
        return f"{differing[0]} differs, and the rank depends on the order of sums"
    files, folder = (ours, theirs, third), again.parent
    experts = stacks(read_adapter(folder).layout) if (folder / CONFIG).is_file() else {}
    for key, held in _parts(differing):
        tensors = [tuple(file.read(k) for k in held) for file in files]
        stack = experts.get(key.removeprefix(PREFIX), [])
        for path, parts in zip(stack or [key], _experts(tensors, len(stack)), strict=True):
            differ = _product_difference if len(held) > 1 else _tensor_difference
            if problem := differ(path, *parts):
                return problem
    return None


def _experts(tensors: list[tuple[Tensor, ...]], experts: int) -> Iterator[list[tuple[Tensor, ...]]]:
    """The factors of each expert in every file, from stacked ones; the tensors if there is none."""
    if not experts:
        yield tensors
    for number in range(experts):
        yield [factors_of_expert(A, B, number, len(A) // experts) for A, B in tensors]


def _parts(differing: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Both factors of each module in which one differs, then every other tensor by itself."""
    done: set[str] = set()
    for key in differing:
        pair = next((pair for pair in PAIRS if key.endswith(pair)), None)
        if pair is None:
            yield key, (key,)
            continue
        module = key.removesuffix(pair[0]).removesuffix(pair[1])
        if module not in done:
            done.add(module)
            yield module.rstrip("."), (module + pair[0], module + pair[1])


def _tensor_difference(key: str, ours: Held, theirs: Held, third: Held) -> str | None:
    """A tensor that is no factor: every number within one spacing of the dtype."""
    one, other, reordered = (held[0].to(torch.float64) for held in (ours, theirs, third))
    noise = REORDERED * (reordered - other).abs().max() + FLOOR * other.abs().max()
    over = ~((one - other).abs() <= spacing(theirs[0]) + noise)
    return (
        f"{key} differs in {int(over.sum())} numbers by more than rounding" if over.any() else None
    )


def _product_difference(key: str, *factors: Held) -> str | None:
    """Two factors: their product, and the norm of each."""
    ours, theirs, third = (Product.of(*held) for held in factors)
    for factor in ("A", "B"):
        one, other = (float(getattr(p, factor).norm()) for p in (ours, theirs))
        # Scaling A up and B down leaves the product and may overflow where a model computes.
        if not 0.5 * other <= one <= 2 * other:
            return f"the factor {factor} of {key} has the norm {one:.4g} instead of {other:.4g}"
    norm = theirs.lengths()[0].norm()
    noise = REORDERED * float((third - theirs).lengths()[0].norm()) + FLOOR * float(norm)
    apart, rounding = (ours - theirs).lengths(), theirs.rounding()
    distance, allowed = float(apart[0].norm()), MODULE * float(rounding[0].norm()) + noise
    if not distance <= allowed:
        relative, share = distance / max(float(norm), 1e-300), allowed / max(float(norm), 1e-300)
        return f"the delta of {key} differs by {relative:.1e} of its norm (allowed {share:.1e})"
    for name, lengths, expected in zip(("row", "column"), apart, rounding, strict=True):
        over = ~(lengths <= ROW * expected + noise)
        if over.any():
            return f"the delta of {key} differs in {name} {int(over.nonzero()[0])}"
    return None


@dataclass(frozen=True, eq=False)
class Product:
    """B A in float64, with the spacing of the dtype at each stored number (None of a difference).

    A: [r, in], B: [out, r]. The scaling is left out: it is one for both sides.
    """

    A: Float64[Tensor, "r in"]
    B: Float64[Tensor, "out r"]
    spacings: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, A: Tensor, B: Tensor) -> Product:
        """The factors as they are stored, those of a convolution too."""
        A, B = A.flatten(1), B.flatten(1)
        return cls(A.to(torch.float64), B.to(torch.float64), (spacing(A), spacing(B)))

    def __sub__(self, other: Product) -> Product:
        return Product(torch.cat([self.A, other.A]), torch.cat([self.B, -other.B], 1))

    def lengths(self) -> tuple[Float64[Tensor, out], Float64[Tensor, "in"]]:
        """Euclidean lengths of the rows and of the columns.

        By QR of the other factor, so that a difference of near products keeps its digits.
        """
        right = torch.linalg.qr(self.A.mT, mode="r").R
        left = torch.linalg.qr(self.B, mode="r").R
        return (self.B @ right.mT).norm(dim=1), (left @ self.A).norm(dim=0)

    def rounding(self) -> tuple[Float64[Tensor, out], Float64[Tensor, "in"]]:
        """Square roots of the expected squared lengths of dB A + B dA, by rows and by columns."""
        assert self.spacings is not None
        vA, vB = (u.square() / 12 for u in self.spacings)
        A2, B2 = self.A.square(), self.B.square()
        rows = vB @ A2.sum(1) + B2 @ vA.sum(1)
        columns = vB.sum(0) @ A2 + B2.sum(0) @ vA
        return rows.sqrt(), columns.sqrt()


def spacing(stored: Tensor) -> Tensor:
    """Distance of neighbouring numbers of the tensor's dtype at each of its entries, float64."""
    info = torch.finfo(stored.dtype)
    _, exponent = torch.frexp(stored.to(torch.float64))  # |x| = m 2^exponent, 0.5 <= m < 1
    above = info.eps * torch.exp2(exponent.to(torch.float64) - 1)
    least = info.smallest_normal * info.eps
    return torch.where(stored == 0, least, above.clamp_min(least))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _shown(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value).removeprefix("torch.")
