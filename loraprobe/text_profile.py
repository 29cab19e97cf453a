"""What prompts of adapters look like, as n-grams; a router by text chooses by that.

router.json is such a profile as plain data, which a program without loraprobe can run:

    format, version   "router by text", 2
    adapters          of each its `name`, by which a server knows it, the `folder` of its files
                      beside router.json, and the `sha256` of its weights
    base              the base model, as it is named in public; null where it is not known
    shortest, longest how many characters an n-gram of characters has
    frame             how many words an n-gram of words has at most
    frame_weight      how much more an unseen n-gram of words weighs than one of characters
    read              of a longer prompt the first and the last half of so many characters are read
    unseen            the weight of an n-gram of characters that does not stand in `ngrams`
    thresholds        for each adapter the least sum of scores of a prompt that it answers
    ngrams            n-gram -> its weight, and its weight in the score of each adapter

A prompt in lower case (Python's `casefold`), with one space for all white space and one at each
end, has a set of n-grams of characters. Its words (Python's `\\w+`) and other characters but
spaces are words of its frame; one that does not stand in `ngrams` behind a tab is an empty word, as
are the start and the end, and equal neighbours are one. Each run of one to `frame` words of the
frame is an n-gram too, written with a tab before each word; a single empty word is none. A prompt's
score for an adapter is the sum of the weights of its n-grams there over the root of the sum of the
squares of their own weights. The adapter with the largest score answers, of equal ones the first;
the base does where the sum of all scores lies below the threshold of that adapter, or is not
positive.

In version 1 no n-gram has a tab, `frame` and `frame_weight` are missing, and the largest score
stands in place of the sum.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, VERSION = "router.json", 2
SHORTEST, LONGEST = 2, 5  # characters of an n-gram
READ = 1000  # characters of a prompt that are read: half of them at its start, half at its end
FEWEST = 2  # prompts that hold an n-gram, or it says nothing of later prompts
MOST = 2000  # prompts that are learned from; of more, every second, third, and so on
WORD = re.compile(r"\w+|[^\w\s]")
GAP = "\t"  # an n-gram of words that no adapter's prompts share
# Chosen on every seventh of the stored sets, as examples/serving/by_text.md says.
FRAME, FRAME_WEIGHT = 4, 2  # words of an n-gram, and its weight beside one of characters
COMMON = 0.15  # of an adapter's prompts that hold a word; a rarer one is a gap in the frame
RIDGE = 0.1  # what is added to the kernel's diagonal
# Of the smallest sum of scores that a prompt of an adapter gets when it is left out; below it a
# prompt goes to the base. The sum tells skills that are asked alike from what is no skill.
SHARE = 0.9


def ngrams(text: str, known: Container[str] = ()) -> set[str]:
    """The n-grams of a text in lower case, in which a space stands for all white space.

    known: the n-grams of one word that are no gaps.
    """
    found = set[str]()
    for part in _parts(text):
        padded = f" {part} "
        for n in range(SHORTEST, LONGEST + 1):
            found.update(padded[at : at + n] for at in range(len(padded) - n + 1))
        words = [word if word in known else GAP for word in _words(part)]
        frame = [word for word, _ in itertools.groupby([GAP, *words, GAP])]
        for n in range(1, FRAME + 1):
            found.update("".join(frame[at : at + n]) for at in range(len(frame) - n + 1))
    return found - {GAP}


def _parts(text: str) -> list[str]:
    half = READ // 2
    plain = " ".join(text.casefold().split())
    return [plain] if len(plain) <= READ else [plain[:half], plain[-half:]]


def _words(part: str) -> Iterator[str]:
    return (f"{GAP}{word}" for word in WORD.findall(part))


@dataclass(frozen=True)
class TextProfile:
    """What prompts of n adapters look like.

    rows: an n-gram -> its weight in the length of a prompt, and its weight in the score of each
    adapter. unseen: the weight of any other n-gram of characters. thresholds: for each adapter the
    least sum of scores of a prompt that it answers; of version 1, the least largest score.
    """

    rows: Mapping[str, tuple[float, ...]]
    unseen: float
    thresholds: tuple[float, ...]
    version: int = VERSION

    @classmethod
    def of(cls, prompts: Sequence[Sequence[str]]) -> TextProfile:
        """The profile of the prompts of each adapter, beside prompts of many kinds.

        The scores are those of kernel ridge regression: 1 for prompts of the adapter, 0 for those
        of the others and those of other_prompts.txt. What a prompt scores when it is left out has
        a closed form (Rasmussen and Williams 2006, section 5.4.2).
        """
        import numpy as np
        from scipy import sparse

        step = max(1, math.ceil(sum(map(len, prompts)) / MOST))
        learned = [[*dict.fromkeys(own)][::step] for own in prompts]
        common = set[str]()
        for own in learned:
            words = Counter(w for one in own for w in {w for p in _parts(one) for w in _words(p)})
            common |= {w for w, k in words.items() if k >= max(FEWEST, COMMON * len(own))}
        others = Path(__file__).with_name("other_prompts.txt").read_text("utf-8").splitlines()
        texts = [ngrams(one, common) for one in itertools.chain(*learned, others)]
        held = Counter(itertools.chain.from_iterable(texts))
        most = len(texts) + 1
        unseen = math.log(most / 2) + 1
        size = {
            g: _times(g) * (math.log(most / (1 + k)) + 1)
            for g, k in sorted(held.items())
            if k >= FEWEST
        }
        column = {g: at for at, g in enumerate(size)}
        lengths = [_length(size.get(g, _times(g) * unseen) for g in grams) for grams in texts]
        entries = [
            (size[g] / length, row, column[g])
            for row, (grams, length) in enumerate(zip(texts, lengths, strict=True))
            for g in sorted(grams & size.keys())
        ]
        values, *places = zip(*entries, strict=True)
        vectors = sparse.csr_matrix((values, places), (len(texts), len(size)))
        who = np.repeat([*range(len(learned)), -1], [*map(len, learned), len(others)])
        labels = (who[:, None] == np.arange(len(learned))).astype(float)
        kernel = (vectors @ vectors.T).toarray()
        inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(texts)))
        dual = inverse @ labels
        left_out = (labels - dual / np.diag(inverse)[:, None]).sum(1)
        weights = np.round(np.array([*size.values()])[:, None] * (vectors.T @ dual), 6).tolist()
        rows = {g: (round(w, 6), *own) for (g, w), own in zip(size.items(), weights, strict=True)}
        # A single prompt shows nothing of how far others may be from it.
        least = [
            SHARE * float(left_out[who == i].min()) if len(own) > 1 else 0.0
            for i, own in enumerate(learned)
        ]
        return cls(rows, round(unseen, 6), tuple(round(one, 6) for one in least))

    def scores(self, prompt: str) -> list[float]:
        """How much a prompt is like those of each adapter: about 1 for its own, 0 for others."""
        grams = ngrams(prompt, self.rows)
        found = [row for g in grams if (row := self.rows.get(g)) is not None]
        if not found:
            return [0.0] * len(self.thresholds)
        sizes, *sums = zip(*found, strict=True)
        missing = (_times(g) * self.unseen for g in grams - self.rows.keys())
        length = _length(itertools.chain(sizes, missing))
        return [math.fsum(one) / length for one in sums]

    def choice(self, prompt: str) -> int | None:
        """The adapter with the largest score, of equal ones the first; None where the prompt is
        too little like all of them."""
        scores = self.scores(prompt)
        best = max(range(len(scores)), key=scores.__getitem__)
        alike = math.fsum(scores) if self.version > 1 else scores[best]
        return best if alike > 0 and alike >= self.thresholds[best] else None


def _times(gram: str) -> int:
    return FRAME_WEIGHT if gram.startswith(GAP) else 1


def _length(weights: Iterable[float]) -> float:
    return math.sqrt(math.fsum(weight**2 for weight in weights))


def written(profile: TextProfile, adapters: Sequence[Mapping[str, str]], base: str | None) -> str:
    """The text of router.json, an n-gram a line. adapters: as that file has them."""
    head = {
        "format": "router by text",
        "version": profile.version,
        "adapters": [*adapters],
        "base": base,
        "shortest": SHORTEST,
        "longest": LONGEST,
        "frame": FRAME,
        "frame_weight": FRAME_WEIGHT,
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
