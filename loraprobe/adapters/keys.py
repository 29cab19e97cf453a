"""Tells the role of each tensor key of a PEFT file."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "base_model.model."

_FACTOR = re.compile(r"^(?P<path>.+?)\.lora_(?P<which>A|B)(?:\.(?P<adapter>[^.]+))?\.weight$")
_EMBEDDING = re.compile(r"^(?P<path>.+?)\.lora_embedding_(?P<which>A|B)(?:\.[^.]+)?$")
_MAGNITUDE = re.compile(r"^(?P<path>.+?)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?$")
_LORA_BIAS = re.compile(r"^(?P<path>.+?)\.lora_B(?:\.[^.]+)?\.bias$")
_TOKENS = re.compile(r"^(?P<path>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?$")
_BASE = re.compile(r"^(?P<path>.+?)\.(?:base_layer|original_module)\.(?P<what>weight|bias)$")
_SAVED = re.compile(r"^(?P<path>.+?)\.(?:modules_to_save\.[^.]+\.)?(?P<what>weight|bias)$")


@dataclass(frozen=True)
class Key:
    """The role of a key: "A", "B" (linear), "eA", "eB" (embedding), or the kind of an extra."""

    role: str
    path: str | None


def classify(key: str) -> Key:
    """The role of a key, and the module path in the base model that it belongs to."""
    name = key.removeprefix(PREFIX)
    if match := _FACTOR.match(name):
        path = match["path"]
        # A second targeted parameter of one module nests under `.base_layer`.
        role = "target_parameter" if path.endswith(".base_layer") else match["which"]
        return Key(role, path)
    if match := _EMBEDDING.match(name):
        return Key("e" + match["which"], match["path"])
    for pattern, role in (
        (_MAGNITUDE, "dora_magnitude"),
        (_LORA_BIAS, "lora_bias"),
        (_TOKENS, "token_delta"),
    ):
        if match := pattern.match(name):
            return Key(role, match["path"])
    if any(part.startswith("lora") for part in name.split(".")):
        return Key("unknown", None)  # another tool's names, such as lora_down and lora_up
    if match := _BASE.match(name):
        return Key("base_copy" if match["what"] == "weight" else "bias", match["path"])
    if match := _SAVED.match(name):
        return Key("modules_to_save" if match["what"] == "weight" else "bias", match["path"])
    return Key("unknown", None)
