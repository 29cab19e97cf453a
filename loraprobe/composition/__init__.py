"""A composition is experts plus gates. It is put into a loaded model and removed again.

An adapter adds g * s B A x to a layer. In the base model every gate is 0, one adapter is a one-hot
gate, the sum has gates of 1, the uniform average gates of 1/n, and a token router computes gates
from the token. One mechanism therefore evaluates all of them on one copy of the base:

    h = x Acat^T            [..., R]     R = sum of the experts' ranks
    y = base(x) + (gates[owner] * h) Bcat^T

Acat and Bcat are the concatenated factors of all experts of a module. Gates multiply h in rank
space, so no tensor of shape (tokens, experts, out) is formed. Constant gates are multiplied into B
beforehand.

There are four kinds of expert, and one adapter may mix them. *Low-rank* experts are as above; the
bias b of lora_B adds g * s * b. *Scaled* experts (DoRA, file `dora`) scale the layer's own output
too. *Full* experts replace whole parameters (file `whole_parameters`), *parameter* experts change
stacked parameters of MoE layers (file `layers`); token routers refuse these two. Token routers use
the stored s B A of a scaled expert without its scale, so that they route in the same way on every
base.

The arithmetic is peft's: 16-bit factors are converted to float32, x is cast to the factors' dtype,
and the result is cast to the dtype of the layer's output. A float64 model uses float64.

An expert that lacks a module adds nothing there. Constant gates treat it as a zero delta; token
routers share its gate among the experts that are present. Embeddings have no input vector for a
token router, so they get constant gates of one over the number of experts present. A tied embedding
is adapted only as an embedding and not as the head, as in peft's forward pass (peft's merged model
changes both).
"""

from loraprobe.composition.attaching import aligned_to, composed, prepared_layers, watched
from loraprobe.composition.composition import Composition
from loraprobe.composition.dora import change_norm
from loraprobe.composition.router import Router, TokenGates
