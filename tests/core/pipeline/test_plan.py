"""What merge-and-eval evaluates beside its fixed systems, and what routers may learn from."""

from __future__ import annotations

import random
from dataclasses import replace
from unittest.mock import MagicMock

import making
import pytest

from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline import fitting
from loraprobe.pipeline.fitting import fit_routers
from loraprobe.pipeline.plan import WHY_ADDED, Fitted, SystemBuilder, plan_of
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import LearnedWeights
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Hop, Item, Task
from loraprobe.tasks.splits import TaskSplit

FIXED = ["uniform", "sum", "arrow"]


def task(name: str, size: int, **fields) -> Task:
    return Task(name, tuple(Item(str(i), f"{name} {i}?", ("x",), **fields) for i in range(size)))


@pytest.fixture(scope="module")
def pair():
    return [replace(making.random_adapter("tiny", seed=s), name=n) for s, n in enumerate("ab")]


ONE, STEPS = [task("t", 60)], [task("t", 60, cot_prompt="t? Step by step.")]
TWO, HOPS = [task("t", 60), task("u", 60)], [task("t", 60, hops=(Hop("h?", ("y",)),))]


@pytest.mark.parametrize(
    ("given", "tasks", "specs"),
    [
        ({}, (), FIXED),
        ({}, ONE, FIXED),
        ({}, STEPS, FIXED),
        ({}, HOPS, [*FIXED, "chain"]),
        ({}, TWO, [*FIXED, *WHY_ADDED]),
        ({"systems": ("sum",)}, TWO, ["sum"]),
        ({"methods": ("ties",)}, TWO, ["ties", "arrow", *WHY_ADDED]),
        ({"routers": ("hard",)}, TWO, ["uniform", "sum", "hard"]),
        ({"methods": ("none",)}, TWO, ["arrow", *WHY_ADDED]),
        ({"methods": ("none",), "weights": (1.0, 0.5)}, (), ["arrow"]),
        ({"routers": ("none",)}, TWO, ["uniform", "sum"]),
        ({"methods": ("none",), "routers": ("none",)}, TWO, []),
    ],
)
def test_the_kind_of_question_and_the_options_decide_what_is_evaluated(pair, given, tasks, specs):
    assert list(plan_of(Options(**given), pair, tasks).specs) == specs


@pytest.mark.parametrize(
    ("given", "specs"),
    [
        ({"methods": ["ties"]}, ["ties"]),
        ({"methods": "ties", "routers": ["hard"]}, ["ties", "hard"]),
        ({"routers": "hard"}, ["uniform", "sum", "hard"]),
        ({"methods": ["none"]}, ["arrow", *WHY_ADDED]),
    ],
)
def test_who_names_methods_asks_for_these_alone(pair, given, specs):
    """On the command line and in Python."""
    assert list(plan_of(Options.of(given), pair, TWO).specs) == specs
    with pytest.raises(UsageError, match="leaves out all routers"):
        Options(routers=("none", "arrow"))


def test_named_systems_keep_their_controls(pair):
    options = Options(systems=("sum",))
    builder = SystemBuilder(pair, PreparedAdapters(pair), options)
    (spec,) = plan_of(options, pair, [task("t", 60)]).specs
    composed = builder.build(spec)
    found = {one.name for one in builder.controls("a", composed.spec)}
    assert found == {"shrunk:a", "random-partner"}


def test_controls_that_differ_are_kept_apart(pair):
    """The random adapters stand in place of all but the best one alone."""
    builder = SystemBuilder(pair, PreparedAdapters(pair), Options())
    made = [*builder.controls("a", "sum"), *builder.controls("b", "sum")]
    made += builder.controls("a", "uniform")[1:]
    assert len({one.content for one in made}) == len(made) == 5


LEARNED = LearnedWeights({"a": 0.3, "b": -0.2}, 1.0, 1.0, 1.0, 1, 1, 1, 1)
SPECS = "task_arithmetic", "constant", "arrow"
FITTED = Fitted(routers={"arrow": ROUTERS.make("arrow")}, prompts={"a": ["x"]})
# What differs -> whether that makes other systems of a merge and of constant gates, and of a router
# that weighs by the text.
CONTENTS = [
    ({"seed": 1}, Fitted(), True, True),
    ({"allow": ("base-mismatch",)}, Fitted(), True, True),
    ({"balance": "norm"}, Fitted(), True, True),
    ({"weights": (1.0, 0.5)}, Fitted(), True, False),
    ({"rank": 8}, Fitted(), True, False),
    ({"space": "core"}, Fitted(), True, False),
    ({}, Fitted(LEARNED), True, False),
    ({}, FITTED, False, True),
    ({"max_new_tokens": 5, "limit": 3, "chat_template": "on"}, Fitted(), False, False),
]


@pytest.mark.parametrize(("options", "fitted", "merge", "router"), CONTENTS)
def test_answers_are_those_of_a_system_that_computes_the_same(pair, options, fitted, merge, router):
    def contents(adapters, options, fitted=Fitted()):  # noqa: B008
        builder = SystemBuilder(
            adapters, PreparedAdapters(adapters), Options(**options), None, fitted
        )
        return [builder.build(spec).content for spec in SPECS]

    plain = contents(pair, {})
    changed = [
        one != other for one, other in zip(plain, contents(pair, options, fitted), strict=True)
    ]
    constant = merge and not {"rank", "space"} & {*options}
    assert changed == [merge, constant, router] and len({*plain}) == 3
    assert not {*plain} & {*contents(pair[::-1], {})}, "weights go by the order"
    other = [pair[0], making.random_adapter("b", seed=7)]
    assert not {*plain} & {*contents(other, {})}


