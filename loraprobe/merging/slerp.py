"""slerp: spherical interpolation between two deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.merging._method import GramMethod

# Above this cosine the interpolation is linear, as in mergekit: the formula of the arc divides by
# the sine of the angle.
PARALLEL = 0.9995


@dataclass(frozen=True)
class Slerp(GramMethod):
    """Spherical interpolation of two deltas, module by module, each flattened to one vector.

    Weights w_1, w_2 (1/2 each if none are given) set the point on the arc, t = w_2 / (w_1 + w_2),
    and the length: the result is w_1 + w_2 times that point. So weights that sum to 1 are those of
    mergekit's `nuslerp` with a base model, and of its `slerp` with that t, on deltas. (mergekit's
    `slerp` is mostly used on full weights, where the angle is nearly 0 and the result the average.)
    Deltas keep their own lengths: the deltas are interpolated, not their unit vectors. If the size
    of the cosine is above 0.9995, which includes opposite deltas, the interpolation is linear. A
    zero delta counts as orthogonal, so cos(t pi/2) of the other one is left.
    """

    formula = "dW = (w_1 + w_2) (sin((1-t) a) dW_1 + sin(t a) dW_2) / sin(a), t = w_2 / (w_1 + w_2)"
    paper = "Shoemake 1985, Animating rotation with quaternion curves"

    def check(self, weights: Sequence[float]) -> None:
        """Two adapters (or one), weights that are not negative and not all zero."""
        if len(weights) > 2:
            raise UsageError(
                f"slerp goes from one adapter to another and cannot take {len(weights)}; give it "
                "two, or take model_stock or task_arithmetic for more."
            )
        if min(weights) < 0 or sum(weights) == 0:
            given = ", ".join(f"{weight:g}" for weight in weights)
            raise UsageError(
                f"slerp needs weights of 0 or more, one above 0, not {given}; task_arithmetic "
                "takes negative ones."
            )

    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"]
    ) -> tuple[float, ...]:
        """The two factors of the arc; the weight itself for a single adapter."""
        self.check(weights)
        if len(weights) == 1:
            return tuple(weights)
        total = sum(weights)
        t = weights[1] / total
        lengths = float((inner[0, 0].clamp_min(0) * inner[1, 1].clamp_min(0)).sqrt())
        cosine = float(inner[0, 1]) / lengths if lengths > 0 else 0.0
        if abs(cosine) > PARALLEL:
            return tuple(weights)
        angle = math.acos(cosine)
        return tuple(total * math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
