"""adapter_config.json: read, judged, and its conventions folded into one scaling per module."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.checkpoint import read_json
from loraprobe.errors import AdapterError, UnsupportedAdapter

CONFIG = "adapter_config.json"
PEFT_DEFAULT = 8  # what peft takes for r and lora_alpha where the file has none
PATTERN_SECONDS = 1.0

# Keys that say nothing about the function of the trained adapter, whatever their value.
DESCRIPTIVE = frozenset(
    "auto_mapping base_model_name_or_path revision peft_type peft_version task_type inference_mode "
    "r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora "
    "modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_core trainable_token_indices loftq_config eva_config corda_config "
    "lora_ga_config use_dora qalora_group_size runtime_config lora_bias target_parameters "
    "ensure_weight_tying lora_dropout_pattern merge_weights ephemeral_gpu_offload".split()
)

# Keys of the installed peft whose other values are mathematics that is not B A x.
VARIANTS = {
    "use_qalora": "QALoRA pools the input before A",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA changes the base weights and scales by its own diagonal",
    "monteclora_config": "MonteCLoRA samples its factors",
    "velora_config": "VeLoRA compresses the input of A",
    "arrow_config": "an Arrow configuration belongs to a routed model, not to one adapter",
    "enable_lora": "the fused layers of the first peft versions group their factors",
    "layer_replication": "layer replication changes the base's depth",
    "megatron_config": "Megatron layers split their weights over devices",
}

# What values may be of keys that are read further; None is always allowed. A list is one of texts.
TYPES: dict[str, tuple[type, ...]] = {
    "base_model_name_or_path": (str,),
    "revision": (str,),
    "task_type": (str,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "modules_to_save": (str, list),
    "layers_pattern": (str, list),
    "target_parameters": (list,),
    "init_lora_weights": (bool, str),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "lora_bias": (bool,),
    "fan_in_fan_out": (bool,),
    "bias": (str,),
}
SAID = {str: "a text", list: "a list of texts", bool: "true or false"}


@dataclass(frozen=True)
class Config:
    """What of adapter_config.json decides the adapter's function."""

    raw: Mapping[str, Any]
    r: int
    alpha: float
    rslora: bool
    fan_in_fan_out: bool
    rank_pattern: Patterns
    alpha_pattern: Patterns
    unknown: tuple[str, ...]
    empty_unknown: tuple[str, ...]
    alpha_is_missing: bool = False

    def rank(self, path: str) -> int:
        """The rank that the config gives a module."""
        return int(self.rank_pattern.value(path, self.r))

    def scaling(self, path: str) -> float:
        """s = alpha/r, or alpha/sqrt(r) with rsLoRA, by peft's own matching of patterns."""
        r = self.rank(path)
        alpha = float(self.alpha_pattern.value(path, self.alpha))
        return alpha / (math.sqrt(r) if self.rslora else r)


@dataclass(frozen=True)
class Patterns:
    """rank_pattern or alpha_pattern: keys are regular expressions, compiled once.

    They come from a stranger's file, so that matching has a time limit.
    """

    where: str
    entries: Mapping[str, float]

    @functools.cached_property
    def compiled(self) -> list[tuple[Any, float]]:
        if not self.entries:
            return []
        import regex

        try:
            return [(regex.compile(rf"(.*\.)?({k})$"), v) for k, v in self.entries.items()]
        except regex.error as error:
            raise AdapterError(f"{self.where} holds a key that is no regular expression "
                               f"({error}); correct it.") from None  # fmt: skip

    def value(self, path: str, default: float) -> float:
        """peft's rule: the first key that matches the end of the path, as a regular expression."""
        try:
            for pattern, value in self.compiled:
                if pattern.match(path, timeout=PATTERN_SECONDS):
                    return value
        except TimeoutError:
            raise AdapterError(f"{self.where} holds a regular expression that does not come to "
                               f"an end; correct it.") from None  # fmt: skip
        return default


def read_config(directory: Path) -> Config:
    """Reads adapter_config.json. Raises AdapterError, or UnsupportedAdapter by name."""
    path = directory / CONFIG
    if not directory.is_dir():
        raise AdapterError(f"There is no directory {directory}; check the path.")
    if not path.is_file():
        raise AdapterError(
            f"{directory} has no {CONFIG}, so it is no PEFT adapter; "
            "give the directory that save_pretrained wrote."
        )
    raw = read_json(path, str(directory), AdapterError)
    return judge_config(raw, str(path))


def judge_config(raw: Mapping[str, Any], where: str) -> Config:
    """A config's values checked and its variants refused by name."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(
            f"{where} is of PEFT type {kind!r}, and loraprobe reads only LORA; "
            "use adapters of that type, or merge this one into its base with peft."
        )
    for key, types in TYPES.items():
        _typed(raw, key, types, where)
    _check_layers(raw.get("layers_to_transform"), where)
    for key, why in VARIANTS.items():
        if raw.get(key):
            raise UnsupportedAdapter(
                f"{where} sets {key}: {why}, which loraprobe does not read; "
                "merge it into its base with peft, or use an adapter trained without it."
            )
    r = _number(raw, "r", where, default=PEFT_DEFAULT)
    ranks = _pattern(raw, "rank_pattern", where)
    for rank in (r, *ranks.entries.values()):
        if rank != int(rank) or rank < 1:
            raise AdapterError(f"{where}: a rank must be a positive whole number, not {rank!r}.")
    unknown = [k for k in raw if k not in DESCRIPTIVE and k not in VARIANTS]
    return Config(
        raw=raw,
        r=int(r),
        alpha=_number(raw, "lora_alpha", where, default=PEFT_DEFAULT),
        rslora=bool(raw.get("use_rslora")),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        rank_pattern=ranks,
        alpha_pattern=_pattern(raw, "alpha_pattern", where),
        unknown=tuple(k for k in unknown if raw[k]),
        empty_unknown=tuple(k for k in unknown if not raw[k]),
        alpha_is_missing="lora_alpha" not in raw,
    )


def _typed(raw: Mapping[str, Any], key: str, types: tuple[type, ...], where: str) -> None:
    """Raises AdapterError for a value that peft would stumble over."""
    value = raw.get(key)
    if value is None:
        return
    texts = not isinstance(value, list) or all(isinstance(part, str) for part in value)
    if not isinstance(value, types) or not texts:
        kinds = " or ".join(SAID[kind] for kind in types)
        raise AdapterError(f"{where}: {key} must be {kinds}, not {value!r:.80}.")


def _check_layers(layers: Any, where: str) -> None:
    """layers_to_transform is a number or a list of numbers."""
    listed = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in listed):
        raise AdapterError(f"{where}: layers_to_transform must be a whole number or a list of "
                           f"them, not {layers!r:.80}.")  # fmt: skip


def _number(raw: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AdapterError(f"{where}: {key} must be a number, not {value!r}.")
    return value


def _pattern(raw: Mapping[str, Any], key: str, where: str) -> Patterns:
    pattern = raw.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"{where}: {key} must map module names to numbers.")
    place = f"{where}: {key}"
    return Patterns(place, {name: _number(pattern, name, place) for name in pattern})
