"""Forecasts of what compositions answer, from answers of the base and of each adapter alone.

If the adapters' effects on the next token were added, a composition's logits would be those of the
base plus the effect of each member, z_S = z_0 + sum over a in S of (z_a - z_0). A real composition
differs by interference inside the network. The answers are judged and compared in the same way as
those of a real system. Log-probabilities serve as logits, since a softmax removes the constant by
which they differ. `AdditiveForecast` adds what one pass of each gave as next tokens, for every set
of a library; a set is never read itself.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loraprobe.defaults import LOSS
from loraprobe.evaluation import System, measure_gains
from loraprobe.evaluation.asking import request_of
from loraprobe.evaluation.questions import Question, questions
from loraprobe.extensions.screen.records import Forecast
from loraprobe.records import QUESTION, STEPS, Gain, ItemResult
from loraprobe.scoring import ModelScorer, Scorer
from loraprobe.tasks import METRICS, Task

MOST_ANSWERS = 4  # of a question that are read
TOP = 20  # likeliest tokens of a position that are kept
SUPPORT = 64  # tokens of a position whose logits are added
LEAST_REST = 0.01  # the probability of all other tokens
LEAST = 1e-6  # that is left beside the likeliest tokens of one system
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # a part of a character
CHUNK = 1 << 17  # logits that are added at once; more do not fit into the cache of a core
TIE = 1e-4  # logits: a token this close below the largest one counts as the largest
ABSENT = -1e4  # the logit of a place of the support without a token

TokenRow = tuple[tuple[int, ...], int]  # token ids, and the index of the first that is predicted


def forecast_gains(
    answers: Sequence[ItemResult],
    results: Sequence[ItemResult],
    adapters: Sequence[str],
    compositions: Iterable[str],
    seed: int,
) -> tuple[Forecast, ...]:
    """The gains over base and single adapters on the same items, one row per composition.

    answers: those of added effects. If a question has two forms, the row is that of the form with
    the larger gain.
    """
    items = {(row.task, row.part, row.item) for row in answers}
    alone = [row for row in results if (row.task, row.part, row.item) in items]
    systems = [System("base", "base"), *(System(name, "adapter") for name in adapters)]
    systems += [System(name, "merge") for name in compositions]
    rows = measure_gains([*alone, *answers], systems, seed=seed)
    best: dict[str, Gain] = {}
    for row in rows:
        if row.system not in best or row.difference > best[row.system].difference:
            best[row.system] = row
    return tuple(
        Forecast(
            system=row.system,
            gain=row.difference,
            ci95=row.ci95,
            n=row.n,
            part=row.part,
            against=row.against,
            against_part=row.against_part,
        )
        for row in (best[name] for name in compositions if name in best)
    )


class Wanted(NamedTuple):
    """A token of which the log-probability is read: at a place of a row, for a text.

    behind: 1 for a token that ends a generation behind the text, 0 for one of its own.
    """

    row: int
    place: int
    token: int
    text: int
    behind: int


@dataclass(frozen=True)
class Text:
    """One answer or choice of a question: the row that holds it, and its tokens.

    stopped: whether the answer has to end behind it.
    """

    question: int
    row: int
    tokens: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class ForecastTexts:
    """All texts that are read of some tasks, in rows that are read once."""

    questions: tuple[Question, ...]
    rows: tuple[TokenRow, ...]
    texts: tuple[Text, ...]
    wanted: tuple[Wanted, ...]

    @classmethod
    def of(cls, scorer: Scorer, tasks: Sequence[Task]) -> ForecastTexts | None:
        """What to read; None where nothing can be read."""
        asked = [
            q
            for q in questions(tasks)
            if q.part != STEPS
            and (q.part == QUESTION or q.item.cot_prompt is not None)
            and q.item.examiner is None
            and not METRICS[q.metric].patterns
        ]
        pairs = [(k, q.prompt, text) for k, q in enumerate(asked) for text in _texts(q)]
        rows: dict[TokenRow, int] = {}
        texts, wanted = list[Text](), list[Wanted]()
        encoded = scorer.encoded([(prompt, text) for _, prompt, text in pairs])
        for t, ((k, _, _), (ids, start)) in enumerate(zip(pairs, encoded, strict=True)):
            generated, tokens = asked[k].generated, tuple(ids[start:])
            # A text that is scored ends with its last token, which is only predicted.
            row = rows.setdefault((tuple(ids if generated else ids[:-1]), start), len(rows))
            stopped = METRICS[asked[k].metric].whole
            texts.append(Text(k, row, tokens, stopped))
            wanted += [Wanted(row, place, token, t, 0) for place, token in enumerate(tokens)]
            stops = scorer.stops if stopped else ()
            wanted += [Wanted(row, len(tokens), stop, t, 1) for stop in stops]
        return cls(tuple(asked), tuple(rows), tuple(texts), tuple(wanted)) if texts else None

    @property
    def mark(self) -> str:
        """What next tokens of this reading are stored under."""
        return hashlib.sha256(repr((self.rows, self.wanted)).encode()).hexdigest()

    @property
    def of_question(self) -> list[list[int]]:
        """The places of the texts of each question."""
        texts_of: list[list[int]] = [[] for _ in self.questions]
        for t, text in enumerate(self.texts):
            texts_of[text.question].append(t)
        return texts_of

    def read(
        self, scorer: ModelScorer, system: System, max_new_tokens: int | None = None
    ) -> tuple[NextTokens, list[ItemResult]]:
        """What the scorer's model, which carries the system, gives as next tokens, and the
        system's results of scored questions."""
        given = next_tokens(scorer, self.rows, [wanted[:3] for wanted in self.wanted])
        _, _, _, text, behind = np.array(self.wanted).T
        sums = np.bincount(text, given.wanted.numpy() * (1 - behind), len(self.texts)).tolist()
        return given, [
            replace(
                question.scored(system.name, [(sums[t], len(self.texts[t].tokens)) for t in texts]),
                request=request_of(scorer, system, question, max_new_tokens),
            )
            for question, texts in zip(self.questions, self.of_question, strict=True)
            if not question.generated
        ]


