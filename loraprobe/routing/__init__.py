"""Routers, one file each or a family; `ROUTERS` finds them by listing this folder."""

from loraprobe.composition import Router
from loraprobe.registry import Registry

ROUTERS: Registry[Router] = Registry("loraprobe.routing", Router, "router")  # type: ignore[type-abstract]

from loraprobe.routing._saved import FILE, STATE, Routed  # noqa: E402 - it reads ROUTERS
