"""Forecasts of what compositions answer, from answers of the base and of each adapter alone.

If the adapters' effects on the next token were added, a composition's logits would be those of the
base plus the effect of each member, z_S = z_0 + sum over a in S of (z_a - z_0). A real composition
differs by interference inside the network. The answers are judged and compared in the same way as
those of a real system. `forecast_recorded` adds what was scored when the base and the adapters were
asked alone. `PairForecast` adds hidden states of one pass, for every set of a library; a set is
never read itself. `KnownAlone` ranks sets where effects cannot be added, and `with_worked_answers`
gives worked answers a text that can be read.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from loraprobe.tasks import Item, Task, normalize_answer

SCORED = ("choice", "answer_loss")  # metrics that read the likelihood of given texts
MOST_ANSWERS = 4  # of a question that are read
WHOLE = ("exact_match", "strict")  # metrics by which more than the right answer is wrong
SUPPORT = 64  # tokens of a position whose logits are added
LEAST_REST = 0.01  # the probability of all other tokens; rounding of the states reaches it
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # a part of a character
CHUNK = 1 << 17  # logits that are added at once; more do not fit into the cache of a core
TIE = 1e-4  # logits: a token this close below the largest one counts as the largest
ABSENT = -1e4  # the logit of a place of the support without a token
SHARED = 0.7  # below this share of distinct right answers, one item's is an answer to another's
COMMON = 0.5  # a word of more of the texts than this belongs to the form
PIECE = re.compile(r"\w+|\W+")
Slot = tuple[str, int] | str  # a piece of the form, or ("asked", place) or ("hop", place)


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

    None if a task is one of lm-evaluation-harness, which asks by itself.
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

    @classmethod
    def joined(cls, parts: Sequence[ScreenedTexts]) -> ScreenedTexts:
        """Several readings as one, in their order."""
        asked: list[Question] = []
        rows: list[TokenRow] = []
        texts: list[Text] = []
        for part in parts:
            before, above = len(asked), len(rows)
            texts += [
                replace(text, question=text.question + before, row=text.row + above)
                for text in part.texts
            ]
            asked += part.questions
            rows += part.rows
        return cls(tuple(asked), tuple(rows), tuple(texts))

    @property
    def mark(self) -> str:
        """What states of this reading are stored under."""
        return hashlib.sha256(repr((self.rows, self.texts)).encode()).hexdigest()

    def read(self, scorer: Any, system: str) -> tuple[States, list[ItemResult]]:
        """The states of the system in the scorer's model, and its results of scored questions."""
        states, logprobs = self.read_rows(scorer)
        scores: list[list[tuple[float, int]]] = [[] for _ in self.questions]
        for t, text in enumerate(self.texts):
            scores[text.question].append((logprobs[t], len(text.tokens)))
        answered = zip(self.questions, scores, strict=True)
        return states, [q.scored(system, own) for q, own in answered if not q.generated]

    def read_rows(self, scorer: Any) -> tuple[States, dict[int, float]]:
        """The states of the scorer's model, and the log-probability of each text by its place."""
        of_row: list[list[int]] = [[] for _ in self.rows]
        for t, text in enumerate(self.texts):
            of_row[text.row].append(t)
        states, found = read_states(
            scorer, self.rows, [[self.texts[t].tokens for t in own] for own in of_row]
        )
        return states, dict(zip(chain(*of_row), chain(*found), strict=True))


