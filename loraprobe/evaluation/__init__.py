"""Evaluates systems on tasks: per-item results, scores, paired comparisons, attribution.

`plan` says what is asked, `schedule` in which rounds, `asking` asks the model tasks' questions.
`score`, `compare`, `gains` and `attribute` evaluate the results; only `statistics` has formulas
of intervals.
"""

from loraprobe.evaluation.asking import (
    chain_hops,
    chain_notes,
    choose_template,
    run_systems,
    stored_as,
)
from loraprobe.evaluation.attribution import Samples, attribute
from loraprobe.evaluation.gains import compare, gains, retention, score
from loraprobe.evaluation.kept import Ledger
from loraprobe.evaluation.plan import System, guessing
from loraprobe.evaluation.schedule import Round, beaten, rounds
