"""Controlled worlds with known answers: small bases, adapters and tasks built from a seed."""

from loraprobe_lab.world import Scenario, World, WorldError, shipped_world

__all__ = ["Scenario", "World", "WorldError", "shipped_world"]