def _texts(question: Question) -> tuple[str, ...]:
    """The texts of a question that are read."""
    if question.generated:
        return tuple(dict.fromkeys(question.answers))[:MOST_ANSWERS]
    return question.continuations


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
    """What sets of adapters answer if their effects are added, from one pass of each alone.

    The pass reads the prompts of the plain questions with their right answers or choices. Greedy
    decoding writes a text exactly if each of its tokens has the largest logit at its position, and
    then a token that ends the answer. All figures are exact for the tokens of the support; the
    other tokens of the vocabulary count together as one, of the probability that is left. Questions
    of lm-evaluation-harness, those that are judged by a pattern, and worked answers have no text to
    read.

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


@dataclass(frozen=True)
class KnownAlone:
    """Results of the base and n adapters alone on the items of one task, by part: [1 + n, items].

    They tell what sets would answer if each question went to the member that answers it. This ranks
    sets where effects on the next token cannot be added: worked answers have no given text, and
    some heads are not linear. It is an upper bound that compositions seldom reach, and it names the
    sets that have something to gain. For worked answers a set needs an adapter that knows each hop,
    and one that writes answers of the asked kind.

    More is better; NaN where an item lacks the part. `form` [1 + n] says of each how often its
    worked answers are of the asked kind; None for a task without worked answers.
    """

    task: Task
    parts: dict[str, np.ndarray]
    form: np.ndarray | None

    @classmethod
    def of(cls, task: Task, systems: Sequence[str], results: Sequence[ItemResult]) -> KnownAlone:
        """From the results of the systems, the base first."""
        row = {name: k for k, name in enumerate(systems)}
        column = {item.id: k for k, item in enumerate(task.items)}
        shape = len(systems), len(task.items)
        parts: dict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
        worked: dict[str, list[str]] = defaultdict(list)
        for result in results:
            if result.task != task.name or result.system not in row:
                continue
            sign = -1.0 if result.metric == "answer_loss" else 1.0
            parts[result.part][row[result.system], column[result.item]] = sign * result.value
            if result.part == "steps" and not result.cut:
                worked[result.system].append(result.text)
        form = np.array([_form_share(task, worked[name]) for name in systems]) if worked else None
        return cls(task, dict(parts), form)

    def alone(self) -> np.ndarray:
        """The score [1 + n] of each in the form of the question that suits it better."""
        means = [np.nanmean(self.parts[p], 1) for p in ("question", "steps") if p in self.parts]
        found: np.ndarray = np.max(means, 0)
        return found

    def question(self, subsets: np.ndarray) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the plain question.

        Halfway between the best member and the members together.
        """
        values = self.parts["question"]
        alone = np.nanmean(values, 1)
        best = np.maximum(alone[0], alone[1:][subsets].max(1))
        together: np.ndarray = (best + np.nanmean(_together(values, subsets), 1)) / 2
        return together

    def steps(self, subsets: np.ndarray, covered: np.ndarray | None = None) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the question with worked steps.

        covered [m, items]: whether a set knows what an item takes; None for what its members and
        the base know alone.
        """
        assert self.form is not None
        if covered is None:
            covered = self.covered(subsets)
        form = np.maximum(self.form[0], self.form[1:][subsets].max(1))
        right = np.nanmean(_together(self.parts["steps"], subsets), 1)
        found: np.ndarray = np.maximum(covered.mean(1) * form, right)
        return found

    def covered(self, subsets: np.ndarray) -> np.ndarray:
        """Whether [m, items] the members or the base know every hop, or the answer without hops."""
        hops = [values for part, values in self.parts.items() if part.startswith("hop")]
        covered = np.ones((len(subsets), len(self.task.items)), np.float32)
        for values in hops or [self.parts["question"]]:
            covered *= np.nan_to_num(_together(values, subsets), nan=1.0)
        return covered


def _together(values: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Results [m, items] of the best of the base and the members."""
    found = np.maximum(values[1:][subsets[:, 0]], values[0])
    for member in subsets.T[1:]:
        np.maximum(found, values[1:][member], out=found)
    return found


def _form_share(task: Task, texts: Sequence[str]) -> float:
    """How often worked answers are of the asked kind, and how far they depend on the question.

    texts: those that did not end at the limit of tokens. They are of the asked kind if they name a
    right answer of some item, where right answers repeat; else if they say anything.
    """
    golds = {normalize_answer(answer) for item in task.items for answer in item.answers}
    repeat = len(golds) <= SHARED * len(task.items)
    said = [f" {normalize_answer(text)} " for text in texts]
    if repeat:
        named = [{gold for gold in golds if f" {gold} " in text} for text in said]
        different = len(set().union(*named)) / len(golds) if named else 0.0
        return sum(map(bool, named)) / len(task.items) * different
    whole = [text for text in said if text.strip()]
    return len(whole) / len(task.items) * len(set(whole)) / max(1, len(whole))


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


def likely_worked(task: Task) -> Task | None:
    """The same with texts of about the length of worked answers; None where none are read.

    It tells what reading worked answers will take, before any has been written.
    """
    asked = [item for item in task.items if item.cot_prompt is not None and item.hops]
    items = [
        _plain(item, " ".join([item.prompt, *(hop.answers[0] for hop in item.hops)]))
        for item in asked
    ]
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
    every = [set(_words(text)) for text in texts]
    often = Counter(word for words in every for word in words)
    return {word for word, times in often.items() if times > COMMON * len(every)}


def _words(text: str) -> list[str]:
    return [piece for piece in PIECE.findall(text) if piece[0].isalnum()]


def _own(item: Item, common: set[str]) -> list[str]:
    """The words of the item's prompt that other prompts lack."""
    return [word for word in dict.fromkeys(_words(item.cot_prompt or "")) if word not in common]


def _form(text: str, item: Item, common: set[str], asked: set[str]) -> tuple[Slot, ...] | None:
    """The form of a text; None unless it names as many things as the item has hops."""
    own, named, form = _own(item, asked), list[str](), list[Slot]()
    for piece in PIECE.findall(text):
        if piece in own:
            form.append(("asked", own.index(piece)))
        elif piece in common or not piece[0].isalnum():
            form.append(piece)
        else:
            named += [piece] if piece not in named else []
            form.append(("hop", named.index(piece)))
    return tuple(form) if len(named) == len(item.hops) else None


def _filled(form: Sequence[Slot], item: Item, asked: set[str]) -> str | None:
    """The form with this item's words and right answers; None if its prompt lacks a word."""
    own, pieces = _own(item, asked), []
    for slot in form:
        if isinstance(slot, str):
            pieces.append(slot)
        elif slot[0] == "hop" and slot[1] < len(item.hops):
            pieces.append(item.hops[slot[1]].answers[0])
        elif slot[0] == "asked" and slot[1] < len(own):
            pieces.append(own[slot[1]])
        else:
            return None
    return "".join(pieces).strip()