@dataclass(frozen=True)
class NextTokens:
    """What a system gives as next token at p positions, with w log-probabilities of wanted tokens.

    ids [p, TOP] int32 and logprobs [p, TOP] float32: the likeliest tokens, the likeliest first.
    wanted [w] float32.
    """

    ids: Tensor
    logprobs: Tensor
    wanted: Tensor

    def save(self, path: Path, mark: str) -> None:
        """Writes them, all or nothing; raises OSError. mark: says of what they are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        # a full disk has another error in safetensors
        part.write_bytes(save(vars(self), {"mark": mark}))
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path, mark: str) -> NextTokens | None:
        """Those in a file; None without a whole file of this mark."""
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("mark") != mark:
                    return None
                return cls(*map(file.get_tensor, ("ids", "logprobs", "wanted")))
        except (OSError, SafetensorError):
            return None


def next_tokens(
    scorer: ModelScorer,
    rows: Sequence[tuple[Sequence[int], int]],
    wanted: Sequence[tuple[int, int, int]],
) -> NextTokens:
    """What the scorer's model gives as next tokens after tokens `start` - 1 and later of each row.

    rows: (ids, start). wanted: (row, position counted from the row's first, token id).
    """
    values, of_row = torch.empty(len(wanted)), defaultdict[int, list[list[int]]](list)
    for at, (row, *place) in enumerate(wanted):
        of_row[row].append([at, *place])
    tops: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(i: int, logits: Tensor) -> None:
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(min(TOP, logprobs.shape[-1]), -1)
        tops[i] = top.values.cpu(), top.indices.to(torch.int32).cpu()
        at, position, token = torch.tensor(of_row[i], device=logits.device).T
        values[at.cpu()] = logprobs[position, token].cpu()

    scorer.read([ids for ids, _ in rows], [start - 1 for _, start in rows], keep)
    logprobs, ids = zip(*(tops[i] for i in range(len(rows))), strict=True)
    return NextTokens(torch.cat(ids), torch.cat(logprobs), values)


def _texts(question: Question) -> tuple[str, ...]:
    """The texts of a question that are read."""
    if question.generated:
        return tuple(dict.fromkeys(question.answers))[:MOST_ANSWERS]
    return question.continuations


@dataclass(frozen=True)
class AdditiveForecast:
    """What sets of n adapters answer if their effects are added, from one pass of each alone.

    The pass reads prompts with their right answers or choices. Greedy decoding writes a text
    exactly if each of its tokens has the largest logit at its position, and then a token that ends
    the answer. Questions with an `Examiner`, those that are judged by a pattern, and worked
    answers have no text to read.

    At each of the p positions the s tokens of the support have logits of their own; the other
    tokens of the vocabulary count together as one, of the probability that is left.

    base [p, s + 1], effects [n, p, s + 1]: the logits of the base, and what each adapter adds to
    them; the last for all other tokens. position [k], column [k], text [k]: where the support has a
    token of a text. stop [e], text_stopped [e], ends [e, s]: the position behind a text, the text,
    and which tokens end an answer there.
    """

    reading: ForecastTexts
    base: Tensor
    effects: Tensor
    position: Tensor
    column: Tensor
    text: Tensor
    stop: Tensor
    text_stopped: Tensor
    ends: Tensor

    @classmethod
    def of(
        cls, scorer: Scorer, reading: ForecastTexts, systems: int, load: Callable[[int], NextTokens]
    ) -> AdditiveForecast:
        """From what `systems` systems, the base first, gave. load: one of them; none is held."""
        row, place, token, text, behind = np.array(reading.wanted).T
        first = np.cumsum([0, *(len(ids) - start + 1 for ids, start in reading.rows)])
        at = first[row] + place
        top = np.stack([load(k).ids.numpy() for k in range(systems)])
        support = _support(at, token, top)
        column = (support[at] == token[:, None]).argmax(1)
        every = torch.empty(systems, *support.shape[:1], support.shape[1] + 1)
        for k, logits in enumerate(every):
            given = load(k)
            logits[:, :-1] = _logprobs_of(torch.from_numpy(support), given, scorer.vocab_size)
            logits[at, column] = given.wanted
            logits[:, -1] = (1 - logits[:, :-1].exp().sum(-1)).clamp_min(LEAST_REST).log()
        ids, inverse = np.unique(support, return_inverse=True)
        written = [scorer.decode([one]) if one >= 0 else "x" for one in ids.tolist()]
        ending = np.array([not any(map(str.isalnum, w)) and UNREADABLE not in w for w in written])
        stopped = [t for t, one in enumerate(reading.texts) if one.stopped]
        stop = [first[reading.texts[t].row] + len(reading.texts[t].tokens) for t in stopped]
        own = behind == 0
        places = at[own], column[own], text[own], np.array(stop, int), np.array(stopped, int)
        ends = ending[inverse.reshape(support.shape)][places[3]]
        base, effects = every[0], every[1:].sub_(every[0])
        return cls(reading, base, effects, *map(torch.from_numpy, (*places, ends)))

    def values(self, subsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The results [m, questions] of sets [m, j] of adapters, and a smooth version of them.

        More is better: right answers are 1, losses are negative. The smooth version is the
        probability of the right answer, or the loss.
        """
        parts = []
        for sets in torch.from_numpy(subsets).split(max(1, CHUNK // self.base.numel())):
            z = self.base + self.effects[sets[:, 0]]
            for member in sets.T[1:]:
                z += self.effects[member]
            parts.append(self._scored(z))
        logprob, right = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return _judged(self.reading, logprob, right)

    def _scored(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and greedy success of all texts under logits [c, p, s + 1]."""
        total, largest = z.logsumexp(-1), z[..., :-1].amax(-1) - TIE
        gold, end = z[:, self.position, self.column], z[:, self.stop, :-1]
        end = end.masked_fill(~self.ends, -torch.inf)
        logprob, wrong = z.new_zeros(2, len(z), len(self.reading.texts))
        logprob.index_add_(1, self.text, gold - total[:, self.position])
        logprob.index_add_(1, self.text_stopped, end.logsumexp(-1) - total[:, self.stop])
        wrong.index_add_(1, self.text, (gold < largest[:, self.position]).float())
        missed = end.amax(-1) < largest[:, self.stop]
        wrong.index_add_(1, self.text_stopped, missed.float())
        return logprob, wrong == 0


def _support(at: np.ndarray, token: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The tokens of each position whose logits are added: [p, s], -1 where there are fewer.

    at [w], token [w]: positions of wanted tokens, which are all among them. top [systems, p, k]:
    the likeliest tokens. The other places go to what the most systems put first.
    """
    wanted: list[list[int]] = [[] for _ in range(top.shape[1])]
    for position, wanted_token in zip(at.tolist(), token.tolist(), strict=True):
        wanted[position].append(wanted_token)
    rank = np.broadcast_to(np.arange(top.shape[2]), (len(top), top.shape[2])).ravel()
    rows = []
    for position, given in enumerate(wanted):
        ids, inverse, times = np.unique(
            top[:, position].ravel(), return_inverse=True, return_counts=True
        )
        first = np.full(len(ids), top.shape[2])
        np.minimum.at(first, inverse, rank)
        order = ids[np.lexsort((-times, first))]
        rows.append(list(dict.fromkeys([*given, *order.tolist()]))[: max(SUPPORT, len(given))])
    width = max(map(len, rows))
    return np.array([row + [-1] * (width - len(row)) for row in rows])


def _logprobs_of(support: Tensor, given: NextTokens, vocabulary: int) -> Tensor:
    """The log-probabilities [p, s] of the support of one system.

    A token that is not among its likeliest counts as an average one of all that are not.
    """
    likeliest = given.logprobs.shape[1]
    left = (1 - given.logprobs.exp().sum(-1)).clamp_min(LEAST) / max(1, vocabulary - likeliest)
    others = torch.minimum(left.log(), given.logprobs[:, -1])
    same = support[:, :, None] == given.ids[:, None, :]
    known = given.logprobs[:, None, :].masked_fill(~same, -torch.inf).amax(-1)
    logprobs = torch.where(same.any(-1), known, others[:, None])
    return logprobs.masked_fill(support < 0, ABSENT)


def _judged(
    reading: ForecastTexts, logprob: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Results of questions from those of their texts, as `Question.scored` judges them."""
    hard = np.zeros((len(logprob), len(reading.questions)), np.float32)
    soft = np.zeros_like(hard)
    for k, (question, texts) in enumerate(zip(reading.questions, reading.of_question, strict=True)):
        scores = logprob[:, texts]
        if question.generated:
            hard[:, k] = right[:, texts].any(1)
            soft[:, k] = np.exp(scores.max(1))
        elif question.metric == LOSS:
            tokens = np.array([len(reading.texts[t].tokens) for t in texts])
            hard[:, k] = soft[:, k] = (scores / tokens).max(1)
        else:
            lengths = np.array([len(text) for text in question.continuations])
            gold = np.array([text in question.answers for text in question.continuations])
            hard[:, k] = gold[(scores / lengths).argmax(1)]
            shares = np.exp(scores - scores.max(1, keepdims=True))
            soft[:, k] = shares[:, gold].sum(1) / shares.sum(1)
    return hard, soft
