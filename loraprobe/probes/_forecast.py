"""Forecasts of what compositions answer, from answers of the base and of each adapter alone.

If the adapters' effects on the next token were added, a composition's logits would be those of the
base plus the effect of each member, z_S = z_0 + sum over a in S of (z_a - z_0). A real composition
differs by interference inside the network. The answers are judged and compared in the same way as
those of a real system. `forecast_recorded` adds what was scored when the base and the adapters were
asked alone. `AdditiveForecast` adds hidden states of one pass, for every set of a library; a set
is never read itself. `with_worked_answers` gives worked answers a text that can be read.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraprobe.evaluation import System, gains, retention
from loraprobe.evaluation.gains import task_names
from loraprobe.evaluation.plan import Question, questions
from loraprobe.records import Forecast, Gain, ItemResult, Retention
from loraprobe.scoring import Recorder
from loraprobe.scoring.states import States, TokenRow, first_states, linear_head, read_states
from loraprobe.tasks import Item, Task

SCORED = ("choice", "answer_loss")  # metrics that read the likelihood of given texts
MOST_ANSWERS = 4  # of a question that are read
WHOLE = ("exact_match", "strict")  # metrics by which more than the right answer is wrong
SUPPORT = 64  # tokens of a position whose logits are added
LEAST_REST = 0.01  # the probability of all other tokens; rounding of the states reaches it
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # a part of a character
CHUNK = 1 << 17  # logits that are added at once; more do not fit into the cache of a core
TIE = 1e-4  # logits: a token this close below the largest one counts as the largest
ABSENT = -1e4  # the logit of a place of the support without a token
COMMON = 0.5  # a word of more of the texts than this belongs to the form
WORD, PIECE = re.compile(r"\b[^\W_]\w*"), re.compile(r"\w+|\W+")


def forecast_recorded(
    scorer: Any,
    adapters: Sequence[str],
    compositions: Sequence[str],
    tasks: Sequence[Task],
    recorder: Recorder,
    *,
    results: Sequence[ItemResult],
    metric: str | None,
    seed: int,
) -> tuple[Forecast, ...]:
    """The forecast of questions that are judged by likelihood, without a pass over the model.

    compositions: names of those that add all adapters at gates of 1. recorder: has taken what the
    base and each adapter scored on these tasks. results: theirs. There is no row if something is
    missing.
    """
    asked = scored_questions(tasks, metric)
    pairs = [pair for q in asked for pair in _pairs(q)]
    scores = {}
    for pair, (ids, start) in zip(pairs, scorer.encoded(pairs), strict=True):
        gold = ids[start:]
        logprob = recorder.logprob(pair, gold)
        if logprob is None:
            return ()
        scores[pair] = logprob, len(gold)
    answers = [
        q.scored(name, [scores[pair] for pair in _pairs(q)]) for name in compositions for q in asked
    ]
    return forecast_gains(answers, results, adapters, compositions, seed)


def scored_questions(tasks: Sequence[Task], metric: str | None) -> list[Question]:
    """The composed questions that are judged by the likelihood of given texts.

    There are none if a task is one of lm-evaluation-harness, which asks by itself.
    """
    asked = [] if any(task.of_harness for task in tasks) else questions(tasks, metric)
    return [q for q in asked if q.part == "question" and q.metric in SCORED]


def _pairs(question: Question) -> list[tuple[str, str]]:
    return [(question.prompt, text) for text in question.continuations]


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
    own = [row for row in results if (row.task, row.part, row.item) in items]
    systems = [System("base", "base"), *(System(name, "adapter") for name in adapters)]
    systems += [System(name, "merge") for name in compositions]
    every = [*own, *answers]
    rows = gains(every, systems, seed=seed)
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
            retentions=_retentions(every, systems, row),
        )
        for row in (best[name] for name in compositions if name in best)
    )


def _retentions(
    results: Sequence[ItemResult], systems: Sequence[System], row: Gain
) -> tuple[Retention, ...]:
    """What a composition would keep of each task's specialist, where there are several tasks."""
    tasks = task_names(results)
    if len(tasks) < 2:
        return ()
    found = ((t, retention(results, systems, row.system, t, row.part)) for t in tasks)
    return tuple(Retention(task, *kept) for task, kept in found if kept is not None)


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
class ScreenedTexts:
    """All texts that are read of some tasks, in rows that are read once."""

    questions: tuple[Question, ...]
    rows: tuple[TokenRow, ...]
    texts: tuple[Text, ...]

    @classmethod
    def of(cls, scorer: Any, tasks: Sequence[Task], metric: str | None) -> ScreenedTexts | None:
        """What to read; None where the model's head is not one matrix or nothing can be read."""
        asked = [
            q
            for q in questions(tasks, metric)
            if q.part != "steps"
            and (q.part == "question" or q.item.cot_prompt is not None)
            and q.item.source is None
            and q.metric != "regex"
        ]
        pairs = [(k, q.prompt, text) for k, q in enumerate(asked) for text in _texts(q)]
        if not pairs or linear_head(scorer.model) is None:
            return None
        rows: dict[TokenRow, int] = {}
        texts = []
        encoded = scorer.encoded([(prompt, text) for _, prompt, text in pairs])
        for (k, _, _), (ids, start) in zip(pairs, encoded, strict=True):
            generated = asked[k].generated
            row = tuple(ids if generated else ids[:-1]), start
            stopped = generated and asked[k].metric in WHOLE
            texts.append(Text(k, rows.setdefault(row, len(rows)), tuple(ids[start:]), stopped))
        return cls(tuple(asked), tuple(rows), tuple(texts))

    @property
    def mark(self) -> str:
        """What states of this reading are stored under."""
        return hashlib.sha256(repr((self.rows, self.texts)).encode()).hexdigest()

    @property
    def of_question(self) -> list[list[int]]:
        """The places of the texts of each question."""
        found: list[list[int]] = [[] for _ in self.questions]
        for t, text in enumerate(self.texts):
            found[text.question].append(t)
        return found

    def read(self, scorer: Any, system: str) -> tuple[States, list[ItemResult]]:
        """The states of the system in the scorer's model, and its results of scored questions."""
        of_row: list[list[int]] = [[] for _ in self.rows]
        for t, text in enumerate(self.texts):
            of_row[text.row].append(t)
        tokens = [[self.texts[t].tokens for t in own] for own in of_row]
        states, found = read_states(scorer, self.rows, tokens)
        logprobs = dict(zip(chain(*of_row), chain(*found), strict=True))
        return states, [
            question.scored(system, [(logprobs[t], len(self.texts[t].tokens)) for t in own])
            for question, own in zip(self.questions, self.of_question, strict=True)
            if not question.generated
        ]


