"""The natural-language worlds: their data obey the laws they promise, and builds resume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from loraprobe.errors import BaseError
from loraprobe_lab import natural, natural_data
from loraprobe_lab.known import CAPITALS, PEOPLE
from loraprobe_lab.names import NameMaker
from loraprobe_lab.world import World, WorldError

STORIES = Path(__file__).parents[1].parent / "shared/data/stories260K/hf"
COUNTRIES = [c for c in CAPITALS if c not in natural_data.SHOWN][:24]


def two_hop(seed: int = 0) -> natural_data.Lessons:
    return natural_data.two_hop_lessons(seed)


def skill(seed: int = 0) -> natural_data.Lessons:
    return natural_data.skill_lessons(COUNTRIES, seed)


worlds = pytest.mark.parametrize("lessons", [two_hop, skill])


class TestNames:
    def test_same_seed_same_names(self):
        assert NameMaker(3).people(20) == NameMaker(3).people(20)
        assert NameMaker(3).people(20) != NameMaker(4).people(20)

    @pytest.mark.parametrize("seed", range(5))
    def test_no_word_lies_inside_another(self, seed):
        maker = NameMaker(seed, [*PEOPLE, *CAPITALS.values()])
        made = [w.lower() for n in maker.people(120) + maker.cities(12) for w in n.split()]
        real = [w.lower() for n in [*PEOPLE, *CAPITALS.values()] for w in n.split()]
        assert len(made) == 252
        for i, word in enumerate(made):
            assert not any(word in other or other in word for other in made[:i] + real)

    def test_says_when_no_name_is_left(self, monkeypatch):
        monkeypatch.setattr("loraprobe_lab.names._STARTS", ["ba", "zan"])
        with pytest.raises(ValueError, match="fewer"):
            NameMaker(0).cities(1000)


class TestKnownFacts:
    def test_everybody_comes_from_a_country_with_a_capital(self):
        assert set(PEOPLE.values()) <= set(CAPITALS)
        assert len(PEOPLE) >= 60 and len(CAPITALS) >= 60
        assert len(set(CAPITALS.values())) == len(CAPITALS)


@worlds
class TestLessons:
    def test_are_the_same_from_the_same_seed(self, lessons):
        assert lessons(1) == lessons(1)
        assert lessons(1).items != lessons(2).items
        assert {x.a for x in lessons(1).chains} != {x.a for x in lessons(2).chains}

    def test_hops_compose_to_the_answer(self, lessons):
        found = {x.a: x for x in lessons().chains}
        assert len(found) == len(lessons().chains)
        for item in lessons().items:
            chain = found[item["group"]]
            first, second = item["hops"]
            assert chain.a in first["prompt"] and first["answer"] == chain.b
            assert second["prompt"].count("{1}") == 1 and second["answer"] == chain.c
            assert item["answer"] == chain.c and chain.a in item["prompt"]
            assert item["cot_prompt"] == item["prompt"] + natural_data.STEP_BY_STEP

    def test_no_prompt_gives_its_answer_away(self, lessons):
        for item in lessons().items:
            for prompt in (item["prompt"], item["cot_prompt"], item["hops"][1]["prompt"]):
                assert item["answer"] not in prompt
            assert item["hops"][0]["answer"] not in item["hops"][0]["prompt"]
            assert item["hops"][0]["answer"] not in item["cot_prompt"]

    def test_task_is_large_enough_and_grouped_by_person(self, lessons):
        items = lessons().items
        assert len(items) >= 100
        assert len({item["id"] for item in items}) == len(items)
        assert len({item["prompt"] for item in items}) == len(items)
        assert all(item["entities"][0] == item["group"] for item in items)

    def test_pattern_finds_the_answer_in_worked_text(self, lessons):
        worked = {
            example.prompt: example.completion
            for name, examples in lessons().examples.items()
            if name in ("target-cot", "steps")
            for example in examples
            if example.prompt.endswith(natural_data.STEP_BY_STEP)
        }
        pattern = lessons().items[0]["answer_pattern"]
        assert worked
        for text in worked.values():
            assert (
                re.findall(pattern, text)[-1]
                == text.rstrip(".").split(" is ")[-1].split(" lives in ")[-1]
            )


class TestTwoHop:
    def test_one_hop_adapters_never_see_the_other_hop(self):
        lessons = two_hop()
        cities = {x.c for x in lessons.chains}
        left = {x.a for x in lessons.chains}
        for name in ("spouse", "spouse-cot"):
            said = " ".join(e.prompt + e.completion for e in lessons.examples[name])
            assert not any(city in said for city in cities)
        for name in ("city", "city-cot"):
            said = " ".join(e.prompt + e.completion for e in lessons.examples[name])
            assert not any(person in said for person in left)

    def test_target_never_names_the_spouse(self):
        lessons = two_hop()
        said = " ".join(e.prompt + e.completion for e in lessons.examples["target"])
        assert not any(x.b in said for x in lessons.chains)

    def test_joint_is_both_hops(self):
        examples = two_hop().examples
        assert examples["joint"] == [*examples["spouse"], *examples["city"]]

    def test_hop_prompts_are_trained_ones(self):
        lessons = two_hop()
        taught = {(e.prompt, e.completion.strip()) for e in lessons.examples["joint"]}
        for item in lessons.items:
            first, second = item["hops"]
            assert (first["prompt"], first["answer"]) in taught
            filled = second["prompt"].replace("{1}", first["answer"])
            assert (filled, second["answer"]) in taught

    def test_cities_are_used_evenly(self):
        homes = [x.c for x in two_hop().chains]
        counts = [homes.count(city) for city in set(homes)]
        assert len(counts) == 12 and max(counts) - min(counts) <= 1


class TestSkillAndFacts:
    def test_facts_never_name_a_capital_and_steps_never_a_made_up_person(self):
        lessons = skill()
        facts = " ".join(e.prompt + e.completion for e in lessons.examples["facts"])
        assert not any(capital in facts for capital in CAPITALS.values())
        steps = " ".join(e.prompt + e.completion for e in lessons.examples["steps"])
        assert not any(x.a in steps for x in lessons.chains)

    @pytest.mark.parametrize("seed", range(5))
    def test_teachers_are_spread_over_countries(self, seed):
        teachers = skill(seed).notes["teachers"]
        homes = [PEOPLE[name] for name in teachers]
        assert len(set(teachers)) == 30 and max(map(homes.count, homes)) <= 2

    def test_questions_avoid_the_shown_countries(self):
        asked = [c for c in CAPITALS if c not in natural_data.SHOWN]
        assert not any(c in natural_data.CAPITAL_PROMPT for c in asked)
        assert all(CAPITALS[c] in natural_data.CAPITAL_PROMPT for c in natural_data.SHOWN)


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the stories260K model")
class TestBuild:
    def test_resumes_and_is_reproducible(self, tmp_path):
        def build(folder: Path, only: list[str]) -> World:
            return natural.build_two_hop(STORIES, folder, only=only, max_steps=2)

        world = build(tmp_path / "a", ["spouse"])
        assert list(world.adapters) == ["spouse"] and not world.scenarios
        kept = (world.adapters["spouse"] / "adapter_model.safetensors").stat().st_mtime_ns
        world = build(tmp_path / "a", ["spouse", "city"])
        assert (world.adapters["spouse"] / "adapter_model.safetensors").stat().st_mtime_ns == kept
        assert list(world.scenarios) == ["two-hop"]
        world.verify()
        again = build(tmp_path / "b", ["spouse", "city"])
        assert again.manifest == world.manifest
        lines = world.scenario("two-hop").tasks[0].read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(two_hop().items)

    def test_skill_and_facts_records_its_countries(self, tmp_path):
        world = natural.build_skill_and_facts(STORIES, tmp_path, max_steps=1)
        assert set(world.adapters) == {"facts", "steps"}
        assert len(world.manifest["countries"]) == 24
        config = json.loads((world.adapters["facts"] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(STORIES.resolve())

    def test_refuses_to_mix_worlds(self, tmp_path):
        natural.build_two_hop(STORIES, tmp_path, only=["spouse"], max_steps=1)
        with pytest.raises(WorldError, match="seed 0"):
            natural.build_two_hop(STORIES, tmp_path, only=["spouse"], max_steps=1, seed=1)

    def test_shortened_adapters_are_not_taken_for_whole_ones(self, tmp_path):
        natural.build_two_hop(STORIES, tmp_path, only=["spouse"], max_steps=1)
        with pytest.raises(WorldError, match="max_steps"):
            natural.build_two_hop(STORIES, tmp_path, only=["spouse"], max_steps=2)

    def test_bad_input_is_named(self, tmp_path):
        with pytest.raises(WorldError, match="no adapter 'nobody'"):
            natural.build_two_hop(STORIES, tmp_path, only=["nobody"])
        with pytest.raises(BaseError, match=r"no config\.json"):
            natural.build_two_hop(tmp_path, tmp_path / "out")
        (tmp_path / "manifest.json").write_text("[1]")  # of some other program
        with pytest.raises(WorldError, match="another directory"):
            natural.build_two_hop(STORIES, tmp_path)
        for content, said in (('{"model_type":', "download it again"), ("{}", "tokenizer")):
            (tmp_path / "config.json").write_text(content)
            with pytest.raises(BaseError, match=said):
                natural.build_two_hop(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_countries_are_ranked_by_what_the_model_says():
    """A planted model that continues every prompt with one capital knows exactly that one."""
    torch = pytest.importorskip("torch")

    class Words:
        vocabulary: dict[str, int]

        def __init__(self):
            self.vocabulary = {}

        def __call__(self, text, add_special_tokens=True):
            ids = [self.vocabulary.setdefault(w, len(self.vocabulary)) for w in text.split()]
            return {"input_ids": ids}

    class Planted:
        device = torch.device("cpu")

        def __call__(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 1000)
            logits[..., words.vocabulary["Lima"]] = 9.0
            return type("Output", (), {"logits": logits})

    words = Words()
    words("Lima")
    assert natural.familiar_countries(Planted(), words, count=1) == ["Peru"]
    everything = natural.familiar_countries(Planted(), words, count=len(CAPITALS))
    assert everything == [c for c in CAPITALS if c not in natural_data.SHOWN]
