"""Coverage probes: their figures by hand, on planted scorers, and on a real small model."""

import contextlib
import dataclasses
import math
import re
from types import SimpleNamespace

import bases
import making
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loraprobe.probes import ProbeContext, cover
from loraprobe.probes._names import MadeUpNames, capitalised_spans
from loraprobe.probes._probe import mean_row
from loraprobe.probes.coverage import MinKPlusPlus
from loraprobe.records import QUESTION, ItemPart, ItemResult, hop_part
from loraprobe.scoring import Likelihood
from loraprobe.scoring.generation import Written
from loraprobe.tasks import Hop, Item, Task


class PieceTokenizer:
    """A token for every three letters of a word: enough to match lengths."""

    def __call__(self, texts, add_special_tokens=True, **rest):
        one = isinstance(texts, str)
        rows = [
            [hash(p) for w in t.split() for p in re.findall(".{1,3}", w)]
            for t in ([texts] if one else texts)
        ]
        return {"input_ids": rows[0] if one else rows}


def likelihood(logprob, *, top=None, tokens=1, rank=1, mean=-2.0, std=1.0):
    each = logprob / tokens
    top = each if top is None else top
    return Likelihood(
        token_logprobs=(each,) * tokens,
        top_logprobs=(top,) * tokens,
        mean=(mean,) * tokens,
        std=(std,) * tokens,
        rank=(rank,) * tokens,
    )


class FakeScorer:
    """Answers from functions of (system, prompt[, continuation]); counts what it is asked."""

    def __init__(self, likely=None, says=None, chat=False):
        self.tokenizer, self.chat_template, self.system = PieceTokenizer(), chat, "base"
        self._likely = likely or (lambda system, prompt, answer: likelihood(-1.0))
        self._says = says or (lambda system, prompt: "?")
        self.calls = []

    @contextlib.contextmanager
    def with_composition(self, composition):
        before, self.system = self.system, composition.name if composition else "base"
        yield self
        self.system = before

    def with_template(self, chat):
        return self if chat == self.chat_template else Plain(self)

    def loglikelihood(self, pairs):
        pairs = list(pairs)
        if pairs:
            self.calls.append(("score", self.system, pairs))
        return [self._likely(self.system, *pair) for pair in pairs]

    def generate(self, prompts, **options):
        return [written.text for written in self.write_all(prompts, **options)]

    def write_all(self, prompts, *, max_new_tokens=None, until_newline=False, until=None):
        self.calls.append(("generate", self.system, list(prompts)))
        return [Written(self._says(self.system, prompt), False) for prompt in prompts]


class Plain:
    """A FakeScorer asked without its chat template."""

    chat_template = False

    def __init__(self, scorer):
        self.scorer = scorer

    def with_composition(self, composition):
        return self.scorer.with_composition(composition)

    def loglikelihood(self, pairs):
        self.scorer.calls.append(("plain", self.scorer.system, list(pairs)))
        return [self.scorer._likely(self.scorer.system, *pair) for pair in pairs]


A, B = making.random_adapter("a"), making.random_adapter("b", seed=1)


def run(scorer, tasks, probes=None, results=(), adapters=(A, B), **rest):
    tasks = [tasks] if isinstance(tasks, Task) else tasks
    return cover(scorer, adapters, tasks, results=results, probes=probes, **rest)


