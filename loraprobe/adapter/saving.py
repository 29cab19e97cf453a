"""Adapter -> PEFT directory that peft loads to the same function; complete or not there at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprobe.adapter.config import CONFIG
from loraprobe.adapter.keys import PREFIX
from loraprobe.adapter.tensors import SAFETENSORS
from loraprobe.errors import OutputError, UnsupportedAdapter

if TYPE_CHECKING:
    from loraprobe.adapter.types import Adapter


def save_adapter(
    adapter: Adapter,
    directory: str | Path,
    *,
    overwrite: bool = False,
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and README.md (if a card is given).

    Everything is written beside the target and renamed into place. Raises OutputError if the
    target exists and overwrite is off, UnsupportedAdapter if extras would be lost.
    """
    from safetensors.torch import save_file

    if adapter.extras:
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} holds {adapter.extras[0]} beside its factors, which saving "
            "would lose."
        )
    target = Path(directory)
    check_output(target, overwrite)
    dtype = dtype or adapter.dtype
    tensors: dict[str, torch.Tensor] = {}
    for path, update in adapter.modules.items():
        embedding = adapter.layout[path].kind == "embedding"
        names = (
            ("lora_embedding_A", "lora_embedding_B")
            if embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        for name, factor in zip(names, (update.A, update.B), strict=True):
            tensors[f"{PREFIX}{path}.{name}"] = factor.to(dtype).contiguous().clone()
    with StagedDirectory(target, overwrite) as staging:
        save_file(tensors, str(staging / SAFETENSORS), metadata={"format": "pt"})
        text = json.dumps(config_of(adapter), indent=2, sort_keys=True, ensure_ascii=False)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")


def config_of(adapter: Adapter) -> dict[str, Any]:
    """The adapter_config.json under which peft computes what the adapter says.

    Ranks and scalings that differ from the commonest become patterns; their keys are whole paths,
    escaped, so that peft's suffix matching cannot confuse two modules.
    """
    infos = list(adapter.layout.values())
    r = Counter(i.rank for i in infos).most_common(1)[0][0]
    alpha = Counter(i.scaling * i.rank for i in infos).most_common(1)[0][0]
    kept = ("task_type", "revision", "inference_mode")
    return {
        **{key: adapter.config[key] for key in kept if key in adapter.config},
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "task_type": adapter.config.get("task_type", "CAUSAL_LM"),
        "r": r,
        "lora_alpha": _whole(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": any(i.kind == "conv1d" for i in infos),
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": [i.path for i in infos],
        "rank_pattern": {_exact(i.path): i.rank for i in infos if i.rank != r},
        "alpha_pattern": {
            _exact(i.path): _whole(i.scaling * i.rank) for i in infos if i.scaling * i.rank != alpha
        },
    }


def check_output(target: Path, overwrite: bool) -> None:
    """Raises OutputError if the target is in the way or its parent cannot be written."""
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another name or add --overwrite.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; give a directory.")


class StagedDirectory:
    """A directory that appears at its place whole, or not at all."""

    def __init__(self, target: Path, overwrite: bool = False) -> None:
        self.target, self.overwrite = target, overwrite

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.staging = Path(
                tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent)
            )
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {error.strerror}.") from None
        return self.staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if kind is not None:
            shutil.rmtree(self.staging, ignore_errors=True)
            if isinstance(error, OSError):
                raise OutputError(f"{self.target} cannot be written: {error.strerror}.") from None
            return
        for file in self.staging.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        self.staging.chmod(0o755)
        if self.target.exists():
            check_output(self.target, self.overwrite)
            old = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
            os.rename(self.target, old / "old")
            os.rename(self.staging, self.target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(self.staging, self.target)


def _exact(path: str) -> str:
    return re.escape(path)


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
