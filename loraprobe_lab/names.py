"""Made-up names of people and cities, spelled from syllables: reproducible, free of collisions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

_STARTS = (
    "ba be bri ca dal dor el fen ga gri ha jo kal ke la mel "
    "mi nor ol pe qua ra sel ta ul ve wi yo zan"
).split()
_MIDDLES = "bi da ko la li ma no ra ri sta ti vo".split()
_GIVEN_ENDS = "bo da dric la len mo na ni ra ro ska vin".split()
_FAMILY_ENDS = "bach dell gard kin lund mar ner rak sen stone vik wick".split()
_CITY_ENDS = "burg dale ford grad haven holm mouth port stad ton ville wold".split()


class NameMaker:
    """Draws names from a seed; no word is drawn twice, and none lies inside another.

    `taken` holds words that must not appear either, such as names of real people and places.
    """

    def __init__(self, seed: int | str, taken: Iterable[str] = ()) -> None:
        self._random = random.Random(seed)
        self._words = {word.lower() for name in taken for word in name.split()}

    def people(self, count: int) -> list[str]:
        """`count` full names, such as "Melkora Dalvik"; no given or family name comes twice."""
        return [f"{self._word(_GIVEN_ENDS)} {self._word(_FAMILY_ENDS)}" for _ in range(count)]

    def cities(self, count: int) -> list[str]:
        """`count` names of one word, such as "Ulrigrad"."""
        return [self._word(_CITY_ENDS) for _ in range(count)]

    def _word(self, ends: list[str]) -> str:
        pick: Callable[[list[str]], str] = self._random.choice
        for _ in range(1000):
            middle = pick(_MIDDLES) if self._random.random() < 0.5 else ""
            word = pick(_STARTS) + middle + pick(ends)
            if not any(word in other or other in word for other in self._words):
                self._words.add(word)
                return word.capitalize()
        raise ValueError("no free name is left: ask for fewer made-up names")
