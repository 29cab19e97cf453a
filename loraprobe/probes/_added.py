"""The logits of many sets of adapters at once: the base's plus the effect of each member.

z_S = z_0 + sum over a in S of (z_a - z_0), at every position that predicts a token of a given text.
Greedy decoding writes a text exactly if each of its tokens has the largest logit at its position,
and then a token that ends the answer. All figures are exact for the tokens of the support; the
other tokens of the vocabulary count together as one, of the probability that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 17  # logits that are added at once; more do not fit into the cache of a core
TIE = 1e-4  # logits: a token this close below the largest one counts as the largest
ABSENT = -1e4  # the logit of a place of the support without a token


@dataclass(frozen=True)
class Places:
    """Which tokens texts consist of, as places of the support.

    position [k], column [k], text [k]: a token of a text each. stop [e], text_stopped [e], ends
    [e, s]: the position behind a text, the text, and which tokens end an answer there.
    """

    texts: int
    position: Tensor
    column: Tensor
    text: Tensor
    stop: Tensor
    text_stopped: Tensor
    ends: Tensor

    def only(self, texts: Sequence[int]) -> tuple[Places, Tensor]:
        """The places of some texts, and the positions [q] that they take, in order."""
        number = torch.full((self.texts,), -1)
        number[list(texts)] = torch.arange(len(texts))
        own, stopped = number[self.text] >= 0, number[self.text_stopped] >= 0
        positions = torch.cat([self.position[own], self.stop[stopped]]).unique()
        places = Places(
            texts=len(texts),
            position=torch.searchsorted(positions, self.position[own]),
            column=self.column[own],
            text=number[self.text[own]],
            stop=torch.searchsorted(positions, self.stop[stopped]),
            text_stopped=number[self.text_stopped[stopped]],
            ends=self.ends[stopped],
        )
        return places, positions


def score_subsets(
    logits: Tensor, rest: Tensor, places: Places, subsets: Tensor
) -> tuple[Tensor, Tensor]:
    """What sets of adapters make of every text if effects are added.

    logits [1 + n, p, s]: of base and n adapters at p positions and s tokens each. rest [1 + n, p]:
    the log of the summed exponentials of all other logits. subsets [m, j]: members from 0 to n - 1.
    Returns log-probabilities [m, texts] (natural logarithms, of the text and its end) and whether
    greedy decoding writes the text [m, texts].
    """
    whole = torch.cat([logits, rest[..., None]], -1).float()
    effects = whole[1:] - whole[:1]
    step = max(1, CHUNK // whole[0].numel())
    parts = [_scored(_summed(whole[0], effects, part), places) for part in subsets.split(step)]
    logprob, right = zip(*parts, strict=True)
    return torch.cat(logprob), torch.cat(right)


def _summed(base: Tensor, effects: Tensor, subsets: Tensor) -> Tensor:
    total = base + effects[subsets[:, 0]]
    for member in subsets.T[1:]:
        total += effects[member]
    return total


def _scored(z: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Log-probabilities and greedy success of all texts under logits [c, p, s + 1]."""
    total, largest = z.logsumexp(-1), z[..., :-1].amax(-1) - TIE
    gold = z[:, places.position, places.column]
    logprob = z.new_zeros(len(z), places.texts)
    logprob.index_add_(1, places.text, gold - total[:, places.position])
    wrong = z.new_zeros(len(z), places.texts)
    wrong.index_add_(1, places.text, (gold < largest[:, places.position]).float())
    if len(places.stop):
        end = z[:, places.stop, :-1].masked_fill(~places.ends, -torch.inf)
        logprob.index_add_(1, places.text_stopped, end.logsumexp(-1) - total[:, places.stop])
        missed = (end.amax(-1) < largest[:, places.stop]).float()
        wrong.index_add_(1, places.text_stopped, missed)
    return logprob, wrong == 0
