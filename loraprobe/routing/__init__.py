"""Routers: one file each. The listing of this folder is the registry."""

from loraprobe.composition import Router
from loraprobe.routing._scored import layer_of
from loraprobe.shelf import Shelf

__all__ = ["ROUTERS", "layer_of"]

ROUTERS: Shelf[Router] = Shelf("loraprobe.routing", Router, "router")  # type: ignore[type-abstract]
