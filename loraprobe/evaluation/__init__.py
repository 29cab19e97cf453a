"""Systems x tasks -> per-item results, scores, paired comparisons, attribution.

`run_systems` asks every system every part of every item and keeps results in a `Ledger` as they
come; `score`, `compare`, `gains` and `attribute` say what they mean. `statistics` holds the
intervals.
"""

from loraprobe.evaluation.attribution import attribute
from loraprobe.evaluation.chain import chain_notes
from loraprobe.evaluation.comparing import compare, gain, gains, retention, score
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import METRICS
from loraprobe.evaluation.running import run_systems
from loraprobe.evaluation.systems import System
from loraprobe.evaluation.template import choose_template

__all__ = [
    "METRICS",
    "Ledger",
    "System",
    "attribute",
    "chain_notes",
    "choose_template",
    "compare",
    "gain",
    "gains",
    "retention",
    "run_systems",
    "score",
]
