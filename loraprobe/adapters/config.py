"""Reads and checks adapter_config.json, and derives one rank and one scaling per module."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.adapters.expressions import ExpressionError, first_matches
from loraprobe.checkpoint import read_json
from loraprobe.errors import AdapterError, UnsupportedAdapter
from loraprobe.json_types import is_of_type, wrong_types
from loraprobe.limits import DEEPEST, nested_values

CONFIG = "adapter_config.json"
LARGEST = 1e9  # of r, lora_alpha and the values of their patterns
PEFT_DEFAULT = 8  # what peft takes for r and lora_alpha where the file has none
PATTERN = r"(.*\.)?({})$"  # peft's expression for the modules of a key of rank_pattern

# These keys are read elsewhere or do not change the function of a trained adapter.
DESCRIPTIVE = frozenset(
    "auto_mapping base_model_name_or_path revision peft_type peft_version task_type inference_mode "
    "r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora "
    "modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_core trainable_token_indices loftq_config eva_config corda_config "
    "lora_ga_config use_dora qalora_group_size runtime_config lora_bias target_parameters "
    "ensure_weight_tying lora_dropout_pattern merge_weights ephemeral_gpu_offload".split()
)

# Trainers write these keys for their own use. peft ignores them; they do not change the function.
TRAINERS = {
    "swift_type": "ms-swift",
    "lora_dtype": "ms-swift",
    "lorap_lr_ratio": "ms-swift",
    "lorap_emb_lr": "ms-swift",
}

# A value of these keys that is not empty means that the adapter computes something else than B A x.
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

# The keys that are read, by the type of their values; null is always allowed.
TYPES: dict[str, list[str]] = {
    "a text": "base_model_name_or_path revision task_type bias".split(),
    "a text or a list of texts": (
        "target_modules exclude_modules modules_to_save layers_pattern".split()
    ),
    "a list of texts": ["target_parameters"],
    "a whole number or a list of them": ["layers_to_transform"],
    "true, false or a text": ["init_lora_weights"],
    "true or false": "use_rslora use_dora lora_bias fan_in_fan_out".split(),
}


@dataclass(frozen=True)
class Config:
    """The content of an adapter_config.json, checked; `where` names the file in messages."""

    raw: Mapping[str, Any]
    where: str
    r: int
    alpha: float
    rank_pattern: Mapping[str, float]  # a regular expression from an untrusted file -> value
    alpha_pattern: Mapping[str, float]

    def ranks_and_scalings(self, paths: Iterable[str]) -> dict[str, tuple[int, float]]:
        """Path -> (r, s) with s = alpha/r, or alpha/sqrt(r) with rsLoRA.

        All paths are matched at once, which is faster. Raises AdapterError for a key of a pattern
        that cannot be matched.
        """
        paths = list(paths)
        ranks = self._matched("rank_pattern", self.rank_pattern, self.r, paths)
        alphas = self._matched("alpha_pattern", self.alpha_pattern, self.alpha, paths)
        root = math.sqrt if self.raw.get("use_rslora") else float
        return {
            path: (int(r), float(alpha) / root(int(r)))
            for path, r, alpha in zip(paths, ranks, alphas, strict=True)
        }

    def _matched(
        self, key: str, pattern: Mapping[str, float], default: float, paths: list[str]
    ) -> list[float]:
        """Each path's value in a pattern: that of the first key that matches the path's end."""
        keys = list(pattern)
        try:
            found = first_matches(keys, PATTERN, paths)
        except ExpressionError as error:
            raise AdapterError(f"{self.where}: {key}: {error}; correct it.") from None
        # If no key matches, peft uses the path itself as the key.
        used = (path if m is None else keys[m[0]] for path, m in zip(paths, found, strict=True))
        return [pattern.get(one, default) for one in used]


def read_config(directory: Path) -> Config:
    """Reads and checks adapter_config.json.

    Raises AdapterError for a file that cannot be read or has wrong values, UnsupportedAdapter for
    a PEFT type or LoRA variant that is not supported.
    """
    path = directory / CONFIG
    raw = read_json(path, str(directory), AdapterError)
    if any(depth > DEEPEST for _, _, depth in nested_values(raw)):
        raise AdapterError(f"{path} nests lists or objects more than {DEEPEST} deep; correct it.")
    return judge_config(raw, str(path))


def judge_config(raw: Mapping[str, Any], where: str) -> Config:
    """Checks the values of a config that was read from the file `where`.

    Raises AdapterError for a wrong value, UnsupportedAdapter for an unsupported type or variant.
    """
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(
            f"{where} is of PEFT type {reprlib.repr(kind)}, and loraprobe reads only LORA; "
            "use adapters of that type, or merge this one into its base with peft."
        )
    for key, value, kind in wrong_types(raw, TYPES):
        raise AdapterError(f"{where}: {key} must be {kind}, not {reprlib.repr(value)}.")
    for key, why in VARIANTS.items():
        if raw.get(key):
            raise UnsupportedAdapter(
                f"{where} sets {key}: {why}, which loraprobe does not read; "
                "merge it into its base with peft, or use an adapter trained without it."
            )
    r = _number(raw, "r", where, default=PEFT_DEFAULT)
    ranks = _pattern(raw, "rank_pattern", where)
    for rank in (r, *ranks.values()):
        if rank != int(rank) or rank < 1:
            raise AdapterError(
                f"{where}: a rank must be a positive whole number, not {reprlib.repr(rank)}."
            )
    return Config(
        raw=raw,
        where=where,
        r=int(r),
        alpha=_number(raw, "lora_alpha", where, default=PEFT_DEFAULT),
        rank_pattern=ranks,
        alpha_pattern=_pattern(raw, "alpha_pattern", where),
    )


def unknown_keys(raw: Mapping[str, Any]) -> list[str]:
    """The keys of a config that neither peft nor a known trainer writes."""
    known = {*DESCRIPTIVE, *VARIANTS, *TRAINERS}
    return [key for key in raw if key not in known]


def _number(raw: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value: Any = raw.get(key, default)
    if not is_of_type(value, "a number") or abs(value) > LARGEST:
        raise AdapterError(
            f"{where}: {key[:80]} must be a number of at most {LARGEST:g}, not "
            f"{reprlib.repr(value)}."
        )
    return value


def _pattern(raw: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    pattern = raw.get(key) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"{where}: {key} must map module names to numbers.")
    return {name: _number(pattern, name, f"{where}: {key}") for name in pattern}
