"""The border of success: skill x familiar knowledge over weights, norms, familiarity, invention."""

from loraprobe_lab.border.run import Map, draw_map

__all__ = ["Map", "draw_map"]
