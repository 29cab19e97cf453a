"""Shelves of GPT-2 adapters: published ones, and such that peft saves in the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from making import SHARED, generator

from loraprobe.adapters import Adapter, read_adapter


class Shelf:
    """Adapters of GPT-2: three on domains, of which two began from one seed; `godspeed`, which is
    much larger; `distil`, of a base with fewer layers; a classifier.

    paths: by name. cosine: of the two that began from one seed; apart: of either and the third; and
    how near. sizes: of the base in which the adapters fit.
    """

    def __init__(
        self, paths: Mapping[str, Path], cosine: float, apart: float, near: float, sizes: Any
    ) -> None:
        self.paths, self.sizes = paths, sizes
        self.cosine, self.apart, self.near = cosine, apart, near

    def base(self, head: str = "LMHeadModel", **config: Any) -> Any:
        """A base with random weights, in which all but `distil` fit."""
        import transformers

        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        made = transformers.GPT2Config(**{**sizes, "n_positions": 64, **self.sizes, **config})
        return getattr(transformers, f"GPT2{head}")(made).eval()

    def adapters(self, *names: str) -> list[Adapter]:
        """The adapters of these names, read."""
        return [read_adapter(self.paths[name], name) for name in names]


DOMAINS = ("legal", "medical", "sports")


def published_shelf() -> Shelf:
    """The published adapters beside the repository."""
    names = {"godspeed": "gpt2-godspeed", "distil": "distilgpt2-niket"}
    names |= {"classifier": "gpt2-seqcls-deepbiolab"}
    names |= {name: f"gpt2-domain-skeleton/{name}" for name in DOMAINS}
    return Shelf({name: SHARED / folder for name, folder in names.items()}, 0.71, 0.20, 0.005, {})


def made_shelf(place: Path) -> Shelf:
    """Adapters of two layers of width 64 that peft saves."""
    from peft import LoraConfig, get_peft_model

    families = {"legal": 11, "medical": 12, "sports": 12, "godspeed": 14, "distil": 15}
    paths = {name: place / name for name in (*families, "classifier")}
    shelf = Shelf(paths, 0.68, 0.0, 0.04, {"n_layer": 2, "n_head": 2, "n_embd": 64})
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"]}
    for seed, (name, family) in enumerate({**families, "classifier": 16}.items()):
        scale = 0.5 if name == "godspeed" else 0.02
        head, task = "LMHeadModel", "CAUSAL_LM"
        if name == "classifier":
            head, task = "ForSequenceClassification", "SEQ_CLS"
        model = shelf.base(head, **({"n_layer": 1} if name == "distil" else {}))
        model.name_or_path = "distilgpt2" if name == "distil" else "gpt2"
        made = get_peft_model(model, LoraConfig(fan_in_fan_out=True, task_type=task, **config))
        for number, (path, parameter) in enumerate(made.named_parameters()):
            if ".lora_" not in path:
                continue
            own, common = (
                torch.randn(parameter.shape, generator=generator(1000 * key + number))
                for key in (seed, family)
            )
            if "lora_A" in path:
                parameter.data = common + 0.1 * own
            else:  # one large direction in common
                own[:, 0] += 3.1 * common[:, 0]
                parameter.data = own * scale
        made.save_pretrained(str(paths[name]))
    return shelf
