"""A composition is experts plus gates: put into a loaded model, and taken out without a trace.

An adapter adds g * s B A x to a layer. The base model has every gate at 0, one adapter a one-hot
gate, the sum gates of 1, the uniform average gates of 1/n, and a token router gates that look at
the token. So one mechanism evaluates them all, on one copy of the base in memory:

    h = x Acat^T            [..., R]     R = sum of the experts' ranks
    y = base(x) + (gates[owner] * h) Bcat^T

with the factors of all experts of a module concatenated. Gates meet the tokens in rank space, so
no tensor of shape (tokens, experts, out) exists. Constant gates are folded into B beforehand.

Experts are of three kinds, which one adapter may mix (composition/experts/ has a file of each):
low-rank ones as above, to which the bias of lora_B adds g * s * b; *scaled* ones (DoRA), which add
g * ((c - 1) * (W0 x) + c * (s B A x)) with W0 x taken from the layer's own output; and *full*
ones, whole parameters, which constant gates weigh (W0 + sum g (W_i - W0)) and token routers
refuse. Token routers see the s B A of a scaled expert as it is stored, without c, so that they
route alike on every base.

The arithmetic is peft's: 16-bit factors are held in float32, x is cast to the factors' dtype,
and the result is cast back to the dtype of the layer's own output. A float64 model gets float64.

An expert without a module adds nothing there. Constant gates count it as a zero delta; token
routers share its gate among the experts that are present. Embeddings look tokens up and have no
input to route by: under a token router they get constant gates, one over the number of experts
present; so do convolutions, whose places are no tokens. A tied embedding is adapted where it embeds
and not where it is used as the head, as peft's forward does (peft's merged model would change
both).
"""

from loraprobe.composition.experts.low_rank import ExpertTerm
from loraprobe.composition.experts.scaled import change_norm
from loraprobe.composition.layers import ComposedLayer, prepared
from loraprobe.composition.observers import watched
from loraprobe.composition.placement import composed
from loraprobe.composition.router import Composition, Router, TokenGates
from loraprobe.composition.rows import RowGates, Rows

__all__ = [
    "ComposedLayer",
    "Composition",
    "Router",
    "RowGates",
    "Rows",
    "ExpertTerm",
    "TokenGates",
    "change_norm",
    "composed",
    "prepared",
    "watched",
]
