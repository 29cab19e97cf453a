"""The `cross-lingual` small world: new facts learned in one language, asked for in another."""

from loraprobe_lab.lingual.kit import lingual_kit

__all__ = ["lingual_kit"]
