"""The stable codes of reasons, from codes.toml, those first that change most what a person does."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Code:
    """What a code means, and where the answer of twelve lines tells it, if anywhere.

    line: "why" explains a decision that is not `likely`, "watch" is counted as a warning, "lacks"
    says what the items do not have. sure: it tells how sure the verdict is.
    """

    meaning: str
    line: Literal["why", "watch", "lacks", ""] = ""
    sure: bool = False


_READ = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
CODES: Mapping[str, Code] = {
    name: Code(**row) for group in _READ.values() for name, row in group.items()
}
_PLACES = {name: place for place, name in enumerate(_READ["by-effect"])}


def effect(code: str) -> int:
    """The place of a code: a smaller one changes more of what a person does."""
    return _PLACES.get(code, len(_PLACES))
