"""Which modules peft would put an adapter on, by its config: weights for others have no effect."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

TIED = ("lm_head", "embed_out", "embed_tokens", "wte", "word_embeddings", "embed_in", "shared")
SECONDS = 1.0  # for all questions to a regular expression of a stranger's file


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
    excluded = config.get("exclude_modules")
    kept: Rule = Pattern(targets) if isinstance(targets, str) else Names(targets)
    out: Rule = Names(())
    if isinstance(excluded, (str, list, tuple)) and excluded:
        out = Pattern(excluded) if isinstance(excluded, str) else Names(excluded)
    try:
        beyond = [path for path in paths if not _is_targeted(path, kept, out, config)]
    except TimeoutError:
        return []  # not for us to judge; peft will say
    if config.get("ensure_weight_tying"):  # peft then adds the layer that shares its weight
        beyond = [path for path in beyond if path.rpartition(".")[2] not in TIED]
    return beyond


class Names:
    """A list of paths and endings of paths, asked about many paths."""

    def __init__(self, names: Sequence[object]) -> None:
        self.names = frozenset(map(str, names))
        self.longest = max(map(len, self.names), default=-1)

    def of(self, path: str) -> Iterator[str]:
        """The names that a path is, or ends with after a dot."""
        start = path.rfind(".") + 1
        while len(path) - start <= self.longest:
            if path[start:] in self.names:
                yield path[start:]
            if start == 0:
                return
            start = path.rfind(".", 0, start - 1) + 1

    def fits(self, path: str) -> bool:
        return next(self.of(path), None) is not None

    def in_full(self, path: str) -> bool:
        """Whether a name leaves nothing open about a path."""
        return path in self.names


class Pattern:
    """A regular expression for whole paths, by a stranger: all answers have a second together.

    Raises TimeoutError when it is over; what is no regular expression fits everything.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern, self.end = pattern, time.monotonic() + SECONDS

    def fits(self, path: str) -> bool:
        import regex

        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            return regex.fullmatch(self.pattern, path, timeout=left) is not None
        except regex.error:
            return True  # not for us to judge; peft will say

    def in_full(self, path: str) -> bool:
        return True


Rule = Names | Pattern


def _is_targeted(path: str, kept: Rule, out: Rule, config: Mapping[str, Any]) -> bool:
    if out.fits(path) or not kept.fits(path):
        return False
    return kept.in_full(path) or _in_layers(path, config)


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
