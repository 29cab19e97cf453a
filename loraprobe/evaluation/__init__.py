"""Evaluates systems on tasks: per-item results, scores, paired comparisons, attribution.

`questions` says what is asked and in which rounds, `template` in which form; `asking` asks the
model and keeps the answers. `gains` makes scores, comparisons and gains of the results,
`attribution` says why answers are wrong. Only `statistics` has formulas of intervals.
"""

from loraprobe.evaluation.asking import Asker, ResponseCache, chain_notes
from loraprobe.evaluation.attribution import attribute, samples_of, wrong_samples
from loraprobe.evaluation.gains import (
    beaten,
    compare,
    guard_scores,
    guards_of_chain,
    measure_gains,
    named_alone,
    retention,
    right_together,
    score,
    shares_right,
)
from loraprobe.evaluation.questions import Round, System, guessing, rounds
from loraprobe.evaluation.template import choose_template
