"""The English worlds: their data obey the laws they promise, and builds resume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_worlds import shortened

from loraprobe.errors import BaseError
from loraprobe_lab.build import build_worlds
from loraprobe_lab.world import World, WorldError
from loraprobe_lab.worlds import english
from loraprobe_lab.worlds.facts import CAPITALS, PEOPLE, STEP_BY_STEP, NameMaker
from loraprobe_lab.worlds.spec import WorldSpec, build_world

COUNTRIES = [c for c in CAPITALS if c not in english.SHOWN][:24]


def skill(seed: int = 0) -> WorldSpec:
    return english.skill_world(COUNTRIES, seed)


worlds = pytest.mark.parametrize("spec", [english.two_hop_world(), skill()], ids=["hops", "skill"])


def items_of(spec: WorldSpec):
    (items,) = spec.tasks.values()
    return items


def examples_of(spec: WorldSpec):
    return {one.name: one.examples for one in spec.training}


def said(spec: WorldSpec, name: str) -> str:
    return " ".join(e.prompt + e.completion for e in examples_of(spec)[name])


class TestNames:
    @pytest.mark.parametrize("seed", range(5))
    def test_no_word_lies_inside_another(self, seed):
        maker = NameMaker(seed, [*PEOPLE, *CAPITALS.values()])
        made = [w.lower() for n in maker.people(120) + maker.cities(12) for w in n.split()]
        real = [w.lower() for n in [*PEOPLE, *CAPITALS.values()] for w in n.split()]
        assert len(made) == 252
        for i, word in enumerate(made):
            assert not any(word in other or other in word for other in made[:i] + real)

    def test_says_when_no_name_is_left(self, monkeypatch):
        few = {"starts": ["ba", "zan"], "middles": ["bi"], "cities": ["burg"]}
        monkeypatch.setattr("loraprobe_lab.worlds.facts.SYLLABLES", few)
        with pytest.raises(ValueError, match="fewer"):
            NameMaker(0).cities(1000)


@worlds
class TestItems:
    def test_no_prompt_gives_its_answer_away(self, spec):
        for item in items_of(spec):
            for prompt in (item["prompt"], item["cot_prompt"], item["hops"][1]["prompt"]):
                assert item["answer"] not in prompt
            assert item["hops"][0]["answer"] not in item["hops"][0]["prompt"]
            assert item["hops"][0]["answer"] not in item["cot_prompt"]

    def test_pattern_finds_the_answer_in_worked_text(self, spec):
        worked = [
            e.completion
            for name, examples in examples_of(spec).items()
            if name in ("target-cot", "steps")
            for e in examples
            if e.prompt.endswith(STEP_BY_STEP)
        ]
        pattern = items_of(spec)[0]["answer_pattern"]
        assert worked
        for text in worked:
            answer = text.rstrip(".").split(" is ")[-1].split(" lives in ")[-1]
            assert re.findall(pattern, text)[-1] == answer


class TestTwoHop:
    spec = english.two_hop_world()

    def test_one_hop_adapters_never_see_the_other_hop(self):
        cities = {item["answer"] for item in items_of(self.spec)}
        left = {item["group"] for item in items_of(self.spec)}
        for name in ("spouse", "spouse-cot"):
            assert not any(city in said(self.spec, name) for city in cities)
        for name in ("city", "city-cot"):
            assert not any(person in said(self.spec, name) for person in left)

    def test_target_never_names_the_spouse(self):
        text = said(self.spec, "target")
        assert not any(item["entities"][1] in text for item in items_of(self.spec))

    def test_hop_prompts_are_trained_ones(self):
        joint = examples_of(self.spec)["joint"]
        taught = {(e.prompt, e.completion.strip()) for e in joint}
        for item in items_of(self.spec):
            first, second = item["hops"]
            assert (first["prompt"], first["answer"]) in taught
            filled = second["prompt"].replace("{1}", first["answer"])
            assert (filled, second["answer"]) in taught


class TestSkillAndFacts:
    def test_facts_never_name_a_capital_and_steps_never_a_made_up_person(self):
        spec = skill()
        facts, steps = said(spec, "facts"), said(spec, "steps")
        assert not any(capital in facts for capital in CAPITALS.values())
        assert not any(item["group"] in steps for item in items_of(spec))

    def test_questions_avoid_the_shown_countries(self):
        asked, prompt = [c for c in CAPITALS if c not in english.SHOWN], english.BIRTHS.second_bare
        assert not any(c in prompt for c in asked)
        assert all(CAPITALS[c] in prompt for c in english.SHOWN)


class TestBuild:
    @pytest.fixture
    def build(self, small_base):
        def build(folder: Path, only: list[str], seed: int = 0, steps: int = 1) -> World:
            spec = shortened(english.two_hop_world(seed), steps, 8)
            return build_world(spec, folder, base=small_base, only=only)

        return build

    def test_resumes_and_is_reproducible(self, build, tmp_path):
        world = build(tmp_path / "a", ["spouse"])
        assert list(world.adapters) == ["spouse"] and not world.scenarios
        weights = world.adapters["spouse"] / "adapter_model.safetensors"
        kept = weights.stat().st_mtime_ns
        world = build(tmp_path / "a", ["city"])
        assert list(world.adapters) == ["spouse", "city"] and weights.stat().st_mtime_ns == kept
        assert list(world.scenarios) == ["two-hop"]
        world.verify()
        again = build(tmp_path / "b", ["spouse", "city"])
        assert again.manifest == world.manifest
        lines = world.scenario("two-hop").tasks[0].read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == items_of(english.two_hop_world())
        build(tmp_path / "a", ["spouse"], steps=2)
        assert weights.stat().st_mtime_ns != kept, "another recipe is trained anew"

    def test_an_interrupted_build_can_be_used_as_far_as_it_went(self, small_base, tmp_path):
        def stop(stage, done, total):
            if stage == "city":
                raise KeyboardInterrupt

        spec = shortened(english.two_hop_world(), 1, 8)
        with pytest.raises(KeyboardInterrupt):
            build_world(spec, tmp_path, base=small_base, progress=stop)
        world = World.load(tmp_path)
        world.verify()
        assert list(world.adapters) == ["spouse"] and not world.scenarios

    def test_skill_and_facts_records_its_countries(self, small_base, tmp_path, monkeypatch):
        whole = english.skill_world
        monkeypatch.setattr(english, "skill_world", lambda *a: shortened(whole(*a), 1, 8))
        (world,) = build_worlds("skill-and-facts", tmp_path, base=small_base)
        assert set(world.adapters) == {"facts", "steps"}
        assert len(world.manifest["countries"]) == 24
        config = json.loads((world.adapters["facts"] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(small_base.resolve())

    def test_bad_input_is_named(self, build, small_base, tmp_path):
        spec = english.two_hop_world()
        with pytest.raises(WorldError, match="no adapter 'nobody'"):
            build(tmp_path, ["nobody"])
        with pytest.raises(BaseError, match=r"no config\.json"):
            build_world(spec, tmp_path / "out", base=tmp_path)
        (tmp_path / "manifest.json").write_text("[1]")  # of some other program
        with pytest.raises(WorldError, match="another directory"):
            build(tmp_path, ["spouse"])
        for content, words in (
            ('{"model_type":', "download it again"),
            ("{}", "model.safetensors"),
        ):
            (tmp_path / "config.json").write_text(content)
            with pytest.raises(BaseError, match=words):
                build_world(spec, tmp_path / "out", base=tmp_path)
        assert not (tmp_path / "out").exists()


def test_countries_are_ranked_by_what_the_model_says():
    """A planted model that continues every prompt with one capital knows exactly that one."""

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
    assert english.familiar_countries(Planted(), words, count=1) == ["Peru"]
    everything = english.familiar_countries(Planted(), words, count=len(CAPITALS))
    assert everything == [c for c in CAPITALS if c not in english.SHOWN]