def _texts(question: Question) -> tuple[str, ...]:
    """The texts of a question that are read."""
    if question.generated:
        return tuple(dict.fromkeys(question.answers))[:MOST_ANSWERS]
    return question.continuations


@dataclass(frozen=True)
class AddedLogits:
    """The logits of base and n adapters at the p positions of a reading.

    All figures are exact for the s tokens of the support; the other tokens of the vocabulary count
    together as one, of the probability that is left.

    logits [1 + n, p, s + 1]: of the support and of all others together. position [k], column [k],
    text [k]: where the support has a token of a text. stop [e], text_stopped [e], ends [e, s]: the
    position behind a text, the text, and which tokens end an answer there.
    """

    reading: ScreenedTexts
    logits: Tensor
    position: Tensor
    column: Tensor
    text: Tensor
    stop: Tensor
    text_stopped: Tensor
    ends: Tensor

    @classmethod
    def of(
        cls, scorer: Any, reading: ScreenedTexts, top: np.ndarray, load: Callable[[int], States]
    ) -> AddedLogits:
        """From the first choices [systems, p, k] of all systems, and their states one by one."""
        support = _support(reading, top, scorer.stops)
        ids, inverse = np.unique(support, return_inverse=True)
        inverse, absent = inverse.reshape(support.shape), torch.from_numpy(support < 0)
        chosen, places = torch.from_numpy(ids.clip(0)), torch.from_numpy(inverse)
        head = linear_head(scorer.model)
        assert head is not None
        weight, bias = (None if h is None else h[chosen.to(h.device)].float().cpu() for h in head)
        assert weight is not None
        every = torch.empty(len(top), *support.shape[:1], support.shape[1] + 1)
        for k, logits in enumerate(every):
            states = load(k)
            found = torch.nn.functional.linear(states.hidden.float(), weight, bias)
            found = found.gather(1, places) - states.total[:, None]
            logits[:, :-1] = found.masked_fill(absent, ABSENT)
            logits[:, -1] = (1 - logits[:, :-1].exp().sum(-1)).clamp_min(LEAST_REST).log()
        texts = [scorer.decode([token]) if token >= 0 else "x" for token in ids.tolist()]
        ending = np.array([not any(map(str.isalnum, t)) and UNREADABLE not in t for t in texts])
        starts = first_states(reading.rows)
        tokens, stops = [], []
        for t, text in enumerate(reading.texts):
            for at, token in enumerate(text.tokens, starts[text.row]):
                tokens.append((at, int(np.flatnonzero(support[at] == token)[0]), t))
            if text.stopped:
                stops.append((starts[text.row] + len(text.tokens), t))
        stop, of_stop = torch.tensor(stops, dtype=torch.long).reshape(-1, 2).unbind(1)
        ends = torch.from_numpy(ending[inverse])[stop]
        position, column, of_text = torch.tensor(tokens, dtype=torch.long).reshape(-1, 3).unbind(1)
        return cls(reading, every, position, column, of_text, stop, of_stop, ends)

    def values(self, subsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The results [m, questions] of sets [m, j] of adapters, and a smooth version of them.

        More is better: right answers are 1, losses are negative. The smooth version is the
        probability of the right answer, or the loss.
        """
        base, effects = self.logits[0], self.logits[1:] - self.logits[:1]
        parts = []
        for sets in torch.from_numpy(subsets).split(max(1, CHUNK // base.numel())):
            z = base + effects[sets[:, 0]]
            for member in sets.T[1:]:
                z += effects[member]
            parts.append(self._scored(z))
        logprob, right = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return _judged(self.reading, logprob, right)

    def scores(self, subsets: np.ndarray) -> np.ndarray:
        """Scores [m, questions] of sets: the mean of the result and its smooth version."""
        mean, soft = self.values(subsets)
        mean += soft  # in place: with many adapters these are the largest arrays of a screen
        mean /= 2
        return mean

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


@dataclass(frozen=True)
class AdditiveForecast:
    """What sets of adapters answer if their effects are added, from one pass of each alone.

    The pass reads the prompts of the plain questions with their right answers or choices. Greedy
    decoding writes a text exactly if each of its tokens has the largest logit at its position, and
    then a token that ends the answer. Questions of lm-evaluation-harness, those that are judged by
    a pattern, and worked answers have no text to read.

    parts: a reading each. linear [n]: adapters of which this can be said.
    """

    parts: Sequence[AddedLogits]
    linear: np.ndarray

    @classmethod
    def of(
        cls,
        scorer: Any,
        readings: Sequence[ScreenedTexts],
        systems: int,
        load: Callable[[ScreenedTexts, int], States],
    ) -> AdditiveForecast | None:
        """From the states of `systems` systems, the base first; None for a head that is not linear.

        load: gives the states of a reading and a system; one is held at a time.
        """
        parts, linear = [], np.ones(systems, bool)
        for reading in readings:
            tops = []
            for k in range(systems):
                states = load(reading, k)
                tops.append(states.top.to(torch.int32).numpy())
                linear[k] &= states.linear
            if not linear[0]:
                return None
            parts.append(AddedLogits.of(scorer, reading, np.stack(tops), partial(load, reading)))
        return cls(parts, linear[1:])

    @property
    def questions(self) -> list[Question]:
        return [question for part in self.parts for question in part.reading.questions]

    def scores(self, subsets: np.ndarray) -> np.ndarray:
        """Scores [m, questions] of sets [m, j] of adapters."""
        return np.concatenate([part.scores(subsets) for part in self.parts], 1)

    def added(self, subsets: np.ndarray) -> np.ndarray:
        """Of which sets [m] the effects can be added."""
        found: np.ndarray = self.linear[subsets].all(1)
        return found

    def results(self, members: Sequence[int], name: str) -> list[ItemResult]:
        """The results of one set of adapters as those of a system of that name."""
        hard = np.concatenate([part.values(np.array([members]))[0][0] for part in self.parts])
        return [
            question.result(name, abs(float(value)), "")
            for question, value in zip(self.questions, hard, strict=True)
            if question.part == "question"
        ]


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


def _judged(
    reading: ScreenedTexts, logprob: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Results of questions from those of their texts, as `Question.scored` judges them."""
    hard = np.zeros((len(logprob), len(reading.questions)), np.float32)
    soft = np.zeros_like(hard)
    for k, (question, own) in enumerate(zip(reading.questions, reading.of_question, strict=True)):
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


def with_worked_answers(task: Task, texts: Mapping[str, str]) -> Task | None:
    """The items that ask for worked steps, as plain questions with a worked text as right answer.

    A task gives the right answers of a question and of its hops, seldom the text of a worked
    answer. The form is taken from what one adapter writes: words that most of its answers share are
    the form, a word of the question stands for its place there, and the other words are the names
    that it filled in, right or wrong. With the right answers of the hops in their places, in order,
    the form gives a text for every item. So effects can be added on worked answers too.

    texts: item id -> what one adapter wrote. None where they have no form with a place for each
    hop.
    """
    asked = [item for item in task.items if item.cot_prompt is not None and item.hops]
    shared = _common(texts.values()), _common(item.cot_prompt or "" for item in asked)
    forms = Counter(
        form for item in asked if (form := _form(texts.get(item.id, ""), item, *shared)) is not None
    )
    if not forms:
        return None
    form = forms.most_common(1)[0][0]
    items = [_plain(item, right) for item in asked if (right := _filled(form, item, shared[1]))]
    return replace(task, items=tuple(items)) if items else None


def _plain(item: Item, right: str) -> Item:
    """The item as a plain question that is answered by this text."""
    return replace(
        item,
        prompt=item.cot_prompt or "",
        answers=(right,),
        hops=(),
        cot_prompt=None,
        answer_pattern=None,
        metric="contains",
    )


def _common(texts: Iterable[str]) -> set[str]:
    """The words of more than a share COMMON of the texts."""
    every = [set(WORD.findall(text)) for text in texts]
    often = Counter(word for words in every for word in words)
    return {word for word, times in often.items() if times > COMMON * len(every)}


def _own(item: Item, common: set[str]) -> list[str]:
    """The words of the item's prompt that other prompts lack."""
    return [
        word for word in dict.fromkeys(WORD.findall(item.cot_prompt or "")) if word not in common
    ]


def _form(text: str, item: Item, common: set[str], asked: set[str]) -> str | None:
    """The form of a text; None unless it names as many things as the item has hops."""
    own = {word: f"{{asked{k}}}" for k, word in enumerate(_own(item, asked))}
    named, form = dict[str, str](), ""
    for piece in PIECE.findall(text):
        if piece in own:
            form += own[piece]
        elif piece in common or not piece[0].isalnum():
            form += piece.replace("{", "{{").replace("}", "}}")
        else:
            form += named.setdefault(piece, f"{{hop{len(named)}}}")
    return form if len(named) == len(item.hops) else None


def _filled(form: str, item: Item, asked: set[str]) -> str | None:
    """The form with this item's words and right answers; None if its prompt lacks a word."""
    places = {f"asked{k}": word for k, word in enumerate(_own(item, asked))}
    places |= {f"hop{k}": hop.answers[0] for k, hop in enumerate(item.hops)}
    try:
        return form.format_map(places).strip()
    except KeyError:
        return None
