"""The paper's matrix on a chosen base: one table, one figure, and whether each claim held."""

from loraprobe_lab.reproduce.bases import Bases
from loraprobe_lab.reproduce.run import Plan, Reproduction, experiment, reproduce

__all__ = ["Bases", "Plan", "Reproduction", "experiment", "reproduce"]
