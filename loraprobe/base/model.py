"""Opens a base model's directory, and loads the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters.config import CONFIG
from loraprobe.base.files import BaseFiles
from loraprobe.base.loading import DeviceMap, Quantize, load_model, refuse_own_code
from loraprobe.base.quiet import quiet
from loraprobe.base.tokenizer import load_tokenizer
from loraprobe.checkpoint import check_link, read_json
from loraprobe.errors import BaseError


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model in memory (eval mode, gradients off) and its tokenizer."""

    model: Any
    tokenizer: Any
    base: Base


class Base(BaseFiles):
    """A base model: its files, which are read when needed, and `load`."""

    def load(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantize: Quantize = "none",
        device_map: DeviceMap = "none",
    ) -> LoadedBase:
        """Loads the model (eval mode, no gradients) and its tokenizer without any output.

        The repository's code runs only with trust_remote_code=True. quantize: "4bit" (NF4) or
        "8bit" (LLM.int8) by bitsandbytes while loading, computing in `dtype`. device_map: "auto"
        lets accelerate choose the devices and ignores `device`. Raises BaseError if the
        architecture is unknown, the tokenizer, weights or a package are missing; OutOfMemory if
        the model does not fit.
        """
        self._check(trust_remote_code)
        with quiet():
            tokenizer = load_tokenizer(self.path, self.reference, trust_remote_code)
        model = self.load_model(device, dtype, trust_remote_code, quantize, device_map)
        return LoadedBase(model, tokenizer, self)

    def load_model(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantize: Quantize = "none",
        device_map: DeviceMap = "none",
    ) -> Any:
        """Loads the model alone, as `load` does."""
        self._check(trust_remote_code)
        with quiet():
            model = load_model(self, device, dtype, trust_remote_code, quantize, device_map)
        model.requires_grad_(False)
        return model.eval()

    def _check(self, trust_remote_code: bool) -> None:
        refuse_own_code(self, trust_remote_code)
        for file in self.path.iterdir():  # transformers would follow any link
            check_link(file, self.reference)
        _ = self.stored


def open_base(path: str | Path, reference: str | None = None, commit: str | None = None) -> Base:
    """Opens a base model's directory; no weight is read. Raises BaseError if it is none."""
    path = Path(path)
    reference = reference or str(path)
    if not path.is_dir():
        raise BaseError(
            f"{reference} is not a directory; --base takes a base model's directory or a Hub id."
        )
    if not (path / "config.json").is_file():
        if (path / CONFIG).is_file():
            config = read_json(path / CONFIG, reference)
            named = config.get("base_model_name_or_path") or "auto"
            raise BaseError(f"{reference} is an adapter, not a base model; pass --base {named}.")
        raise BaseError(
            f"{reference} has no config.json; --base takes a directory as save_pretrained writes "
            "it."
        )
    base = Base(reference, path, commit)
    _ = base.config
    return base
