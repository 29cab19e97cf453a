"""The keys of a PEFT file: what each tensor is."""

from __future__ import annotations

import re

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<path>.+?)\.lora_(?P<which>A|B)(?:\.[^.]+)?\.weight")
_EMBEDDING = re.compile(r"(?P<path>.+?)\.lora_embedding_(?P<which>A|B)(?:\.[^.]+)?")
_EXTRAS = {
    "dora_magnitude": re.compile(r"(?P<path>.+?)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?"),
    "lora_bias": re.compile(r"(?P<path>.+?)\.lora_B(?:\.[^.]+)?\.bias"),
    "token_delta": re.compile(
        r"(?P<path>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?"
    ),
}
# The kind of a weight -> its key; a bias of both forms is a trained bias.
_WHOLE = {
    "base_copy": re.compile(
        r"(?P<path>.+?)\.(?:base_layer|original_module)\.(?P<what>weight|bias)"
    ),
    "modules_to_save": re.compile(
        r"(?P<path>.+?)\.(?:modules_to_save\.[^.]+\.)?(?P<what>weight|bias)"
    ),
}


def classify(key: str) -> tuple[str, str | None]:
    """The role of a key, and the module path in the base model that it belongs to.

    The role is "A", "B" (linear), "eA", "eB" (embedding), or the kind of an extra.
    """
    name = key.removeprefix(PREFIX)
    if match := _FACTOR.fullmatch(name):
        return match["which"], match["path"]
    if match := _EMBEDDING.fullmatch(name):
        return "e" + match["which"], match["path"]
    for kind, pattern in _EXTRAS.items():
        if match := pattern.fullmatch(name):
            return kind, match["path"]
    if any(part.startswith("lora") for part in name.split(".")):
        return "unknown", None  # another tool's names, such as lora_down and lora_up
    for kind, pattern in _WHOLE.items():
        if match := pattern.fullmatch(name):
            return kind if match["what"] == "weight" else "bias", match["path"]
    return "unknown", None
