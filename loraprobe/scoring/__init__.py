"""Generations, log-likelihoods and next tokens of a loaded model, computed in batches.

Every result equals that of a batch of one, up to rounding. To generate, prompts are padded on the
left, with attention mask and positions of the prompt alone. To score, they are padded on the right,
where causal attention does not see the padding. Repeated inputs are computed once.
"""

from loraprobe.scoring.encoding import Encoder, joined
from loraprobe.scoring.generation import Written
from loraprobe.scoring.likelihood import Likelihood
from loraprobe.scoring.model_scorer import ModelScorer, loss_with_gradients, read_texts
from loraprobe.scoring.scorer import Scorer
