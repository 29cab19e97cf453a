"""A loaded model and its tokenizer -> generations, log-likelihoods, hidden states; in batches.

Every answer is that of a batch of one, up to rounding: prompts are padded on the left to generate
(attention mask and positions follow the prompt, not the padding) and on the right to be scored
(where causal attention never sees the padding). What is asked twice is computed once.
"""

from loraprobe.scoring.encoding import Encoder, joined
from loraprobe.scoring.ensemble_scoring import read_together, score_together, write_together
from loraprobe.scoring.ensembles import LogitEnsemble
from loraprobe.scoring.likelihood import Likelihood
from loraprobe.scoring.scorer import Scorer

__all__ = [
    "Encoder",
    "Likelihood",
    "Scorer",
    "LogitEnsemble",
    "joined",
    "read_together",
    "score_together",
    "write_together",
]
