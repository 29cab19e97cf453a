"""What prompts of adapters look like, as character n-grams; a router by text chooses by that.

router.json is such a profile as plain data, which a program without loraprobe can run:

    format, version   "router by text", 1
    adapters          of each its `name`, by which a server knows it, the `folder` of its files
                      beside router.json, and the `sha256` of its weights
    base              the base model, as it is named in public; null where it is not known
    shortest, longest how many characters an n-gram has
    read              of a longer prompt the first and the last half of so many characters are read
    unseen            the weight of an n-gram that does not stand in `ngrams`
    thresholds        for each adapter the least similarity of a prompt that it answers
    ngrams            n-gram -> its weight, and its weight in the direction of each adapter

A prompt in lower case (Python's `casefold`), with one space for all white space and one at each
end, has a set of n-grams. Its similarity to an adapter is the sum of their weights in its direction
over the root of the sum of the squares of their weights. The adapter with the largest similarity
answers, of equal ones the first; the base does where that lies below the threshold of the adapter,
or is 0.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FILE, VERSION = "router.json", 1
SHORTEST, LONGEST = 2, 5  # characters of an n-gram
READ = 1000  # characters of a prompt that are read: half of them at its start, half at its end
FEWEST = 2  # prompts that hold an n-gram, or it says nothing of later prompts
# Of the smallest similarity that a prompt of an adapter has to the others of that adapter; below it
# a prompt goes to the base. examples/serving/by_text.md has what smaller and larger shares do.
SHARE = 0.85


def ngrams(text: str) -> set[str]:
    """The n-grams of a text in lower case, in which a space stands for all white space."""
    half = READ // 2
    plain = " ".join(text.casefold().split())
    parts = [plain] if len(plain) <= READ else [plain[:half], plain[-half:]]
    return {
        padded[at : at + n]
        for padded in (f" {part} " for part in parts)
        for n in range(SHORTEST, LONGEST + 1)
        for at in range(len(padded) - n + 1)
    }


@dataclass(frozen=True)
class TextProfile:
    """What prompts of n adapters look like.

    rows: an n-gram -> its weight in the length of a prompt, and its weight in the direction of each
    adapter. unseen: the weight of any other n-gram. thresholds: for each adapter the least
    similarity of a prompt that it answers.
    """

    rows: Mapping[str, tuple[float, ...]]
    unseen: float
    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> TextProfile:
        """The profile of the prompts of each adapter."""
        each = [(who, one) for who, own in enumerate(prompts) for one in dict.fromkeys(own)]
        texts = [(who, ngrams(one)) for who, one in each]
        held = Counter(itertools.chain.from_iterable(grams for _, grams in texts))
        most = len(texts) + 1
        size = {g: math.log(most / (1 + k)) + 1 for g, k in sorted(held.items()) if k >= FEWEST}
        unseen = math.log(most / 2) + 1
        vectors = list[dict[str, float]]()
        for _, grams in texts:
            own = {g: size[g] for g in sorted(grams) if g in size}
            length = math.sqrt(_squares(own) + (len(grams) - len(own)) * unseen**2)
            vectors.append({g: value / length for g, value in own.items()})
        sums: list[dict[str, float]] = [{} for _ in prompts]
        for (who, _), vector in zip(texts, vectors, strict=True):
            for g, value in vector.items():
                sums[who][g] = sums[who].get(g, 0.0) + value
        squares = [_squares(one) for one in sums]
        lengths = [math.sqrt(one) or 1.0 for one in squares]
        alone: list[list[float]] = [[] for _ in prompts]  # each prompt beside the others
        for (who, _), vector in zip(texts, vectors, strict=True):
            along = math.fsum(value * sums[who][g] for g, value in vector.items())
            own_square = _squares(vector)
            rest = math.sqrt(max(squares[who] - 2 * along + own_square, 0.0))
            alone[who].append((along - own_square) / rest if rest > 1e-9 else 0.0)
        means = list(zip(sums, lengths, strict=True))
        rows = {
            g: (round(w, 6), *(round(w * one.get(g, 0.0) / k, 6) for one, k in means))
            for g, w in size.items()
        }
        # A single prompt shows nothing of how far others may be from it.
        least = [SHARE * min(one) if len(one) > 1 else 0.0 for one in alone]
        return cls(rows, round(unseen, 6), tuple(round(one, 6) for one in least))

    def similarities(self, prompt: str) -> list[float]:
        """The cosine of a prompt with the mean prompt of each adapter: n numbers from 0 to 1."""
        grams = ngrams(prompt)
        found = [row for g in grams if (row := self.rows.get(g)) is not None]
        if not found:
            return [0.0] * len(self.thresholds)
        size, *sums = map(math.fsum, zip(*((row[0] ** 2, *row[1:]) for row in found), strict=True))
        length = math.sqrt(size + (len(grams) - len(found)) * self.unseen**2)
        return [one / length for one in sums]

    def choice(self, prompt: str) -> int | None:
        """The adapter whose prompts are most similar, of equal ones the first; None where the
        prompt is less similar than its threshold."""
        similar = self.similarities(prompt)
        best = max(range(len(similar)), key=similar.__getitem__)
        return best if similar[best] > 0 and similar[best] >= self.thresholds[best] else None


def _squares(vector: Mapping[str, float]) -> float:
    return math.fsum(value**2 for value in vector.values())


def written(profile: TextProfile, adapters: Sequence[Mapping[str, str]], base: str | None) -> str:
    """The text of router.json, an n-gram a line. adapters: as that file has them."""
    head = {
        "format": "router by text",
        "version": VERSION,
        "adapters": [*adapters],
        "base": base,
        "shortest": SHORTEST,
        "longest": LONGEST,
        "read": READ,
        "unseen": profile.unseen,
        "thresholds": profile.thresholds,
        "ngrams": {},
    }
    rows = [f"{_json(gram)}: {_json(row)}" for gram, row in profile.rows.items()]
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("{}\n}")
    return text + "{\n" + ",\n".join(rows) + "\n}\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
