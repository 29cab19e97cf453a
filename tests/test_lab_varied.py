"""Fact worlds with many trials, the atlas of them, and what `lab show` says of a world."""

from __future__ import annotations

import json

import pytest

from loraprobe_lab.atlas import ATLAS, WorldPlan
from loraprobe_lab.facts import FactSizes
from loraprobe_lab.kit import Kit, build_kit
from loraprobe_lab.pretrain import BaseRecipe
from loraprobe_lab.show import describe
from loraprobe_lab.varied import facts_kit
from loraprobe_lab.varied_axes import WIDE
from loraprobe_lab.vocabulary import UNK, build_tokenizer

SIZES = FactSizes(familiar=24, newcomers=12, strangers=12, cities=6, reserve=4)


def kit(seed: int = 1, **options) -> Kit:
    return facts_kit(seed, sizes=SIZES, items=20, **options)


def test_a_kit_is_a_function_of_its_seed():
    def content(made: Kit):
        return made.lessons, made.tasks, made.trials, made.words

    assert content(kit(3)) == content(kit(3))
    assert content(kit(3)) != content(kit(4))


def test_every_word_is_in_the_vocabulary():
    made = kit(trials=3)
    tokenizer = build_tokenizer(made.words)
    unknown = tokenizer.convert_tokens_to_ids(UNK)
    texts = [
        t for lesson in made.lessons for e in lesson.examples for t in (e.prompt, e.completion)
    ]
    texts += [item["prompt"] for items in made.tasks.values() for item in items]
    draw = made.corpus(0)
    texts += [part for _ in range(300) for e in [draw()] for part in (e.prompt, e.completion)]
    for text in texts:
        assert unknown not in tokenizer(text)["input_ids"], text


def test_trials_share_no_adapter_and_no_seed():
    made = kit(trials=3)
    used = [name for trial in made.trials for name in trial.adapters]
    assert len(used) == len(set(used)) == len(made.lessons)
    seeds = [lesson.recipe.seed for lesson in made.lessons]
    assert len(seeds) == len(set(seeds))


def test_trials_of_one_class_have_their_own_facts():
    made = kit(trials=2, classes=("skill-and-facts",))
    one, two = ([item["answer"] for item in made.tasks[t.name]] for t in made.trials)
    assert one != two


def test_the_share_of_familiar_second_hops_is_what_the_axis_says():
    for seed in range(1, 5):
        made = kit(seed, trials=2, classes=("skill-and-facts",))
        known = {link.spouse for link in _facts(seed).familiar}
        for trial in made.trials:
            hops = [item["hops"][0]["answer"] in known for item in made.tasks[trial.name]]
            assert sum(hops) / len(hops) == pytest.approx(trial.axes["familiar"], abs=0.05)


def test_no_newcomer_is_told_of_in_pretraining():
    made, facts = kit(5, worked=0.2), _facts(5)
    draw = made.corpus(0)
    told = [f"{e.prompt} {e.completion}" for e in (draw() for _ in range(2000))]
    for link in facts.newcomers[:5]:
        mentions = [text for text in told if f" {link.person}" in f" {text}"]
        assert mentions and all(" met " in text for text in mentions)


def test_worked_bases_read_worked_steps_and_others_do_not():
    def steps(share: float) -> int:
        draw = kit(2, worked=share).corpus(0)
        return sum("step by step" in draw().prompt for _ in range(500))

    assert steps(0.0) == 0
    assert 50 < steps(0.2) < 150


def test_parts_split_the_target_relation_between_the_adapters():
    made = next(
        m
        for m in (kit(seed, trials=3, classes=("two-hop",)) for seed in range(1, 5))
        if any(t.axes["library"] == "parts" for t in m.trials)
    )
    trial = next(t for t in made.trials if t.axes["library"] == "parts")
    lessons = {lesson.name: lesson for lesson in made.lessons}
    asked = [
        {e.prompt for e in lessons[name].examples if "spouse of" in e.prompt and "live" in e.prompt}
        for name in trial.adapters
    ]
    assert asked[0] and asked[1] and not asked[0] & asked[1]


