"""Small models with stacked parameters in both orientations, and adapters of them by peft."""

import warnings

import torch
from making import peft_model
from torch import nn

from loraprobe.adapters import read_adapter

IN, MIDDLE, EXPERTS = 12, 10, 3
BOTH = ["experts.up", "experts.down"]


class Experts(nn.Module):
    """Two stacked parameters, up before down, each [E, out, in] or, transposed, [E, in, out]."""

    def __init__(self, transposed: bool, experts: int = EXPERTS) -> None:
        super().__init__()
        self.is_transposed = transposed
        for name, out, inp in (("up", MIDDLE, IN), ("down", IN, MIDDLE)):
            shape = (experts, inp, out) if transposed else (experts, out, inp)
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        up, down = (w if self.is_transposed else w.mT for w in (self.up, self.down))
        return (x @ up).tanh() @ down  # [E, tokens, IN]


class Gate(nn.Module):
    """A parameter of two dimensions in a module that is no Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, IN))

    def forward(self, x):
        return x @ self.weight.mT


class Mixture(nn.Module):
    def __init__(self, transposed: bool = False, experts: int = EXPERTS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = Gate(), Experts(transposed, experts)
        self.proj = nn.Linear(IN, IN)

    def forward(self, x):
        x = self.proj(x)
        return torch.einsum("te,eti->ti", self.gate(x)[:, :1].expand(-1, EXPERTS), self.experts(x))


class Layers(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mixture(transposed), Mixture(transposed)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


CASES = {
    "one parameter": {"target_parameters": ["experts.down"]},
    "two parameters of a module": {"target_parameters": BOTH},
    "bare names": {"target_parameters": ["up", "down"], "target_modules": ["proj"]},
    "expression beside them": {"target_parameters": BOTH, "target_modules": r"layers\.\d\.proj"},
    "of two dimensions": {"target_parameters": ["gate.weight", "experts.up"]},
    "rslora": {"target_parameters": BOTH, "use_rslora": True},
    "one layer": {"target_parameters": ["layers.1.experts.up"]},
    "ranks by name": {
        "target_parameters": BOTH,
        "rank_pattern": {"up": 6},  # the rows fit the other order too
        "alpha_pattern": {"experts.down": 7},
    },
}


def wrapped(case: dict, transposed: bool = False, seed: int = 1, **more):
    options = {"r": 2, "lora_alpha": 3, "target_modules": [], "task_type": None} | case | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_model(Layers(transposed), seed, **options)


def saved(directory, model):
    model.save_pretrained(str(directory))
    return read_adapter(directory)


def deltas_of_peft(model) -> dict[str, torch.Tensor]:
    """Module path or full name of a parameter -> dW as peft computes it, [E, out, in]."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    found = {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default").detach()
            if isinstance(module, ParamWrapper):
                path = path.replace(".base_layer", "")
                owner = module.get_base_layer()
                turned = getattr(owner, "is_transposed", False) and delta.dim() == 3
                delta = delta.mT if turned else delta
                path = f"{path}.{module.parameter_name}"
            found[path] = delta if delta.dim() == 3 else delta[None]
    return found
