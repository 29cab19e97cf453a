"""Evaluates systems on tasks: per-item results, scores, paired comparisons, attribution.

`questions` says what is asked and in which rounds; `asking` asks the model.
`score`, `compare`, `measure_gains` and `attribute` evaluate the results; in this room only
`statistics` has formulas of intervals.
"""

from loraprobe.evaluation.asking import Ledger, chain_hops, chain_notes, run_systems
from loraprobe.evaluation.attribution import attribute, samples_of, wrong_samples
from loraprobe.evaluation.gains import (
    beaten,
    best_system,
    compare,
    guard_scores,
    measure_gains,
    near_ceiling,
    retention,
    score,
    shares_right,
)
from loraprobe.evaluation.questions import Round, System, guessing, rounds
from loraprobe.evaluation.template import choose_template, stored_as
