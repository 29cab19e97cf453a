"""The base model: its geometry and single weights without loading it, and loading it whole.

Geometry comes from the headers of the weight files, so a 70B model is described in milliseconds.
Module paths are those of the model in memory, which are those of adapters.
"""

from loraprobe.base.devices import pick_device, pick_dtype
from loraprobe.base.geometry import Weight
from loraprobe.base.model import Base, LoadedBase, open_base

__all__ = ["Base", "LoadedBase", "Weight", "open_base", "pick_device", "pick_dtype"]
