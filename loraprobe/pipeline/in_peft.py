"""What peft itself computes with an adapter on a base."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from loraprobe.base import Base


def log_probabilities(base: Base, directory: Path | None, tokens: Sequence[int]) -> Tensor:
    """The log-probabilities of the next token, [tokens, vocabulary], in float32 on the CPU.

    directory: the adapter's, None for the base alone. tokens: a prompt; row i follows its first
    i + 1 tokens. Raises BaseError if the base cannot be loaded.
    """
    from peft import PeftModel

    model = base.load_model()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if directory is not None:
            model = PeftModel.from_pretrained(model, str(directory)).eval()
        return model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
