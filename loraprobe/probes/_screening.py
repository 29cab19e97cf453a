"""The forecast of every pair of a library, from one pass of the base and of each adapter alone.

The pass reads the prompts of the plain questions with their right answers or choices. Its hidden
states give the logits of every set of adapters, so no set is read itself: the base's logits plus
the effect of each member, z_S = z_0 + sum over a in S of (z_a - z_0), at every position that
predicts a token of a text. Greedy decoding writes a text exactly if each of its tokens has the
largest logit at its position, and then a token that ends the answer. All figures are exact for the
tokens of the support; the other tokens of the vocabulary count together as one, of the probability
that is left. Questions of lm-evaluation-harness and those that are judged by a pattern have no text
to read; worked answers have none either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraprobe.probes._texts import ScreenedTexts
from loraprobe.records import ItemResult
from loraprobe.scoring.states import States, first_states, linear_head

SUPPORT = 64  # tokens of a position whose logits are added
LEAST_REST = 0.01  # the probability of all other tokens; rounding of the states reaches it
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # a part of a character
CHUNK = 1 << 17  # logits that are added at once; more do not fit into the cache of a core
TIE = 1e-4  # logits: a token this close below the largest one counts as the largest
ABSENT = -1e4  # the logit of a place of the support without a token


@dataclass(frozen=True)
class TokenPlaces:
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


@dataclass(frozen=True)
class PairForecast:
    """What sets of adapters answer if their effects are added.

    reading: of what. logits [1 + n, p, s]: of base and n adapters at p positions and s tokens each.
    rest [1 + n, p]: the log of the summed exponentials of all other logits.
    linear [n]: adapters of which this can be said.
    """

    reading: ScreenedTexts
    logits: Tensor
    rest: Tensor
    places: TokenPlaces
    linear: tuple[bool, ...]

    @classmethod
    def of(
        cls, scorer: Any, reading: ScreenedTexts, systems: int, load: Callable[[int], States]
    ) -> PairForecast | None:
        """From the states of `systems` systems, the base first; None for a head that is not linear.

        load: gives the states of a system; one is held at a time.
        """
        tops, linear = [], []
        for k in range(systems):
            states = load(k)
            tops.append(states.top.to(torch.int32))
            linear.append(states.linear)
        if not linear[0]:
            return None
        support = _support(reading, torch.stack(tops).numpy(), scorer.stops)
        head = linear_head(scorer.model)
        assert head is not None
        of_support = _Support(support, *head)
        found = [of_support.logits(load(k)) for k in range(systems)]
        logits, rest = (torch.stack(column) for column in zip(*found, strict=True))
        places = _places(reading, support, _ending(scorer, support))
        return cls(reading, logits, rest, places, tuple(linear[1:]))

    def values(self, subsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The results [m, questions] of sets [m, j] of adapters, and a smooth version of them.

        More is better: right answers are 1, losses are negative. The smooth version is the
        probability of the right answer, or the loss.
        """
        subsets = np.ascontiguousarray(subsets)
        whole = torch.cat([self.logits, self.rest[..., None]], -1).float()
        base, effects = whole[0], whole[1:] - whole[:1]
        parts = []
        for sets in torch.from_numpy(subsets).split(max(1, CHUNK // base.numel())):
            z = base + effects[sets[:, 0]]
            for member in sets.T[1:]:
                z += effects[member]
            parts.append(_scored(z, self.places))
        logprob, right = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return _judged(self.reading, logprob, right)

    def by_part(self, subsets: np.ndarray) -> dict[tuple[str, str], dict[str, np.ndarray]]:
        """(task, part) -> item -> results [m] of sets [m, j] of adapters.

        A result is the mean of the right answer, 1 or 0, and of its probability.
        """
        mean, soft = self.values(subsets)
        mean += soft  # in place: with many adapters these are the largest arrays of a screen
        mean /= 2
        found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for k, question in enumerate(self.reading.questions):
            of_part = found.setdefault((question.task, question.part), {})
            of_part[question.item.id] = mean[:, k]
        return found

    def added(self, subsets: np.ndarray) -> np.ndarray:
        """Of which sets [m] the effects can be added."""
        found: np.ndarray = np.array(self.linear)[subsets].all(1)
        return found

    def results(self, members: Sequence[int], name: str) -> list[ItemResult]:
        """The results of one set of adapters as those of a system of that name."""
        hard, _ = self.values(np.array([members]))
        return [
            question.result(name, abs(float(value)), "")
            for question, value in zip(self.reading.questions, hard[0], strict=True)
            if question.part == "question"
        ]


def _scored(z: Tensor, places: TokenPlaces) -> tuple[Tensor, Tensor]:
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


def _judged(
    reading: ScreenedTexts, logprob: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Results of questions from those of their texts, as `Question.scored` judges them."""
    of_question: list[list[int]] = [[] for _ in reading.questions]
    for t, text in enumerate(reading.texts):
        of_question[text.question].append(t)
    hard = np.zeros((len(logprob), len(reading.questions)), np.float32)
    soft = np.zeros_like(hard)
    for k, (question, own) in enumerate(zip(reading.questions, of_question, strict=True)):
        scores = logprob[:, own]
        if question.generated:
            hard[:, k] = right[:, own].any(1)
            soft[:, k] = np.exp(scores.max(1))
        elif question.metric == "answer_loss":
            tokens = np.array([len(reading.texts[t].tokens) for t in own])
            hard[:, k] = soft[:, k] = (scores / tokens).max(1)
        else:
            lengths = np.array([len(text) for text in question.continuations])
            gold = np.array([text in question.answers for text in question.continuations])
            hard[:, k] = gold[(scores / lengths).argmax(1)]
            shares = np.exp(scores - scores.max(1, keepdims=True))
            soft[:, k] = shares[:, gold].sum(1) / shares.sum(1)
    return hard, soft


def _support(reading: ScreenedTexts, top: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """The tokens of each position whose logits are added: [p, s], -1 where there are fewer.

    top [systems, p, k]: the first choices. stops: tokens that end a generation. All tokens of texts
    are among them, and behind a text the stops; then what the most systems choose first.
    """
    wanted: list[list[int]] = [[] for _ in range(top.shape[1])]
    starts = first_states(reading.rows)
    for text in reading.texts:
        for at, token in enumerate(text.tokens, starts[text.row]):
            wanted[at].append(token)
        if text.stopped:
            wanted[starts[text.row] + len(text.tokens)] += stops
    rank = np.broadcast_to(np.arange(top.shape[2]), (len(top), top.shape[2])).ravel()
    rows = []
    for at, given in enumerate(wanted):
        ids, inverse, times = np.unique(top[:, at].ravel(), return_inverse=True, return_counts=True)
        first = np.full(len(ids), top.shape[2])
        np.minimum.at(first, inverse, rank)
        order = ids[np.lexsort((-times, first))]
        rows.append(list(dict.fromkeys([*given, *order.tolist()]))[: max(SUPPORT, len(given))])
    width = max(map(len, rows))
    return np.array([row + [-1] * (width - len(row)) for row in rows])


class _Support:
    """The rows of a head that belong to the support [p, s]."""

    def __init__(self, support: np.ndarray, weight: Tensor, bias: Tensor | None) -> None:
        ids, inverse = np.unique(support.clip(0), return_inverse=True)
        chosen = torch.from_numpy(ids).to(weight.device)
        self._weight = weight[chosen].float().cpu()
        self._bias = 0.0 if bias is None else bias.detach()[chosen].float().cpu()
        self._places = torch.from_numpy(inverse.reshape(support.shape))
        self._absent = torch.from_numpy(support < 0)

    def logits(self, states: States) -> tuple[Tensor, Tensor]:
        """Log-probabilities [p, s] and the log of the rest [p] of one system."""
        every = states.hidden.float() @ self._weight.T + self._bias
        found = every.gather(1, self._places) - states.total[:, None]
        found = found.masked_fill(self._absent, ABSENT)
        return found, (1 - found.exp().sum(-1)).clamp_min(LEAST_REST).log()


def _ending(scorer: Any, support: np.ndarray) -> np.ndarray:
    """Which tokens of the support end an answer: those without a letter or digit."""
    ids = np.unique(support)
    texts = [scorer.decode([token]) if token >= 0 else "x" for token in ids.tolist()]
    ends = np.array([not any(map(str.isalnum, t)) and UNREADABLE not in t for t in texts])
    return ends[np.searchsorted(ids, support)]


def _places(reading: ScreenedTexts, support: np.ndarray, ending: np.ndarray) -> TokenPlaces:
    starts = first_states(reading.rows)
    tokens, stops = [], []
    for t, text in enumerate(reading.texts):
        for at, token in enumerate(text.tokens, starts[text.row]):
            tokens.append((at, int(np.flatnonzero(support[at] == token)[0]), t))
        if text.stopped:
            stops.append((starts[text.row] + len(text.tokens), t))
    position, column, of_text = torch.tensor(tokens, dtype=torch.long).reshape(-1, 3).unbind(1)
    stop, text_stopped = torch.tensor(stops, dtype=torch.long).reshape(-1, 2).unbind(1)
    ends = torch.from_numpy(ending)[stop]
    return TokenPlaces(len(reading.texts), position, column, of_text, stop, text_stopped, ends)
