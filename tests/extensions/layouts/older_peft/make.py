"""Writes the adapters of stacked experts beside this file, with the peft that is installed.

    python tests/extensions/layouts/older_peft/make.py

Run it in an environment with the version of peft that is wanted; only peft, torch and safetensors
are needed. Each directory is what `save_pretrained` of this version writes, and its file
`deltas.safetensors` what that adds to each parameter, in the parameter's own shape.
"""

import sys
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch import nn

IN, MIDDLE, EXPERTS = 6, 5, 3
SHAPES = {"up": (MIDDLE, IN), "down": (IN, MIDDLE), "square": (IN, IN)}  # (out, in) of an expert


class Experts(nn.Module):
    """Stacked parameters, each [E, out, in] or, transposed, [E, in, out]."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        for name, (out, inp) in SHAPES.items():
            shape = (EXPERTS, inp, out) if transposed else (EXPERTS, out, inp)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x):
        return x


class Model(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.experts = Experts(transposed)

    def forward(self, x):
        return self.experts(x)


def main(place: Path) -> None:
    for transposed in (False, True):
        for name, targets in (("wide", ["up", "down"]), ("square", ["square"])):
            model = Model(transposed)
            targets = [f"experts.{target}" for target in targets]
            config = peft.LoraConfig(
                r=2, lora_alpha=3, target_modules=[], target_parameters=targets
            )
            torch.manual_seed(0)
            wrapped = peft.get_peft_model(model, config)
            with torch.no_grad():
                for key, parameter in sorted(wrapped.named_parameters()):
                    if "lora_" in key:
                        parameter.copy_(torch.randn(parameter.shape))
            kind = "transposed" if transposed else "plain"
            out = place / f"{peft.__version__}-{kind}-{name}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapped.save_pretrained(str(out))
            (out / "README.md").unlink(missing_ok=True)
            merged = wrapped.merge_and_unload().state_dict()  # the base is zero
            deltas = {key: merged[key].contiguous() for key in targets}
            save_file(deltas, out / "deltas.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
