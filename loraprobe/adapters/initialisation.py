"""Reports initialisations of LoRA that change the base weights.

They move a part of a base weight W into A and B, so that training starts at
(W - s B0 A0) + s B0 A0. After training the file holds s B A, which fits W - s B0 A0 and not W. When
peft loads such a file, it repeats the change (PiSSA, OLoRA, LoftQ), fails (CorDA), or omits the
change (LoRA-GA). peft's conversion on saving gives a plain LoRA for W of twice the rank and sets
init_lora_weights to true.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator

from loraprobe.records import Issue

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


def initialisation_issues(name: str, init: object) -> Iterator[Issue]:
    """An error for a value of init_lora_weights that may have changed the base."""
    if not isinstance(init, str) or not init or init.lower() in KEEPS_BASE:
        return
    for start, (method, cure) in CHANGES_BASE.items():
        if init.lower().startswith(start):
            message = (
                f"{name} was initialised by {method} (init_lora_weights={reprlib.repr(init)}), "
                "which changes the base weights, and was saved without conversion: it fits only "
                "that changed base."
            )
            yield Issue("error", "init-changed-base", (name,), message, cure)
            return
    message = (
        f"{name} was initialised in a way that is not known "
        f"(init_lora_weights={reprlib.repr(init)}), which may have changed the base weights; peft "
        "does not load it."
    )
    cure = (
        "If training started at the base as it is, set init_lora_weights to true in "
        "adapter_config.json."
    )
    yield Issue("error", "init-unknown", (name,), message, cure)
