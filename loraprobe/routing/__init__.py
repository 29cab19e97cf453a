"""Routers: one file each. The listing of this folder is the registry."""

from loraprobe.composition import Router
from loraprobe.registry import Registry
from loraprobe.routing._scored import layer_of

__all__ = ["ROUTERS", "layer_of"]

ROUTERS: Registry[Router] = Registry("loraprobe.routing", Router, "router")  # type: ignore[type-abstract]
