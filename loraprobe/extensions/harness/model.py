"""What `merge` and `route` write, as a model of lm-evaluation-harness:

    lm_eval --model loraprobe --model_args composition=DIR,base=B --tasks TASK

The harness finds `CompositionLM` by the entry point of the group `lm_eval.models` in
pyproject.toml. lm-eval 0.4.13 reads no entry points yet; `python -m loraprobe.extensions.harness`
is its command with this model.
"""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import loraprobe
from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.extensions.harness.system_lm import SystemLM
from loraprobe.formatting import nearest
from loraprobe.options import MachineOptions, Options
from loraprobe.pipeline.evaluator import open_scorer
from loraprobe.pipeline.inputs import base_of
from loraprobe.routing import FILE
from loraprobe.routing.constant import single
from loraprobe.session import Session

NOT_GIVEN = "cuda:0"  # the device of lm-eval's command without --device, as if there was a GPU


class CompositionLM(SystemLM):
    """The base model with an adapter or a saved composition in it.

    composition: a directory of `route`, or an adapter: a merge or any other, as the command line
    takes it. base: a directory, a Hub id, or "auto" for what the adapters name. options: those of
    `MachineOptions`; lm-eval adds its own --device and --batch_size. None is what was not given.

    Raises LoraprobeError for what cannot be opened or does not fit, and for an unknown option.
    """

    def __init__(self, composition: str, base: str = "auto", **options: Any) -> None:
        options.pop("max_batch_size", None)  # a limit of the batches that the scorer finds itself
        known = [one.name for one in fields(MachineOptions)]
        for name in options:
            if name not in known:
                lead = f"--model_args of loraprobe have no {name!r}:"
                raise UsageError(lead, nearest(name, ["composition", "base", *known]))
        if "batch_size" in options:  # "auto:4" asks the harness to look for the size 4 times
            options["batch_size"] = str(options["batch_size"]).partition(":")[0]
        if options.get("device") == NOT_GIVEN and not torch.cuda.is_available():
            options["device"] = "auto"
        session = Session(Options.of(options))
        composed = opened(composition)
        found = base_of(base, composed.experts, code=session.options.trust_remote_code)
        super().__init__(open_scorer(found, session.options.dtype, session)[0])
        self._device = self.scorer.model.device
        self._entered = contextlib.ExitStack()  # the composition stays in the model
        self._entered.enter_context(composed.into(self.scorer.model))


def opened(reference: str) -> Composition:
    """The composition of a directory of `route`; one adapter by itself for any other reference."""
    if (Path(reference).expanduser() / FILE).is_file():
        return loraprobe.load_composition(Path(reference).expanduser())
    return single(loraprobe.load(reference))
