"""The stable codes of reasons with their sentences, from codes.toml.

The codes that change most what a person does come first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraprobe import defaults
from loraprobe.records import Reason


@dataclass(frozen=True)
class Code:
    """What a code means, and where the answer of twelve lines tells it, if anywhere.

    line: "why" explains a decision that is not `likely`, "watch" is counted as a warning, "lacks"
    says what the items do not have. sure: it tells how sure the verdict is. severity: that of a
    reason that does not decide. source: where its threshold comes from. text: its sentence, with
    what `reason_of` fills in in braces; "{text}" for those of geometry.toml.
    """

    meaning: str
    line: Literal["why", "watch", "lacks", ""] = ""
    sure: bool = False
    severity: Literal["decisive", "warning", "info"] = "info"
    source: str = ""
    text: str = "{text}"


_READ = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_SOURCES = {key: text.format(**vars(defaults)) for key, text in _READ["sources"].items()}
CODES: Mapping[str, Code] = {
    name: Code(
        **{**row, "source": _SOURCES.get(row.get("source", name), "")},
        text=_READ["text"].get(name, Code.text),
    )
    for group in ("by-effect", "by-rule")
    for name, row in _READ[group].items()
}
_PLACES = {name: place for place, name in enumerate(_READ["by-effect"])}


def effect(code: str) -> int:
    """The place of a code: a smaller one changes more of what a person does."""
    return _PLACES.get(code, len(_PLACES))


def reason_of(
    code: str,
    value: float | None = None,
    threshold: float | None = None,
    *,
    decisive: bool = False,
    source: str = "",
    **words: object,
) -> Reason:
    """A reason with the sentence, the severity and the source of its code.

    words: what its sentence names beside value and threshold; it need not name all. decisive: it
    carries the decision. source: where its code has none.
    """
    known = CODES[code]
    message = known.text.format(value=value, threshold=threshold, **words)
    severity = "decisive" if decisive else known.severity
    return Reason(code, message, value, threshold, source or known.source, severity)
