"""The paper's matrix on a chosen base: one table, one figure, and whether each claim held."""

from loraprobe.lab.reproduce.bases import Bases
from loraprobe.lab.reproduce.run import Plan, Reproduction, experiment, reproduce

__all__ = ["Bases", "Plan", "Reproduction", "experiment", "reproduce"]
