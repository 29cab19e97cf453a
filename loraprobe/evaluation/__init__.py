"""Evaluates systems on tasks: per-item results, scores, paired comparisons, attribution.

`run_systems` asks every system all parts of every item and stores the results in a `Ledger`.
`score`, `compare`, `gains` and `attribute` evaluate the results. Only `asking` asks a
model questions, and only `statistics` and `selection` have formulas of intervals.
"""

from loraprobe.evaluation.attribution import attribute
from loraprobe.evaluation.chain import chain_hops, chain_notes
from loraprobe.evaluation.comparing import compare, retention, score
from loraprobe.evaluation.gaining import gains
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import guessing
from loraprobe.evaluation.rounds import Round, beaten, rounds
from loraprobe.evaluation.running import run_systems
from loraprobe.evaluation.samples import Samples
from loraprobe.evaluation.systems import System
from loraprobe.evaluation.template import choose_template, stored_as
