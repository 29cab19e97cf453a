"""Every method, space and router in one table over worlds whose truth is known."""

from loraprobe_lab.methods.run import Plan, Tried, try_methods

__all__ = ["Plan", "Tried", "try_methods"]