def test_seeds_go_through_all_libraries_and_pairs():
    trials = [t for seed in range(1, 10) for t in kit(seed, trials=2).trials]
    assert {t.axes["library"] for t in trials if "library" in t.axes} == set(WIDE.libraries)
    assert {t.axes["pair"] for t in trials if "pair" in t.axes} == {"+".join(p) for p in WIDE.pairs}


def test_favourable_trials_follow_and_leave_the_others_as_they_are():
    wide, more = kit(3, trials=2), kit(3, trials=2, favourable=1)
    assert more.trials[: len(wide.trials)] == wide.trials
    assert more.lessons[: len(wide.lessons)] == wide.lessons
    assert more.made_from == wide.made_from
    added = more.trials[len(wide.trials) :]
    assert {t.axes["stratum"] for t in added} == {"favourable"} and len(added) == 3
    assert not {t.name for t in added} & {t.name for t in wide.trials}


def test_the_atlas_is_large_enough_for_a_calibration():
    assert len({plan.name for plan in ATLAS}) == len(ATLAS) >= 12
    assert {plan.architecture for plan in ATLAS} == {"llama", "gpt2"}
    assert {plan.kind for plan in ATLAS} == {"facts", "math", "cross-lingual"}
    sets = sum(plan.trials * (3 if plan.kind == "facts" else 1) for plan in ATLAS)
    assert sets >= 60


def _facts(seed: int):
    from loraprobe_lab.facts import make_facts

    return make_facts(SIZES, seed)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    small = BaseRecipe(hidden=16, layers=1, heads=2, intermediate=24, steps=2, architecture="gpt2")
    made = kit(1, trials=1, base=small)
    short = tuple(
        type(lesson)(lesson.name, lesson.description, lesson.examples,
                     type(lesson.recipe)(**{**vars(lesson.recipe), "steps": 1}))
        for lesson in made.lessons
    )  # fmt: skip
    return build_kit(
        Kit(**{**vars(made), "lessons": short}), tmp_path_factory.mktemp("worlds") / "w"
    )


def test_a_gpt2_world_is_built_and_opens(world):
    world.verify()
    assert {s.world for s in world.scenarios.values()} == {
        "skill-and-facts", "two-hop", "keep-both",
    }  # fmt: skip
    targets = json.loads((world.adapters["skill-and-facts-1.facts"] / "adapter_config.json")
                         .read_text())["target_modules"]  # fmt: skip
    assert "mlp.c_fc" in targets or "c_attn" in targets or targets == "all-linear"


def test_show_lists_what_the_world_holds(world):
    (found,) = describe(world.path)
    assert found["kind"] == "facts" and found["base"]["architecture"] == "gpt2"
    assert {a["name"] for a in found["adapters"]} == set(world.adapters)
    assert all(a["finished"] and a["loss"] > 0 for a in found["adapters"])
    scenario = next(s for s in found["scenarios"] if s["world"] == "keep-both")
    assert len(scenario["tasks"]) == 2 and "--task" in scenario["command"]
    items = {task["name"]: task["items"] for task in found["tasks"]}
    assert items["two-hop-1"] == SIZES.strangers


def test_show_lists_every_world_below_a_directory(world):
    assert [row["path"] for row in describe(world.path.parent)] == [str(world.path)]


def test_show_of_no_world_says_so(tmp_path):
    from loraprobe_lab.world import WorldError

    with pytest.raises(WorldError, match="is no world"):
        describe(tmp_path)


def test_an_unknown_kind_of_world_is_refused(tmp_path):
    from loraprobe.errors import UsageError
    from loraprobe_lab.atlas import kit_of

    with pytest.raises(UsageError, match="no kind of world 'poems'"):
        kit_of(WorldPlan("poems", 1, "llama"))
