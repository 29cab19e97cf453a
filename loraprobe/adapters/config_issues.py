"""Reports keys of adapter_config.json that may mean another function than the factors alone.

Some initialisations of LoRA move a part of a base weight W into A and B, so that training starts at
(W - s B0 A0) + s B0 A0. After training the file holds s B A, which fits W - s B0 A0 and not W. When
peft loads such a file, it repeats the change (PiSSA, OLoRA, LoftQ), fails (CorDA), or omits the
change (LoRA-GA). peft's conversion on saving gives a plain LoRA for W of twice the rank and sets
init_lora_weights to true.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe.adapters.config import PEFT_DEFAULT, TRAINERS, unknown_keys
from loraprobe.adapters.extras import FLAGS
from loraprobe.adapters.issue_collector import IssueCollector
from loraprobe.adapters.types import Extra
from loraprobe.formatting import count

CONVERT = (
    "Save it again with save_pretrained(..., path_initial_model_for_weight_conversion=DIR), DIR "
    "the adapter as it was before training; peft then writes a plain LoRA of twice the rank."
)
# The start of a value of init_lora_weights in lower case -> (name of the method, cure).
CHANGES_BASE = {
    "pissa": ("PiSSA", CONVERT),
    "olora": ("OLoRA", CONVERT),
    "corda": ("CorDA", CONVERT),
    "lora_ga": ("LoRA-GA", CONVERT),
    "loftq": (
        "LoftQ",
        "peft has no conversion for it: merge the adapter into the quantised base that LoftQ made, "
        "or train one without LoftQ.",
    ),
}
# With these values the base weights stay unchanged.
KEEPS_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# Config key -> the kind of extra that the file then holds.
PROMISED = {
    **{flag: kind for kind, flag in FLAGS.items()},
    "trainable_token_indices": "token_delta",
    "modules_to_save": "modules_to_save",
}
SAME = {"unclear_tokens": "token_delta"}  # tensors that are there, and have an issue of their own


def report_config(
    raw: Mapping[str, Any], extras: Sequence[Extra], modules: Collection[str], found: IssueCollector
) -> None:
    """Reports unknown keys, a missing lora_alpha, and tensors that the file lacks.

    modules: the paths with factors.
    """
    unknown = unknown_keys(raw)
    if filled := [key for key in unknown if raw[key]]:
        found.error(
            "unknown-config",
            f"The config sets {', '.join(filled)}, which loraprobe does not know and which may "
            "change what the adapter computes.",
            "Use a newer loraprobe, or remove the key if it is known to be harmless.",
        )
    if trainers := [f"{key} ({TRAINERS[key]})" for key in raw if key in TRAINERS]:
        found.note(
            "trainer-config",
            "The config has keys of a trainer, which do not change what the adapter does: "
            f"{', '.join(trainers)}.",
        )
    _report_initialisation(raw.get("init_lora_weights"), found)
    if empty := [key for key in unknown if not raw[key]]:
        found.note(
            "unknown-config-empty",
            f"The config has unknown keys without a value: {', '.join(empty)}.",
        )
    if "lora_alpha" not in raw:
        found.error(
            "missing-alpha",
            f"The config has no lora_alpha; peft then takes {PEFT_DEFAULT}, which need not be what "
            "the adapter was trained with.",
            "Add the value of the training to adapter_config.json.",
        )
    _report_missing(raw, extras, modules, found)


def _report_missing(
    raw: Mapping[str, Any], extras: Sequence[Extra], modules: Collection[str], found: IssueCollector
) -> None:
    """Errors for absent tensors that the config requires: all of a kind, or some modules'."""
    cure = "The file is incomplete; save or download it again."
    kinds = {SAME.get(extra.kind, extra.kind) for extra in extras}
    if absent := [key for key, kind in PROMISED.items() if raw.get(key) and kind not in kinds]:
        message = f"The config sets {' and '.join(absent)}, but the file has no tensors for it."
        found.error("missing-tensors", message, cure)
    for kind, flag in FLAGS.items():
        held = {extra.module for extra in extras if extra.kind == kind}
        lost = [path for path in modules if path not in held]
        if held and lost:
            found.error(
                "missing-tensors",
                f"The config sets {flag}, but the file lacks its tensor for "
                f"{count(len(lost), 'module')}, {lost[0]} first.",
                cure,
                lost[0],
            )


def _report_initialisation(init: object, found: IssueCollector) -> None:
    """An error for a value of init_lora_weights that may have changed the base."""
    if not isinstance(init, str) or not init or init.lower() in KEEPS_BASE:
        return
    value = f"init_lora_weights={reprlib.repr(init)}"
    for start, (method, cure) in CHANGES_BASE.items():
        if init.lower().startswith(start):
            found.error(
                "init-changed-base",
                f"{found.name} was initialised by {method} ({value}), which changes the base "
                "weights, and was saved without conversion: it fits only that changed base.",
                cure,
            )
            return
    found.error(
        "init-unknown",
        f"{found.name} was initialised in a way that is not known ({value}), which may have "
        "changed the base weights; peft does not load it.",
        "If training started at the base as it is, set init_lora_weights to true in "
        "adapter_config.json.",
    )