def by(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


CITIES = ("Ulm", "Jena", "Bonn", "Kiel")


def couples(n=4, entities=True):
    """Person i lives in city i, whose mayor is Mi."""
    return Task(
        "t",
        tuple(
            Item(
                f"i{i}",
                f"Who is mayor where Person{i} lives?",
                (f"M{i}",),
                hops=(
                    Hop(f"Where does Person{i} live?", (CITIES[i % 4],)),
                    Hop("Who is mayor of {1}?", (f"M{i}",)),
                ),
                entities=(f"Person{i}",) if entities else (),
            )
            for i in range(n)
        ),
    )


def results_of(rights, part):
    """Results on `couples`. rights: system -> string of 1 and 0, an item each."""
    return [
        ItemResult(
            name, "t", ItemPart(part), f"i{i}", "exact_match", float(value), "?", f"item:i{i}"
        )
        for name, row in rights.items()
        for i, value in enumerate(row)
    ]


# ---- one pass ---------------------------------------------------------------------------------


def test_one_pass_over_the_base_serves_all_probes():
    task, other = couples(), dataclasses.replace(couples(), name="u")
    scorer = FakeScorer()
    run(scorer, [task, other])
    assert [(kind, system) for kind, system, _ in scorer.calls] == [("score", "base")]
    pairs = scorer.calls[0][2]
    assert len(pairs) == len(set(pairs)) > 0


def test_texts_without_a_question_get_no_template():
    scorer = FakeScorer(chat=True)
    run(scorer, couples(), ["min_k_plus_plus", "answer_margin"])
    kinds = {kind: pairs for kind, _, pairs in scorer.calls}
    assert set(kinds) == {"score", "plain"}
    assert all(prompt == "" for prompt, _ in kinds["plain"])
    assert all(prompt != "" for prompt, _ in kinds["score"])


# ---- each probe by hand -----------------------------------------------------------------------


def test_answer_margin_is_top_minus_gold_at_the_first_token():
    def likely(system, prompt, answer):
        gold = {"R0": 0.5, "R1": 0.2, "R2": 0.1, "R3": 0.1, "alias": 0.4}[answer]
        first = math.log(gold)
        return dataclasses.replace(
            likelihood(2 * first, tokens=2),
            token_logprobs=(first, -9.0),
            top_logprobs=(math.log(0.5), 0.0),
        )

    answers = [("R0",), ("R1",), ("R2",), ("R3", "alias")]
    items = [Item(f"i{k}", f"Q{k}?", given) for k, given in enumerate(answers)]
    row = run(FakeScorer(likely), Task("p", tuple(items)), ["answer_margin"])[0]
    margins = [0.0, 0.3, 0.4, 0.1]  # of several accepted answers the likeliest counts
    assert row.value == pytest.approx(np.mean(margins)) and row.n == 4
    low, high = stats.t.interval(0.95, 3, np.mean(margins), stats.sem(margins))
    assert row.ci95 == pytest.approx((max(low, 0), high))


def test_gold_rank_compares_answers_of_the_same_part():
    order = {"Ulm": -1.0, "Jena": -2.0, "Bonn": -3.0, "Kiel": -4.0}

    def likely(system, prompt, answer):
        return likelihood(order.get(answer, -9.0) * 2, tokens=2)

    scorer = FakeScorer(likely)
    rows = run(scorer, couples(), ["gold_rank"])
    first = by(rows, hop=1)
    assert first.value == np.mean([1, 2, 3, 4]) and first.baseline == 2.5 and first.n == 4
    for prompt, answer in scorer.calls[0][2]:
        assert (answer in CITIES) == prompt.startswith("Where")  # cities among cities
    assert by(rows, hop=2).value == 2.5  # all alike: the middle of four


def test_gold_rank_leaves_out_other_right_answers_and_keeps_to_choices():
    items = (
        Item("0", "Q0?", ("Ulm", "Jena")),
        Item("1", "Q1?", ("jena",)),
        Item("2", "Q2?", ("Bonn",), choices=("Bonn", "x", "y")),
    )
    scorer = FakeScorer()
    run(scorer, Task("p", items), ["gold_rank"])
    asked = {}
    for kind, _, pairs in scorer.calls:
        for prompt, answer in pairs if kind == "score" else ():
            asked.setdefault(prompt, set()).add(answer)
    assert asked["Q0?"] == {"Ulm", "Jena", "Bonn"}  # jena is right here, so no distractor
    assert asked["Q2?"] == {"Bonn", "x", "y"}


def test_gold_rank_counts_a_token_so_that_long_answers_are_not_behind():
    def likely(system, prompt, answer):
        return likelihood(-4.0, tokens=8) if answer == "long" else likelihood(-2.0, tokens=2)

    task = Task("p", (Item("0", "Q?", ("long",), choices=("long", "x", "y")),))
    assert by(run(FakeScorer(likely), task, ["gold_rank"]), hop=None).value == 1.0


def test_gold_rank_samples_items_and_nine_distractors():
    rows = run(FakeScorer(), couples(30), ["gold_rank"], items=7)
    target = by(rows, hop=None)
    assert (target.n, target.baseline) == (7, 5.5)


def test_hop_accuracy_of_base_and_each_adapter():
    known = results_of({"base": "0000", "a": "1110", "b": "0001"}, "hop1")
    known += results_of({"base": "1111", "a": "1111", "b": "1011"}, "hop2")
    known += results_of(dict.fromkeys(("base", "a", "b"), "0000"), "question")
    rows = run(FakeScorer(), couples(), ["hop_accuracy"], known)
    values = {(r.hop, r.adapters): r.value for r in rows}
    first = {(1, ()): 0, (1, ("a",)): 0.75, (1, ("b",)): 0.25}
    assert values == {**first, (2, ()): 1, (2, ("a",)): 1, (2, ("b",)): 0.75}
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert by(rows, hop=1, adapters=("a",)).ci95 == pytest.approx((wilson.low, wilson.high))
    assert by(rows, hop=1, adapters=()).baseline == 0.25


def test_name_swap_is_the_gain_of_real_names():
    def likely(system, prompt, answer):
        knows = "Person0" in prompt or "Person1" in prompt
        return likelihood(-1.0 if knows else -3.0)

    rows = run(FakeScorer(likely), couples(), ["name_swap"])
    assert {r.hop for r in rows} == {None, 1}  # hop 2 asks for cities, which are not listed
    assert by(rows, hop=1).value == pytest.approx(1.0) and by(rows, hop=1).n == 4
    unknown = run(FakeScorer(), couples(), ["name_swap"])
    assert by(unknown, hop=1).value == 0.0
    silent = run(FakeScorer(), couples(entities=False), ["name_swap"])
    assert silent == ()


def test_a_name_that_the_answer_repeats_is_swapped_there_too():
    """A model that only copies knows no name, and the probe says so."""

    def likely(system, prompt, answer):
        return likelihood(-1.0 if set(answer.split()) & set(prompt.split()) else -5.0)

    home, names = "The home of Ada Person is", ("Ada Person", "Ulm")
    scorer = FakeScorer(likely)
    task = Task("p", (Item("0", home, ("Ada Person lives in Ulm",), entities=names),))
    assert run(scorer, task, ["name_swap"])[0].value == 0.0
    asked = [pair for kind, _, pairs in scorer.calls for pair in pairs if kind == "score"]
    swapped = [answer for prompt, answer in asked if "Ada" not in prompt]
    assert swapped and all("Ada" not in answer and "Ulm" in answer for answer in swapped)


def test_min_k_plus_plus_against_the_formula():
    rng = np.random.default_rng(0)
    logp, mu, sigma = -rng.random(13) * 5, -rng.random(13) * 5, rng.random(13) + 0.1
    fake = SimpleNamespace(token_logprobs=logp, mean=mu, std=sigma)
    z = np.sort((logp - mu) / sigma)
    assert MinKPlusPlus().of(fake) == pytest.approx(z[:2].mean())  # 20 % of 13 tokens: 2
    certain = SimpleNamespace(token_logprobs=[0.0], mean=[0.0], std=[0.0])
    assert MinKPlusPlus().of(certain) == 0.0


def test_min_k_plus_plus_is_compared_with_made_up_names():
    def likely(system, prompt, answer):
        return likelihood(-1.0 if "Person" in answer else -4.0)

    rows = run(FakeScorer(likely), couples(), ["min_k_plus_plus"])
    assert (by(rows, hop=1).value, by(rows, hop=1).baseline) == (1.0, -2.0)
    assert by(rows, hop=2).baseline is None  # names nobody
    first, *others = couples().items
    some = Task("t", (dataclasses.replace(first, entities=()), *others))
    rows = run(FakeScorer(likely), some, ["min_k_plus_plus"])
    assert by(rows, hop=1).baseline is None  # another set of texts would be compared


def test_a_large_part_is_sampled_in_order():
    context = ProbeContext(couples(30), (), (), PieceTokenizer(), 10, seed=3)
    chosen = [q.item.id for q in context.sample(QUESTION)]
    assert len(chosen) == 10 and chosen == sorted(chosen, key=lambda item: int(item[1:]))
    assert context.parts[hop_part(1)][1].prompt == "Who is mayor of Jena?"


def test_items_may_have_different_numbers_of_hops():
    short, long = couples(2).items
    items = (dataclasses.replace(short, hops=short.hops[:1]), long)
    context = ProbeContext(Task("t", items), (), (), PieceTokenizer())
    parts = {part: len(asked) for part, asked in context.parts.items()}
    assert parts == {"question": 2, "hop1": 2, "hop2": 1}


# ---- made-up names ----------------------------------------------------------------------------


def test_made_up_names_keep_length_case_and_identity():
    def count(name):  # tokens after a space, as names stand in a text
        return len(PieceTokenizer()(f" {name}")["input_ids"])

    names = MadeUpNames(PieceTokenizer(), 0, avoid=("Xan",))
    for name in ("Ada", "Lovelace", "Constantinople"):
        made = names.made_up(name)
        assert made != name and made.istitle()
        assert count(made) == count(name)
        assert made == MadeUpNames(PieceTokenizer(), 0).made_up(name)
    assert names.made_up("Bank of Ulm").split()[1] == "of"
    text = "Ada met Ada's friend Adam."
    made = names.made_up("Ada")
    assert names.swapped(text, ["Ada"]) == f"{made} met {made}'s friend Adam."
    assert names.swapped(text, ["Bo", ""]) is None
    assert MadeUpNames(PieceTokenizer(), 1).made_up("Lovelace") != names.made_up("Lovelace")


def test_longer_names_are_replaced_before_their_parts():
    names = MadeUpNames(PieceTokenizer())
    text = names.swapped("Ada Bolt is not Ada.", ["Ada", "Ada Bolt"])
    assert text == f"{names.made_up('Ada Bolt')} is not {names.made_up('Ada')}."
    assert names.made_up("Ada Bolt").split()[1] != "Bolt"


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Where does Ada Lovelace live?", ("Ada Lovelace",)),
        ("Paris", ("Paris",)),
        ("the Bank of Ulm and Bo's dog", ("Bank of Ulm", "Bo")),
        ("What is the capital of France? In Kiel, it rains.", ("France", "Kiel")),
        ("nothing here, is it", ()),
        ("Élise and the École of", ("Élise", "École")),
        ("I am", ()),
    ],
)
def test_capitalised_spans(text, spans):
    assert capitalised_spans(text) == spans


