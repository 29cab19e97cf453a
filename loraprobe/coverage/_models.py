"""What probes that `measure` may ask of the models: texts, likelihoods, hidden states.

The base and each adapter alone answer, in rows of one batch; never two adapters in one row.
Nothing is computed twice, whichever probe asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loraprobe.composition import Composition, Router, RowGates, watched
from loraprobe.coverage._contract import Part, Question, Request, Study
from loraprobe.coverage._states import Sight, Watch
from loraprobe.scoring import Voice, Written, read_together, score_together, write_together

if TYPE_CHECKING:
    from loraprobe.adapter import Adapter

PLAIN_TOKENS = 32  # of a plain answer, as evaluation has it
WORKED_TOKENS = 96  # of a worked one: less than evaluation allows, enough for what adapters write
MOST_TEXTS = 60  # items of a part for which texts are written; a figure needs no more


class Models:
    """The base and its adapters, one at a time, on one scorer.

    ask: scores continuations, as `Request` has them. router: the token router whose gates are
    looked at, None for none; it decides for each token and module apart here, whatever it shares
    in a composition. max_new_tokens: a limit below PLAIN_TOKENS and WORKED_TOKENS.
    """

    def __init__(
        self,
        scorer: Any,
        adapters: Sequence[Adapter],
        ask: Callable[[Sequence[Request]], Mapping[Request, Any]],
        router: Router | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        self.scorer, self.adapters, self.likely = scorer, tuple(adapters), ask
        self.router = None if router is None else router.each_token()
        self.max_new_tokens = max_new_tokens
        self._texts: dict[tuple[Any, ...], Written] = {}
        self._sights: dict[tuple[str, str, int], Sight | None] = {}

    @property
    def n(self) -> int:
        """How many adapters there are."""
        return len(self.adapters)

    @property
    def routed(self) -> bool:
        """Whether there is a token router to look at, and something that it can route."""
        if self.router is None or self.n < 2 or any(adapter.whole for adapter in self.adapters):
            return False
        return not self.router.constant

    def texts(
        self,
        study: Study,
        part: Part,
        questions: Sequence[Question],
        voices: Sequence[Voice],
        *,
        routed: bool = False,
    ) -> list[list[Written]]:
        """What each voice writes to each question of a part: a list a voice.

        routed: gates are multiplied with the router's, which looks at the base's states alone.
        """

        def key(question: Question, voice: Voice) -> tuple[Any, ...]:
            return study.task.name, part.name, question.prompt, voice, routed

        new = [v for v in voices if any(key(q, v) not in self._texts for q in questions)]
        if new:
            composition, gates = self._beside(routed)
            limit = WORKED_TOKENS if part.worked else PLAIN_TOKENS
            with self.scorer.with_composition(composition):
                made = write_together(
                    self.scorer,
                    [q.prompt for q in questions],
                    new,
                    gates.rows.set,
                    max_new_tokens=min(limit, self.max_new_tokens or limit),
                    until_newline=not part.worked,
                )
            for voice, written in zip(new, made, strict=True):
                for question, one in zip(questions, written, strict=True):
                    self._texts[key(question, voice)] = one
        return [[self._texts[key(q, v)] for q in questions] for v in voices]

    def choices(
        self, questions: Sequence[Question], voices: Sequence[Voice], *, routed: bool = False
    ) -> list[list[str]]:
        """The choice that each voice takes of each question's, by likelihood a character."""
        composition, gates = self._beside(routed)
        pairs = [(q.prompt, choice) for q in questions for choice in q.choices]
        with self.scorer.with_composition(composition):
            scored = score_together(self.scorer, pairs, voices, gates.rows.set)
        taken = []
        for logprobs in scored:
            likely = iter(logprobs)
            each = [{c: next(likely) / len(c) for c in q.choices} for q in questions]
            taken.append([max(own, key=own.__getitem__) for own in each])
        return taken

    def _beside(self, routed: bool) -> tuple[Composition, RowGates]:
        """The composition that holds every adapter, and the gates of its rows."""
        composition = self._routed if routed else self._plain
        assert isinstance(composition.router, RowGates)
        return composition, composition.router

    @cached_property
    def _plain(self) -> Composition:
        return Composition("side-by-side", self.adapters, RowGates())

    @cached_property
    def _routed(self) -> Composition:
        return Composition("side-by-side", self.adapters, RowGates(inner=self.router))

    def worked_texts(self, study: Study, items: int) -> tuple[str, list[tuple[Question, str]]]:
        """The adapter that is best step by step, and the texts that it writes itself."""
        part = study.worked
        writer = study.best(part) if part is not None else None
        if part is None or writer is None:
            return "", []
        asked = study.sample(part, items)
        voice = Voice.alone(study.adapters.index(writer), self.n)
        (written,) = self.texts(study, part, asked, [voice])
        return writer, [(q, w.text) for q, w in zip(asked, written, strict=True)]

    def sight(self, study: Study, part: Part, items: int) -> Sight | None:
        """What adapters and router would do to the base's hidden states on a part's prompts.

        With a part that is asked step by step the tokens of the best adapter's worked text count
        as well. None without adapters.
        """
        key = study.task.name, part.name, items
        if key not in self._sights:
            self._sights[key] = self._look(study, part, items) if self.adapters else None
        return self._sights[key]

    def _look(self, study: Study, part: Part, items: int) -> Sight:
        if part.worked:
            pairs = [(q.prompt, text) for q, text in self.worked_texts(study, items)[1]]
        else:
            pairs = [(q.prompt, "") for q in study.sample(part, items)]
        watch = Watch(self.adapters, self.router if self.routed else None, self.scorer.model)
        with watched(self.scorer.model, self._plain, watch.look):
            read_together(self.scorer, pairs, watch.see)
        return watch.sight(len(pairs))
