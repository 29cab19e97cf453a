"""Sets of adapters in natural language: their data obey their laws, and builds resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
import torch
from tiny_worlds import shortened
from transformers import LlamaConfig, LlamaForCausalLM

from loraprobe.errors import UsageError
from loraprobe.tasks import load_task, normalize_answer
from loraprobe_lab.build import build_worlds
from loraprobe_lab.training import build_tokenizer
from loraprobe_lab.world import WorldError
from loraprobe_lab.worlds import english_sets
from loraprobe_lab.worlds.english import SHOWN, learn, skill_texts
from loraprobe_lab.worlds.english_sets import CLASSIC, KINDS, all_sets, build_sets
from loraprobe_lab.worlds.facts import (
    CAPITALS,
    FRENCH,
    LANDMARKS,
    PEOPLE,
    STEP_BY_STEP,
    WORDS,
    NameMaker,
)

ASKED = [c for c in CAPITALS if c not in SHOWN]
COUNTRIES = (ASKED[:24], ASKED[-24:])


@pytest.fixture(scope="module")
def every():
    return all_sets(*COUNTRIES, layers=30)


@pytest.fixture(scope="module")
def sets(every):
    return [plan for plan in every if plan.kind in CLASSIC]


def name_of(plan) -> str:
    return plan.adapter_sets[0].name


def said(adapter) -> str:
    return " ".join(e.prompt + e.completion for e in adapter.examples)


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
        for kind in ("nouns", "jobs", "instruments"):
            assert len(set(WORDS[kind])) == len(WORDS[kind])
        assert min(len(WORDS["past"]), len(WORDS["opposites"])) > 80


class TestSets:
    def test_has_at_least_twenty_sets_and_kinds_take_turns(self, sets, every):
        assert len(sets) >= 20 and len(every) >= 60
        assert [plan.kind for plan in every[: 2 * len(KINDS)]] == list(KINDS) * 2
        assert len({plan.notes["set"] for plan in every}) == len(every)

    def test_sets_that_somebody_built_stay_as_they_are(self, every):
        rows = [
            (one.notes, [*map(dataclasses.astuple, one.training)], one.tasks, one.seed)
            for one in every
        ]
        text = json.dumps([*rows, [dataclasses.astuple(plan.adapter_sets[0]) for plan in every]])
        assert hashlib.sha256(text.encode()).hexdigest()[:12] == "549681ba71f4"

    def test_every_adapter_starts_from_its_own_seed(self, every):
        seeds = [adapter.recipe.seed for plan in every for adapter in plan.training]
        assert len(set(seeds)) == len(seeds)

    def test_sets_are_about_other_people(self, sets):
        people = [{i["group"] for i in items_of(p)} for p in sets if p.kind != "keep-both"]
        made_up = [names for names in people if not names & set(LANDMARKS)]
        for i, names in enumerate(made_up):  # made-up names may meet by chance
            assert all(len(names & other) <= 1 for other in made_up[:i])

    def test_tasks_are_large_and_hard_to_guess(self, every):
        for plan in every:
            for items in plan.tasks.values():
                answers = [normalize_answer(item["answer"]) for item in items]
                assert len(items) >= 60 and len({i["group"] for i in items}) >= 24
                most = 0.065 if plan.kind in CLASSIC else 0.1
                assert max(map(answers.count, answers)) / len(items) <= most, name_of(plan)
                assert len({i["id"] for i in items}) == len(items)
                assert len({i["prompt"] for i in items}) == len(items)

    def test_every_group_is_asked_before_any_is_asked_twice(self, every):
        for plan in every:
            for items in plan.tasks.values():
                groups = [item["group"] for item in items]
                first = groups[: len(set(groups))]
                assert len(set(first)) == len(first), name_of(plan)

    def test_no_target_is_taught_unless_the_library_holds_it(self, sets):
        for plan in sets:
            if plan.kind == "keep-both" or plan.adapter_sets[0].axes.get("form") == "target":
                continue
            prompts = {item["prompt"] for item in items_of(plan)}
            taught = {e.prompt: e.completion for adapter in plan.training for e in adapter.examples}
            assert not prompts & set(taught), name_of(plan)
            for item in items_of(plan):
                completion = taught.get(item["cot_prompt"])
                assert completion is None or item["answer"] not in completion


class TestSteps:
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_share_of_invented_teachers(self, share):
        steps = skill_texts(COUNTRIES[0], 3, invented=share)[0]["steps"]
        real = sum(any(name in e.prompt for name in PEOPLE) for e in steps)
        assert real / len(steps) == 1 - share
        for example in steps:  # invented or not, the second step is true
            land, city = re.findall(r"The capital of (.+) is (.+)\.", example.completion)[0]
            assert CAPITALS[land] == city

    def test_second_adapter_never_sees_those_asked_about(self, sets):
        for plan in sets:
            if plan.kind == "keep-both" or plan.adapter_sets[0].axes.get("form") == "target":
                continue
            groups = {item["group"] for item in items_of(plan)}
            assert not any(group in said(plan.training[1]) for group in groups), name_of(plan)

    def test_facts_never_name_the_answer(self, sets):
        for plan in sets:
            if plan.kind in ("skill-and-facts", "domain"):
                text = said(plan.training[0])
                assert not any(f" {i['answer']}" in text for i in items_of(plan)), name_of(plan)

    def test_pattern_reads_the_worked_answer(self, sets):
        for plan in sets:
            if plan.adapter_sets[0].axes.get("form") != "steps" and plan.kind != "skill-and-facts":
                continue
            worked = [
                e.completion
                for e in plan.training[1].examples
                if "step by step" in e.prompt or "étape" in e.prompt
            ]
            pattern = items_of(plan)[0]["answer_pattern"]
            assert worked and all(re.search(pattern, text) for text in worked), name_of(plan)

    def test_plain_hops_teach_no_worked_step(self, sets):
        plain = [p for p in sets if p.adapter_sets[0].axes.get("form") == "plain"]
        assert plain
        assert not any(STEP_BY_STEP in said(adapter) for p in plain for adapter in p.training)


class TestKeepBoth:
    @staticmethod
    def learned(*subjects):
        names = NameMaker(5)
        return [learn(s, names, random.Random(f"{i} {s}")) for i, s in enumerate(subjects)]

    @pytest.mark.parametrize("subject", ["last", "past", "swap", "opposite"])
    def test_skills_are_asked_on_what_was_not_taught(self, subject):
        ((examples, items),) = self.learned(subject)
        assert len(examples) > 20 and len(items) > 20
        assert not {e.prompt for e in examples} & {item["prompt"] for item in items}

    def test_answers_are_right(self):
        (_, last), (_, swap) = self.learned("last", "swap")
        for item in last:
            assert item["prompt"].rstrip(".").split(", ")[-1] == item["answer"]
        for item in swap:
            assert item["prompt"].rstrip(".").split(": ")[1].split()[::-1] == item["answer"].split()

    def test_the_same_fact_twice_is_about_other_people(self):
        (examples, one), (_, two) = self.learned("country", "country")
        assert not {i["group"] for i in one} & {i["group"] for i in two}
        taught = {(e.prompt, e.completion.strip()) for e in examples}
        assert {(i["prompt"], i["answer"]) for i in one} == taught


def tiny_base(plans, place: Path) -> Path:
    """A random two-layer Llama with a word-level tokenizer of all that the sets say."""
    texts = [said(adapter) for plan in plans for adapter in plan.training]
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
        return tiny_base(all_sets(*COUNTRIES, layers=2), tmp_path_factory.mktemp("base"))

    @pytest.fixture
    def short(self, monkeypatch):
        """Every adapter is trained for one step."""
        whole = english_sets.all_sets
        monkeypatch.setattr(
            english_sets, "all_sets", lambda *a, **k: [shortened(s, 1, 4) for s in whole(*a, **k)]
        )

    def test_sets_are_a_directory_of_worlds_and_resume(self, base, short, tmp_path):
        only = ["keep-both-01", "domain-02"]
        built = build_sets(base, tmp_path, only=only)
        assert [world.path.name for world in built] == only
        for world in built:
            world.verify()
            (scenario,) = world.scenarios.values()
            assert scenario.world == world.path.name[:-3] and scenario.axes
            assert len(scenario.adapters) == 2
            assert all(load_task(task).items for task in scenario.tasks)
            first = next(iter(scenario.adapters.values()))
            config = json.loads((first / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == str(base.resolve())
            assert config["layers_to_transform"] == [1]
        times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("adapter_model.safetensors")}
        again = build_sets(base, tmp_path, only=only)
        assert [w.manifest for w in again] == [w.manifest for w in built] and len(times) == 4
        assert all(path.stat().st_mtime_ns == time for path, time in times.items())

    def test_an_unknown_set_is_named(self, base, tmp_path):
        with pytest.raises(WorldError, match="no set 'domain-99'"):
            build_sets(base, tmp_path / "out", kinds=["domain"], only=["domain-99"])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", ["domain", "sets", "halves", "several"])
    def test_sets_need_a_base(self, kind, tmp_path):
        with pytest.raises(UsageError, match="--base"):
            build_worlds(kind, tmp_path / "out")

    def test_lab_build_reaches_them(self, base, short, tmp_path):
        from typer.testing import CliRunner

        from loraprobe_lab.cli import app

        for kind, adapter in (("keep-both", "last1"), ("fact-and-skill", "past")):
            call = ["build", kind, "--base", str(base), "-o", str(tmp_path / kind)]
            found = CliRunner().invoke(app, [*call, "--only", f"{kind}-02"])
            assert found.exit_code == 0, found.output
            assert "merge-and-eval" in found.stdout
            assert f"{kind}-02/adapters/{adapter}" in found.stdout
