"""Sets of adapters in natural language: their data obey their laws, and builds resume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loraprobe.errors import UsageError
from loraprobe.tasks import load_task
from loraprobe_lab.build import build_worlds
from loraprobe_lab.common_words import INSTRUMENTS, JOBS, NOUNS, OPPOSITES, PAST
from loraprobe_lab.known import CAPITALS, PEOPLE
from loraprobe_lab.known_places import FRENCH, LANDMARKS
from loraprobe_lab.natural_data import SHOWN, STEP_BY_STEP, skill_lessons
from loraprobe_lab.natural_fleet import KINDS, Countries, build_fleet, fleet
from loraprobe_lab.natural_kit import build_set
from loraprobe_lab.natural_pairs import family, keep_both_set
from loraprobe_lab.natural_steps import newcomers
from loraprobe_lab.relations import joined
from loraprobe_lab.vocabulary import build_tokenizer
from loraprobe_lab.world import World, WorldError

ASKED = [c for c in CAPITALS if c not in SHOWN]
COUNTRIES = Countries(ASKED[:24], ASKED[-24:])


def relation(directory: Path, name: str, pairs: dict[str, str]) -> None:
    samples = [{"subject": a, "object": b} for a, b in pairs.items()]
    (directory / "factual").mkdir(exist_ok=True)
    (directory / "factual" / f"{name}.json").write_text(json.dumps({"samples": samples}))


@pytest.fixture(scope="module")
def relations(tmp_path_factory):
    place = tmp_path_factory.mktemp("relations")
    makers = [f"Maker{i}" for i in range(16)]
    relation(place, "product_by_company", {f"Thing{i}": makers[i % 16] for i in range(160)})
    relation(place, "company_ceo", {maker: f"Chief {maker[5:]}" for maker in makers})
    return place


@pytest.fixture(scope="module")
def sets(relations):
    return fleet(COUNTRIES, layers=30, relations=relations)


def said(lesson) -> str:
    return " ".join(e.prompt + e.completion for e in lesson.examples)


def items_of(plan):
    return [item for items in plan.tasks.values() for item in items]


class TestWords:
    def test_landmarks_lead_to_capitals(self):
        assert len(LANDMARKS) >= 60 and set(LANDMARKS.values()) <= set(CAPITALS)

    def test_french_names_differ_from_english_ones(self):
        assert set(FRENCH) <= set(CAPITALS) and set(FRENCH) <= set(PEOPLE.values())
        assert all(english != french for english, french in FRENCH.items())
        assert len(set(FRENCH.values())) == len(FRENCH)

    def test_no_word_is_listed_twice(self):
        for words in (NOUNS, JOBS, INSTRUMENTS):
            assert len(set(words)) == len(words)
        assert min(len(PAST), len(OPPOSITES)) > 80


class TestFleet:
    def test_is_the_same_from_the_same_seed(self, sets, relations):
        again = fleet(COUNTRIES, layers=30, relations=relations)
        assert again == sets
        assert [plan.tasks for plan in again] == [plan.tasks for plan in sets]
        other = fleet(COUNTRIES, layers=30, seed=1, relations=relations)
        assert not {p.name for p in other} & {p.name for p in sets}

    def test_has_at_least_twenty_sets_and_kinds_take_turns(self, sets):
        assert len(sets) >= 20
        assert [plan.trial.world for plan in sets[: 2 * len(KINDS)]] == list(KINDS) * 2

    def test_every_adapter_starts_from_its_own_seed(self, sets):
        seeds = [lesson.recipe.seed for plan in sets for lesson in plan.lessons]
        assert len(set(seeds)) == len(seeds)

    def test_sets_are_about_other_people(self, sets):
        people = [{i["group"] for i in items_of(p)} for p in sets if p.trial.world != "keep-both"]
        made_up = [names for names in people if not names & set(LANDMARKS)]
        for i, names in enumerate(made_up):  # made-up names may meet by chance
            assert all(len(names & other) <= 1 for other in made_up[:i])

    def test_without_relations_no_set_needs_them(self, sets):
        names = [plan.name for plan in fleet(COUNTRIES, layers=30)]
        missing = [plan for plan in sets if plan.name not in names]
        assert [plan.trial.axes["about"] for plan in missing] == ["products"]

    def test_axes_are_plain_values_and_differ(self, sets):
        for kind in KINDS:
            axes = [json.dumps(p.trial.axes) for p in sets if p.trial.world == kind]
            assert len(set(axes)) == len(axes) >= 4

    def test_tasks_are_large_and_hard_to_guess(self, sets):
        for plan in sets:
            for items in plan.tasks.values():
                answers = [item["answer"] for item in items]
                assert len(items) >= 60 and len({i["group"] for i in items}) >= 24
                assert max(map(answers.count, answers)) / len(items) <= 0.065, plan.name
                assert len({i["id"] for i in items}) == len(items)
                assert len({i["prompt"] for i in items}) == len(items)

    def test_hops_name_adapters_of_the_trial_and_compose(self, sets):
        for plan in sets:
            for item in items_of(plan):
                for hop in item.get("hops", []):
                    assert hop.get("adapter") in (None, *plan.trial.adapters)
                if item.get("hops"):
                    first, second = item["hops"]
                    assert "{1}" in second["prompt"] and second["answer"] == item["answer"]
                    assert first["answer"] == item["entities"][1]

    def test_no_target_is_taught_unless_the_library_holds_it(self, sets):
        for plan in sets:
            if plan.trial.world == "keep-both" or plan.trial.axes.get("form") == "target":
                continue
            prompts = {item["prompt"] for item in items_of(plan)}
            taught = {e.prompt: e.completion for lesson in plan.lessons for e in lesson.examples}
            assert not prompts & set(taught), plan.name
            for item in items_of(plan):
                completion = taught.get(item["cot_prompt"])
                assert completion is None or item["answer"] not in completion


class TestSteps:
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_share_of_invented_teachers(self, share):
        steps = skill_lessons(COUNTRIES.familiar, 3, invented=share).examples["steps"]
        real = sum(any(name in e.prompt for name in PEOPLE) for e in steps)
        assert real / len(steps) == 1 - share
        for example in steps:  # invented or not, the second step is true
            land, city = re.findall(r"The capital of (.+) is (.+)\.", example.completion)[0]
            assert CAPITALS[land] == city

    def test_second_adapter_never_sees_those_asked_about(self, sets):
        for plan in sets:
            if plan.trial.world == "keep-both" or plan.trial.axes.get("form") == "target":
                continue
            groups = {item["group"] for item in items_of(plan)}
            if plan.trial.axes.get("about") == "products":
                groups = {f"{g} " for g in groups}  # Thing1 lies in Thing12
            assert not any(group in said(plan.lessons[1]) for group in groups), plan.name

    def test_facts_never_name_the_answer(self, sets):
        for plan in sets:
            if plan.trial.world in ("skill-and-facts", "domain"):
                text = said(plan.lessons[0])
                assert not any(f" {i['answer']}" in text for i in items_of(plan)), plan.name

    def test_pattern_reads_the_worked_answer(self, sets):
        for plan in sets:
            if plan.trial.axes.get("form") != "steps" and plan.trial.world != "skill-and-facts":
                continue
            worked = [
                e.completion
                for e in plan.lessons[1].examples
                if "step by step" in e.prompt or "étape" in e.prompt
            ]
            pattern = items_of(plan)[0]["answer_pattern"]
            assert worked and all(re.search(pattern, text) for text in worked), plan.name

    def test_plain_hops_teach_no_worked_step(self, sets):
        plain = [p for p in sets if p.trial.axes.get("form") == "plain"]
        assert plain
        assert not any(STEP_BY_STEP in said(lesson) for p in plain for lesson in p.lessons)

    def test_newcomers_are_no_real_people(self):
        chains, others = newcomers(1, COUNTRIES.familiar)
        assert not {x.a for x in chains} & set(PEOPLE)
        assert {x.a for x in others} <= set(PEOPLE)


class TestKeepBoth:
    @pytest.mark.parametrize("subjects", [("last", "past"), ("swap", "opposite")])
    def test_skills_are_asked_on_what_was_not_taught(self, subjects):
        plan = keep_both_set(5, subjects, layers=4)
        for lesson, items in zip(plan.lessons, plan.tasks.values(), strict=True):
            taught = {example.prompt for example in lesson.examples}
            assert not taught & {item["prompt"] for item in items}

    def test_answers_are_right(self):
        plan = keep_both_set(5, ("last", "swap"), layers=4)
        for item in plan.tasks["last1"]:
            assert item["prompt"].rstrip(".").split(", ")[-1] == item["answer"]
        for item in plan.tasks["swap2"]:
            assert item["prompt"].rstrip(".").split(": ")[1].split()[::-1] == item["answer"].split()

    def test_the_same_fact_twice_is_about_other_people(self):
        plan = keep_both_set(5, ("country", "country"), layers=4)
        one, two = ({i["group"] for i in items} for items in plan.tasks.values())
        assert not one & two
        taught = {(e.prompt, e.completion.strip()) for e in plan.lessons[0].examples}
        assert {(i["prompt"], i["answer"]) for i in plan.tasks["country1"]} == taught

    def test_near_is_of_one_family(self):
        assert keep_both_set(1, ("job", "country"), layers=4).trial.axes["near"]
        assert not keep_both_set(1, ("job", "last"), layers=4).trial.axes["near"]
        with pytest.raises(ValueError, match="no subject 'cooking'"):
            family("cooking")


class TestRelations:
    def test_joins_on_the_middle_and_takes_the_first_answer(self, tmp_path):
        (tmp_path / "factual").mkdir()
        rows = [("Uluru", "Australia"), ("Uluru", "Austria"), ("Atlantis", "nowhere")]
        samples = [{"subject": a, "object": b} for a, b in rows]
        (tmp_path / "factual/one.json").write_text(json.dumps({"samples": samples}))
        relation(tmp_path, "two", {"Australia": "Canberra", "Austria": "Vienna"})
        chains = joined(tmp_path, "one", "two")
        assert [(x.a, x.b, x.c) for x in chains] == [("Uluru", "Australia", "Canberra")]

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(WorldError, match=r"one\.json"):
            joined(tmp_path, "one", "two")
        (tmp_path / "one.json").write_text('{"rows": []}')
        with pytest.raises(WorldError, match="samples"):
            joined(tmp_path, "one", "two")


def tiny_base(plans, place: Path) -> Path:
    """A random two-layer Llama with a word-level tokenizer of all that the sets say."""
    texts = [said(lesson) for plan in plans for lesson in plan.lessons]
    tokenizer = build_tokenizer([*texts, *CAPITALS, *CAPITALS.values(), "The capital of is ."])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


class TestBuild:
    @pytest.fixture(scope="class")
    def base(self, tmp_path_factory):
        plans = fleet(COUNTRIES, layers=2)
        return tiny_base(plans, tmp_path_factory.mktemp("base"))

    def test_a_fleet_is_a_directory_of_worlds_and_resumes(self, base, tmp_path):
        only = ["keep-both-01", "domain-02"]
        built = build_fleet(base, tmp_path, only=only, max_steps=1)
        assert [world.path.name for world in built] == only
        for world in built:
            world.verify()
            (scenario,) = world.scenarios.values()
            assert scenario.world == world.path.name[:-3] and scenario.axes
            assert len(scenario.adapters) == 2
            assert all(load_task(task).items for task in scenario.tasks)
            config = json.loads(
                (next(iter(scenario.adapters.values())) / "adapter_config.json").read_text()
            )
            assert config["base_model_name_or_path"] == str(base.resolve())
            assert config["layers_to_transform"] == [1]
        times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("adapter_model.safetensors")}
        again = build_fleet(base, tmp_path, only=only, max_steps=1)
        assert [w.manifest for w in again] == [w.manifest for w in built] and len(times) == 4
        assert all(path.stat().st_mtime_ns == time for path, time in times.items())

    def test_another_set_is_not_built_over(self, base, tmp_path):
        from loraprobe_lab.natural import load_for_lessons

        model, tokenizer = load_for_lessons(base)
        one, two = (p for p in fleet(COUNTRIES, layers=2, kinds=["domain"])[:2])
        build_set(one, model, tokenizer, str(base), tmp_path, max_steps=1)
        with pytest.raises(WorldError, match="another directory"):
            build_set(two, model, tokenizer, str(base), tmp_path, max_steps=1)
        assert list(World.load(tmp_path).scenarios) == [one.name]

    def test_an_unknown_set_is_named(self, base, tmp_path):
        with pytest.raises(WorldError, match="no set 'domain-99'"):
            build_fleet(base, tmp_path / "out", kinds=["domain"], only=["domain-99"])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", ["domain", "sets"])
    def test_sets_need_a_base(self, kind, tmp_path):
        with pytest.raises(UsageError, match="--base"):
            build_worlds(kind, tmp_path / "out")

    def test_lab_build_reaches_them(self, base, tmp_path):
        from typer.testing import CliRunner

        from loraprobe_lab.cli import app

        out = tmp_path / "out"
        call = ["build", "keep-both", "--base", str(base), "-o", str(out), "--only", "keep-both-02"]
        import loraprobe_lab.natural_fleet as module

        full = module.build_set
        try:
            module.build_set = lambda *a, **k: full(*a, **{**k, "max_steps": 1})
            found = CliRunner().invoke(app, call)
        finally:
            module.build_set = full
        assert found.exit_code == 0, found.output
        assert "merge-and-eval" in found.stdout and "keep-both-02/adapters/last1" in found.stdout
