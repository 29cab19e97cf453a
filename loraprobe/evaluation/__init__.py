"""Evaluates systems on tasks: per-item results, scores, paired comparisons, attribution.

`run_systems` asks every system all parts of every item and stores the results in a `Ledger`.
`score`, `compare`, `gains`, `oracles` and `attribute` evaluate the results. Only `asking` asks a
model questions, and only `statistics`, `selection`, `likelihood` and `ratios` have formulas of
intervals.
"""

from loraprobe.evaluation.attribution import attribute
from loraprobe.evaluation.chain import chain_notes
from loraprobe.evaluation.choosing import oracles
from loraprobe.evaluation.comparing import compare, retention, score
from loraprobe.evaluation.gaining import gain, gains
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import guessing
from loraprobe.evaluation.rounds import Round, beaten, rounds
from loraprobe.evaluation.running import run_systems
from loraprobe.evaluation.samples import Samples
from loraprobe.evaluation.systems import System
from loraprobe.evaluation.template import choose_template

__all__ = [
    "Ledger",
    "Round",
    "Samples",
    "System",
    "attribute",
    "beaten",
    "chain_notes",
    "choose_template",
    "compare",
    "gain",
    "gains",
    "guessing",
    "oracles",
    "retention",
    "rounds",
    "run_systems",
    "score",
]
