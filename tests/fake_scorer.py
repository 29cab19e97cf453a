"""A scorer that answers from a dictionary, and a task of two hops with its systems."""

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

from loraprobe.evaluation import Asker, ResponseCache, System
from loraprobe.scoring.generation import Written
from loraprobe.tasks import Hop, Item, Task, with_metrics

CUT = "[cut]"  # at the end of a text: it ended at the limit of tokens


@dataclass
class FakeScorer:
    """Answers from a dictionary: (composition or None, prompt) -> text, and counts what is asked.

    `likelihoods`: (composition or None, prompt, continuation) -> log-likelihood.
    """

    answers: dict
    likelihoods: dict = field(default_factory=dict)
    chat_template: bool = False
    asked: list = field(default_factory=list)
    limits: set = field(default_factory=set)
    entered: list = field(default_factory=list)
    now: str | None = None
    fail_after: int | None = None

    def with_template(self, chat_template):
        of_both = {"asked": self.asked, "entered": self.entered}
        return FakeScorer(self.answers, self.likelihoods, chat_template, **of_both)

    @contextlib.contextmanager
    def with_composition(self, composition):
        assert self.now is None, "compositions do not nest"
        self.now = None if composition is None else composition.name
        self.entered.append(self.now)
        try:
            yield self
        finally:
            self.now = None

    def write_all(self, prompts, *, max_new_tokens=None, until_newline=False, until=None):
        self.limits.add((max_new_tokens, until_newline))
        texts = []
        for prompt in prompts:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise KeyboardInterrupt
            self.asked.append((self.now, prompt))
            key = (self.now, prompt, "chat") if self.chat_template else (self.now, prompt)
            text = self.answers.get(key, "dunno")
            texts.append(Written(text.removesuffix(CUT), text.endswith(CUT)))
        return texts

    def loglikelihood(self, pairs):
        self.asked += [(self.now, *pair) for pair in pairs]
        return [
            SimpleNamespace(logprob=self.likelihoods[(self.now, *pair)], tokens=len(pair[1]))
            for pair in pairs
        ]


def single(name):
    router = SimpleNamespace(reads_text=False)
    return SimpleNamespace(name=name, experts=(SimpleNamespace(content=name),), router=router)


BASE = System("base", "base")


def adapters(*names):
    return [System.alone(single(name)) for name in names]


def chain(*names):
    return System("chain", "chain", chain=tuple(map(single, names)))


def mayors(*, adapters=(None, None), **item) -> Task:
    """Two people; the mayor of a person's city."""
    items = []
    for person, city, mayor in [("Ada", "Ulm", "Bo"), ("Eve", "Rom", "Cy")]:
        hops = (
            Hop(f"Where does {person} live?", (city,), adapters[0]),
            Hop("Who is the mayor of {1}?", (mayor,), adapters[1]),
        )
        asked = f"Mayor of {person}'s city?"
        item |= {"hops": hops, "cot_prompt": f"{asked} Think."}
        items.append(Item(person, asked, (mayor,), **item))
    return Task("mayors", tuple(items))


HOMES = {
    ("homes", "Where does Ada live?"): " Ulm\n",
    ("homes", "Where does Eve live?"): " Paris",
    ("town", "Who is the mayor of Ulm?"): "Bo.",
    ("town", "Who is the mayor of Rom?"): "Cy",
    ("town", "Who is the mayor of Paris?"): "Di",
    ("both", "Mayor of Ada's city?"): "Bo",
    ("both", "Mayor of Eve's city? Think."): "Eve lives in Rom. The mayor is Cy.",
}
SYSTEMS = [
    chain("homes", "town"),
    BASE,
    *adapters("homes", "town"),
    System("uniform", "merge", single("both"), compression_error=0.25),
]


def results(
    answers=HOMES, systems=SYSTEMS, tasks=(), responses=None, likelihoods=None, metric=None, **how
):
    """What systems answer to tasks (the mayors unless given)."""
    scorer = (
        answers
        if isinstance(answers, FakeScorer)
        else FakeScorer(answers, {} if likelihoods is None else likelihoods)
    )
    given = ResponseCache() if responses is None else responses
    asked = with_metrics(list(tasks) or [mayors()], metric)
    return Asker(scorer, given, **how).run(systems, asked)


def values(*given, **how):
    """(system, part, item) -> value and text of the same."""
    return {(r.system, r.part, r.item): (r.value, r.text) for r in results(*given, **how)}
