"""Routers: one file each. The listing of this folder is the registry."""

from loraprobe.composition import Router
from loraprobe.shelf import Shelf

ROUTERS: Shelf[Router] = Shelf("loraprobe.routing", Router, "router")  # type: ignore[type-abstract]
