"""An audit whose texts may be shown: no control characters, none too long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from loraprobe.records import Audit
from loraprobe.report.formatting import clean


def shortened(audit: Audit, characters: int) -> Audit:
    """The audit with every text free of control characters and cut to a length."""

    def change(text: str) -> str:
        plain = clean(text)
        return plain if len(plain) <= characters else plain[: characters - 1] + "…"

    made: Audit = _texts(audit, change)
    return made


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_texts(held, change) for held in value)
    if isinstance(value, Mapping):
        return {change(key): _texts(held, change) for key, held in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        changed = {field.name: _texts(getattr(value, field.name), change) for field in fields}
        return dataclasses.replace(value, **changed)
    return value