@given(st.text(max_size=60))
def test_spans_lie_in_their_text_and_can_be_swapped(text):
    spans = capitalised_spans(text)
    assert all(span in text for span in spans)
    MadeUpNames(PieceTokenizer()).swapped(text, spans)


# ---- intervals --------------------------------------------------------------------------------


def test_the_row_of_a_mean_has_students_interval_which_respects_clusters():
    x = [0.1, 0.5, 0.4, 0.9, 0.2]
    own = [str(i) for i in range(5)]

    def interval(values, clusters, **rest):
        return mean_row("figure", "task", values, clusters, **rest).ci95

    expected = stats.t.interval(0.95, 4, np.mean(x), stats.sem(x))
    assert interval(x, own) == pytest.approx(expected)
    # Copies of an item in its own cluster add no information.
    assert interval(x * 3, own * 3) == pytest.approx(expected)
    assert interval([1.0], ["0"]) is None
    assert interval(x, own, bounds=(0.3, 0.5)) == (0.3, 0.5)


# ---- a model that has learned something -------------------------------------------------------


@pytest.fixture(scope="module")
def story_scorer(small_base):
    """A base that has learned the stories of `story_task` by heart."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraprobe.scoring import ModelScorer

    model = AutoModelForCausalLM.from_pretrained(small_base).eval()
    return ModelScorer(model, AutoTokenizer.from_pretrained(small_base))


def story_task():
    """What the model surely knows (hop 1), and random syllables that it does not (hop 2)."""
    hops = (Hop("Once upon a", ("time",)), Hop("Once upon a", ("zqv", "xjk")))
    return Task(
        "story",
        tuple(
            Item(name, bases.GIRL.format(name), (f"{name} went",), hops=hops, entities=(name,))
            for name in bases.NAMES
        ),
    )


def test_a_model_knows_what_it_was_trained_on(story_scorer):
    rows = cover(story_scorer, [], [story_task()])
    margin = {r.hop: r.value for r in rows if r.name == "answer_margin"}
    seen = {r.hop: r.value for r in rows if r.name == "min_k_plus_plus"}
    assert margin[1] < 0.02 and margin[2] > 0.9
    assert seen[1] > seen[2] + 3
    assert by(rows, name="min_k_plus_plus", hop=None).baseline < seen[None]
    assert by(rows, name="name_swap").ci95 is not None
