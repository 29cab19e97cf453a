"""The scorer of recorded replies; likelihoods are those of the base."""

from contextlib import contextmanager

from loraprobe.scoring import Scorer
from loraprobe.scoring.generation import Written


class Recorded(Scorer):
    def __init__(self, local, replies, system="base"):
        self.local, self.replies, self.system = local, replies, system
        for name in ("encoder", "context", "stops", "vocab_size"):
            setattr(self, name, getattr(local, name))

    @contextmanager
    def with_composition(self, composition):
        yield Recorded(self.local, self.replies, composition.name if composition else "base")

    def write_all(self, prompts, **limits):
        return [Written(self.replies.get((self.system, prompt), ""), False) for prompt in prompts]

    def loglikelihood(self, pairs):
        return self.local.loglikelihood(pairs)

    def note(self):
        return ""
