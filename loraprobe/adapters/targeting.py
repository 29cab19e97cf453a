"""Tells which modules a config targets by peft's rules; peft ignores weights for other modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from loraprobe.adapters.expressions import first_matches
from loraprobe.adapters.paths import VOCABULARY, number

# peft's expression for a module in modules_to_save, or inside of such a module.
SAVED = r"(^|.*\.){}($|\..*)"
# peft's expressions for the layer number in a path, with and without layers_pattern.
LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def untargeted(paths: Collection[str], config: Mapping[str, Any]) -> list[str]:
    """The paths (modules with weights) that the config does not target, by peft's rules.

    target_modules is a list of endings, a regular expression for the whole path, or the word
    "all-linear", which stands for full paths. exclude_modules and modules_to_save remove paths.
    layers_to_transform keeps the layers with these numbers; it does not apply to a full path in
    target_modules. Without target_modules peft takes endings from a table of architectures. Raises
    ExpressionError for an expression that `re` cannot match.
    """
    targets, paths = config.get("target_modules"), list(paths)
    saved = [str(name) for name in config.get("modules_to_save") or ()]
    out = _fitting(paths, config.get("exclude_modules")) | _matching(saved, SAVED, paths)
    if not isinstance(targets, (list, tuple, str)) or not targets:
        kept = _in_layers(paths, config)
    elif isinstance(targets, str):
        kept = set(paths) if targets.lower() == "all-linear" else _fitting(paths, targets)
    else:
        kept = _fitting(paths, targets) & (_in_layers(paths, config) | set(map(str, targets)))
    beyond = [path for path in paths if path in out or path not in kept]
    if config.get("ensure_weight_tying"):  # peft then adds the layer that shares its weight
        beyond = [path for path in beyond if path.rpartition(".")[2] not in VOCABULARY]
    return beyond


class Names:
    """A list of paths and endings of paths that is matched with many paths."""

    def __init__(self, names: Sequence[object]) -> None:
        self.names = frozenset(map(str, names))
        self.longest = max(map(len, self.names), default=-1)

    def of(self, path: str) -> Iterator[str]:
        """The names that equal the path or its end after a dot."""
        start = path.rfind(".") + 1
        while len(path) - start <= self.longest:
            if path[start:] in self.names:
                yield path[start:]
            if start == 0:
                return
            start = path.rfind(".", 0, start - 1) + 1

    def fits(self, path: str) -> bool:
        return next(self.of(path), None) is not None


def _fitting(paths: Sequence[str], rule: Any) -> set[str]:
    """The paths that match a list of names or a regular expression."""
    if isinstance(rule, str) and rule:
        return _matching([rule], "{}", paths, whole=True)
    names = Names(rule if isinstance(rule, (list, tuple)) else ())
    return {path for path in paths if names.fits(path)}


def _matching(
    expressions: Sequence[str], form: str, paths: Sequence[str], *, whole: bool = False
) -> set[str]:
    found = first_matches(expressions, form, paths, whole=whole)
    return {path for path, match in zip(paths, found, strict=True) if match}


def _in_layers(paths: Sequence[str], config: Mapping[str, Any]) -> set[str]:
    """The paths whose layer number is in layers_to_transform; all paths without that key."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return set(paths)
    wanted = frozenset(layers if isinstance(layers, (list, tuple)) else [layers])
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    found = first_matches(patterns or [""], LAYER if patterns else ANY_LAYER, paths)
    numbers = [None if match is None else number(match[1] or "") for match in found]
    return {p for p, n in zip(paths, numbers, strict=True) if n is not None and n in wanted}
