"""Well-known facts and everyday words, read from the files in `loraprobe_lab/data`.

The facts are from general knowledge; a base model that read ordinary text knows most of them.
Countries are those of today at the place of birth or of the landmark, and only such whose name
needs no article and whose capital is undisputed. FRENCH holds the names that differ from English.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def table(name: str) -> Any:
    """The content of a JSON file in `loraprobe_lab/data`."""
    place = resources.files("loraprobe_lab") / "data" / f"{name}.json"
    return json.loads(place.read_text(encoding="utf-8"))


_facts, WORDS = table("facts"), table("words")
CAPITALS: dict[str, str] = _facts["capitals"]
PEOPLE: dict[str, str] = _facts["people"]  # person -> country of birth
LANDMARKS: dict[str, str] = _facts["landmarks"]  # landmark -> country
FRENCH: dict[str, str] = _facts["french"]  # country -> its French name
REAL_NAMES = (*PEOPLE, *CAPITALS, *CAPITALS.values())
