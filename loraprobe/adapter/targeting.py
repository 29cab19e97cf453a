"""Which modules peft would put an adapter on, by its config: weights for others have no effect."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

TIED = ("lm_head", "embed_out", "embed_tokens", "wte", "word_embeddings", "embed_in", "shared")
SECONDS = 1.0  # for a regular expression of a stranger's file


def untargeted(paths: Collection[str], config: Mapping[str, Any]) -> list[str]:
    """Paths that hold weights and that the config does not name, by peft's own rules.

    target_modules is a list of endings, a regular expression for the whole path, or a word such as
    "all-linear"; exclude_modules takes out; layers_to_transform keeps the layers of these numbers,
    which does not concern a path that target_modules gives in full. A config without
    target_modules leaves the choice to peft's table of architectures, which is not judged here.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, (list, tuple, str)) or targets in ("all-linear", "", [], ()):
        return []
    beyond = [path for path in paths if not _is_targeted(path, targets, config)]
    if config.get("ensure_weight_tying"):  # peft then adds the layer that shares its weight
        beyond = [path for path in beyond if path.rpartition(".")[2] not in TIED]
    return beyond


def _is_targeted(path: str, targets: Sequence[str] | str, config: Mapping[str, Any]) -> bool:
    excluded = config.get("exclude_modules")
    if isinstance(excluded, (str, list, tuple)) and excluded and _named(path, excluded):
        return False
    if isinstance(targets, str) or path in targets:
        return _named(path, targets)
    return _named(path, targets) and _in_layers(path, config)


def _named(path: str, names: Sequence[str] | str) -> bool:
    """A regular expression for the whole path, or a list of paths and endings."""
    if isinstance(names, str):
        import regex

        try:
            return regex.fullmatch(names, path, timeout=SECONDS) is not None
        except (regex.error, TimeoutError):
            return True  # not for us to judge; peft will say
    return any(path == name or path.endswith(f".{name}") for name in names)


def _in_layers(path: str, config: Mapping[str, Any]) -> bool:
    """Whether the first number of a path is one of layers_to_transform, where that is given."""
    layers = config.get("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    if not isinstance(layers, (list, tuple)) or not layers:
        return True
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    forms = [re.escape(str(pattern)) for pattern in patterns] or [r"[^.]*"]
    for form in forms:
        start = r".*?\." if not patterns else r"(?:^|.*?\.)"
        if found := re.match(rf"{start}{form}\.(\d+)\.", path):
            return int(found[1]) in layers
    return False
