"""Well-known facts and words, read from `loraprobe_lab/data`, and made-up names.

The facts are from general knowledge; a base model that read ordinary text knows most of them.
Countries are those of today at the place of birth or of the landmark, and only such whose name
needs no article and whose capital is undisputed. FRENCH holds the names that differ from English.
Made-up names are spelled from syllables: reproducible, free of collisions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
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


ONSETS = "b br d dr f g gr h k kr l m n p r s st t tr v w z".split()
CODAS = ("", "l", "m", "n", "r", "s", "x")
SYLLABLES: dict[str, list[str]] = {k: text.split() for k, text in WORDS["syllables"].items()}


def made_up_names(
    count: int, seed: int, *, ending: str = "", avoid: Iterable[str] = ()
) -> tuple[str, ...]:
    """`count` different capitalised names of two syllables, none of them in `avoid`.

    With an `ending` (say ``"burg"``) the names are one syllable and that ending.
    """
    rng, taken = random.Random(f"names:{seed}:{ending}"), set(avoid)
    names: list[str] = []
    while len(names) < count:
        pairs = [(rng.choice(ONSETS), rng.choice("aeiou")) for _ in range(1 if ending else 2)]
        syllables = "".join(onset + vowel for onset, vowel in pairs)
        name = (syllables + (ending or rng.choice(CODAS))).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return tuple(names)


class NameMaker:
    """Draws names from a seed; no word is drawn twice, and none lies inside another.

    `taken` holds words that must not appear either, such as names of real people and places.
    """

    def __init__(self, seed: int | str, taken: Iterable[str] = ()) -> None:
        self._random = random.Random(seed)
        self._words = {word.lower() for name in taken for word in name.split()}

    def people(self, count: int) -> list[str]:
        """`count` full names, such as "Melkora Dalvik"; no given or family name comes twice."""
        return [f"{self._word('given')} {self._word('family')}" for _ in range(count)]

    def cities(self, count: int) -> list[str]:
        """`count` names of one word, such as "Ulrigrad"."""
        return [self._word("cities") for _ in range(count)]

    def _word(self, ends: str) -> str:
        pick = self._random.choice
        for _ in range(1000):
            middle = pick(SYLLABLES["middles"]) if self._random.random() < 0.5 else ""
            word = pick(SYLLABLES["starts"]) + middle + pick(SYLLABLES[ends])
            if not any(word in other or other in word for other in self._words):
                self._words.add(word)
                return word.capitalize()
        raise ValueError("no free name is left: ask for fewer made-up names")
