"""The small world that ships with the package: a base, adapters and tasks, trained from a seed."""

from loraprobe.demo.world import Scenario, World, WorldError, shipped_world

__all__ = ["Scenario", "World", "WorldError", "shipped_world"]
