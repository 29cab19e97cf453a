"""The scorer of recorded replies; likelihoods are those of the base."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from loraprobe.composition import Composition
from loraprobe.scoring import Likelihood, Scorer, Written


class Recorded(Scorer):
    def __init__(
        self, local: Scorer, replies: Mapping[tuple[str, str], str], system: str = "base"
    ) -> None:
        super().__init__(local)
        self.local, self.replies, self.system = local, replies, system

    @contextmanager
    def with_composition(self, composition: Composition | None) -> Iterator[Scorer]:
        yield Recorded(self.local, self.replies, composition.name if composition else "base")

    def write_all(self, prompts: Sequence[str], **limits: Any) -> list[Written]:
        return [Written(self.replies.get((self.system, prompt), ""), False) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        return self.local.loglikelihood(pairs)

    def note(self) -> str:
        return ""
