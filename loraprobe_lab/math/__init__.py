"""Word problems with known steps: adapters learn new verbs, the target combines them."""

from loraprobe_lab.math.kit import math_kit, math_matrix_kit

__all__ = ["math_kit", "math_matrix_kit"]