def test_a_learning_router_is_left_out_where_items_are_too_few(pair):
    enough, few = task("t", 40), task("u", 39)
    (note,) = plan_of(Options(), pair, [enough, few]).left_out
    assert "task u has 39 items" in note and "--router-prompts" in note
    assert list(plan_of(Options(), pair, [enough, few]).specs) == FIXED
    assert plan_of(Options(), pair, [enough, task("u", 40)]).left_out == ()
    third = making.random_adapter("tiny", seed=9)
    (note,) = plan_of(Options(), [*pair, third], [enough, enough]).left_out
    assert "2 tasks for 3 adapters" in note
    groups = Task("u", tuple(Item(str(i), f"{i}", ("x",), group=str(i % 2)) for i in range(50)))
    (note,) = plan_of(Options(), pair, [enough, groups]).left_out
    assert "task u has 50 items in 2 groups" in note


def test_given_prompts_spare_the_items(pair, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a question\n")
    tasks = [task("t", 12), task("u", 12)]
    options = Options(router_prompts=(("a", file), ("b", file)))
    plan = plan_of(options, pair, tasks)
    assert plan.parts is None and plan.left_out == () and plan.learning
    half = Options(router_prompts=(("a", file),))
    assert plan_of(half, pair, tasks).left_out


@pytest.mark.parametrize("seed", range(8))
def test_no_item_that_fits_a_router_is_scored(pair, seed, monkeypatch):
    """Clusters stay whole, also across tasks; a prompt that a scored item holds is not read."""
    draw = random.Random(seed)
    tasks = []
    for name in "tuv":
        items = []
        for i in range(draw.randint(60, 130)):
            group = None if draw.random() < 0.5 else f"g{draw.randint(0, 60)}"
            prompt = f"{draw.choice('tuv')} {draw.randint(0, 150)}?" if group is None else f"{i}?"
            hops = (Hop(f"What of {name} {i}?", ("y",)),) if draw.random() < 0.3 else ()
            items.append(Item(str(i), prompt, ("x",), group=group, hops=hops))
        tasks.append(Task(name, tuple(items)))
    plan = plan_of(Options(seed=seed), pair, tasks)
    parts = plan.parts
    assert isinstance(parts, TaskSplit)
    read: list[str] = []

    def loss(scorer, adapter, task):
        return float("ab".index(adapter.name) != "tuv".index(task.name) % 2)

    def fit(router, scorer, experts, prompts):
        read.extend(line for lines in prompts.values() for line in lines)
        return router

    monkeypatch.setattr(fitting, "loss_of_answers", loss)
    monkeypatch.setattr(ROUTERS.get("hard"), "fit", fit)
    monkeypatch.setattr(ROUTERS.get("hard"), "with_state", lambda self, state: self)
    scorer = MagicMock()
    fitted = fit_routers(pair, PreparedAdapters(pair), Options(seed=seed), scorer, plan)
    assert {*fitted.routers} == {*WHY_ADDED} and len(read) >= 30
    scored = [item for part in parts.left for item in part.items]
    texts = {text for item in scored for text in (item.prompt, *(h.prompt for h in item.hops))}
    assert not texts & set(read)
    apart = {item.group for part in parts.apart for item in part.items} - {None}
    assert not apart & {item.group for item in scored}
    for whole, own, left in zip(tasks, parts.apart, parts.left, strict=True):
        assert len(own.items) + len(left.items) == len(whole.items)
        assert len(own.items) >= 10 and len(left.items) >= 30
    assert any(f"on {parts.items[0]} items" in note for note in fitted.notes)


def test_a_router_that_the_model_does_not_suit_is_left_out(pair, monkeypatch):
    class Refusing:
        def with_composition(self, composition):
            raise UsageError("this model has no cache")

    tasks = [task("t", 60), task("u", 60)]
    plan = plan_of(Options(), pair, tasks)
    given = {"a": ["t 1?"], "b": ["u 1?"]}
    monkeypatch.setattr(fitting, "questions_of_each", lambda *_: {})
    monkeypatch.setattr(fitting, "gather_prompts", lambda *_, write: (given, "."))
    monkeypatch.setattr(ROUTERS.get("hard"), "fit", lambda router, *_: router)
    monkeypatch.setattr(ROUTERS.get("hard"), "with_state", lambda self, state: self)
    fitted = fit_routers(pair, PreparedAdapters(pair), Options(), Refusing(), plan)
    assert fitted.routers == {}
    assert all("left out: this model has no cache" in note for note in fitted.notes)
    assert len(fitted.notes) == len(WHY_ADDED)


def test_an_adapter_without_a_task_of_its_own(pair, monkeypatch):
    """A default router is left out with the reason; one that was named has it written prompts."""
    tasks = [task("t", 60), task("u", 60)]
    plan = plan_of(Options(), pair, tasks)
    monkeypatch.setattr(fitting, "loss_of_answers", lambda _, adapter, task: adapter.name)
    fitted = fit_routers(pair, PreparedAdapters(pair), Options(), None, plan)
    (note,) = fitted.notes
    assert fitted.routers == {} and "left out" in note and "--router-prompts b=FILE" in note
    assert fitted.specs(plan) == FIXED
    named = Options(routers=("centroid",))

    def asked(*given, **options):
        raise UsageError("asked")

    monkeypatch.setattr(fitting, "generated_prompts", asked)
    with pytest.raises(UsageError, match="asked"):
        fit_routers(pair, PreparedAdapters(pair), named, None, plan_of(named, pair, tasks))
