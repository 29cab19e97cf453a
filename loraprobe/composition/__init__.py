"""A composition is experts plus gates: put into a loaded model, and taken out without a trace.

An adapter adds g * s B A x to a layer. The base model has every gate at 0, one adapter a one-hot
gate, the sum gates of 1, the uniform average gates of 1/n, and a token router gates that look at
the token. So one mechanism evaluates them all, on one copy of the base in memory:

    h = x Acat^T            [..., R]     R = sum of the experts' ranks
    y = base(x) + (gates[owner] * h) Bcat^T

with the factors of all experts of a module concatenated. Gates meet the tokens in rank space, so
no tensor of shape (tokens, experts, out) exists. Constant gates are folded into B beforehand.

The arithmetic is peft's: 16-bit factors are held in float32, x is cast to the factors' dtype,
and the result is cast back to the dtype of the layer's own output. A float64 model gets float64.

An expert without a module adds nothing there. Constant gates count it as a zero delta; token
routers share its gate among the experts that are present. Embeddings look tokens up and have no
input to route by: under a token router they get constant gates, one over the number of experts
present. A tied embedding is adapted where it embeds and not where it is used as the head, as
peft's forward does (peft's merged model would change both).
"""

from loraprobe.composition.contract import Composition, Router, TokenGates
from loraprobe.composition.layers import ComposedLayer, prepared
from loraprobe.composition.placement import composed
from loraprobe.composition.rows import RowGates, Rows
from loraprobe.composition.watching import watched

__all__ = [
    "ComposedLayer",
    "Composition",
    "Router",
    "RowGates",
    "Rows",
    "TokenGates",
    "composed",
    "prepared",
    "watched",
]
