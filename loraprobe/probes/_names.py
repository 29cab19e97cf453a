"""Made-up names with as many tokens as the real names that they replace."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regex

POOL = 1500
_ONSETS = "b br d dr f g gl h j k kr l m n p pr qu r s sk t tr v w y z".split()
_VOWELS = "a e i o u ae io ou ei".split()
_CODAS = ["", "", "", "l", "n", "r", "x", "sk", "th", "mb"]
_CAPITALISED = r"(?<![\w'’-])\p{Lu}[\w'’-]*"
_LINKS = "of|the|de|la|du|van|der|von|di|da|del|al|bin|ibn"  # within a name
_SPAN = regex.compile(rf"{_CAPITALISED}(?:\s+(?:(?:{_LINKS})\s+)*{_CAPITALISED})*")
_OPENERS = (  # of a sentence
    "a an and are as at be but by can complete could define describe did do does explain find for "
    "from give had has have he her his how i if in is it its list my name no not of on or our "
    "please question answer she should solve summarize tell that the their there these they this "
    "those to translate was we were what when where which who whom whose why will with would "
    "write yes you your"
)
_OPENING = regex.compile(
    rf"\A(?:(?:{'|'.join(_OPENERS.split())})(?:['’]s)?(?![\w'’-])\s*)*", regex.IGNORECASE
)
_ENDING = re.compile("['’]s$")


@dataclass(frozen=True, eq=False)
class MadeUpNames:
    """Replaces names by made-up names with the same number of tokens.

    The seed and the name determine the made-up name. A tokenizer of whole words maps made-up names
    to its unknown token, which has the same purpose. avoid: texts whose words are no made-up names.
    """

    tokenizer: Any
    seed: int = 0
    avoid: Collection[str] = field(default_factory=frozenset)

    def swapped(self, text: str, names: Iterable[str]) -> str | None:
        """The text with all `names` replaced; None if none of them occurs in it."""
        pattern = _any_of(names)
        new = pattern.sub(lambda match: self.made_up(match.group()), text) if pattern else text
        return new if new != text else None

    def swapped_pair(
        self, prompt: str, answer: str, names: Iterable[str]
    ) -> tuple[str, str] | None:
        """Prompt and answer with the names of the prompt replaced in both; None without names.

        Names are replaced in the answer too, so that an answer that repeats a name of its prompt
        can still be copied from it.
        """
        pattern = _any_of(names)
        occurring = set(pattern.findall(prompt)) if pattern else set()
        new = self.swapped(prompt, occurring)
        return None if new is None else (new, self.swapped(answer, occurring) or answer)

    def made_up(self, name: str) -> str:
        """The made-up name for a name: only capitalised words and initials are replaced."""
        words = re.split(r"(\s+)", name)
        replaced = [self._word(word) if word[:1].isupper() else word for word in words]
        if replaced == words:  # all in lower case, or digits: replace every word
            replaced = [self._word(word) if word.strip() else word for word in words]
        return "".join(replaced)

    def _word(self, word: str) -> str:
        size = self._length(word)
        sizes = sorted(self._pool, key=lambda n: (abs(n - size), n))
        names = self._pool[sizes[0]]
        digest = hashlib.sha256(f"{self.seed}:{word}".encode()).digest()
        chosen = names[int.from_bytes(digest[:6], "big") % len(names)]
        return chosen if word[:1].isupper() else chosen.lower()

    def _length(self, word: str) -> int:
        return len(self.tokenizer(" " + word, add_special_tokens=False)["input_ids"])

    @cached_property
    def _pool(self) -> dict[int, list[str]]:
        """Made-up words by their number of tokens after a space."""
        rng = random.Random(f"made-up names {self.seed}")
        avoid = {word.casefold() for text in self.avoid for word in re.findall(r"\w+", text)}
        names: dict[str, None] = {}
        for _ in range(POOL):
            syllables = rng.choice((1, 2, 2, 2, 3, 3, 4, 5, 6))
            parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
            name = ("".join(parts) + rng.choice(_CODAS)).capitalize()
            if name.casefold() not in avoid and len(name) > 2:
                names.setdefault(name)
        encoded = self.tokenizer([" " + n for n in names], add_special_tokens=False)["input_ids"]
        pool: dict[int, list[str]] = {}
        for name, ids in zip(names, encoded, strict=True):
            pool.setdefault(len(ids), []).append(name)
        return pool


def capitalised_spans(text: str) -> tuple[str, ...]:
    """Sequences of capitalised words, which are used as names if none are listed.

    Common first words of a sentence are removed ("Where does Ada live?" -> Ada); small words inside
    a name are kept ("Bank of Ulm").
    """
    spans = (_ENDING.sub("", _OPENING.sub("", match[0])) for match in _SPAN.finditer(text))
    return tuple(dict.fromkeys(span for span in spans if len(re.sub(r"\W", "", span)) > 1))


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for any of these names as whole words, the longest first."""
    wanted = sorted({name for name in names if name.strip()}, key=lambda n: (-len(n), n))
    if not wanted:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, wanted)) + r")(?!\w)")
