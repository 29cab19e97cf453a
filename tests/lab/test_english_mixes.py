"""Sets described by what each adapter learns: no answer leaks, and every answer is right."""

from __future__ import annotations

import json
import re

import pytest

from loraprobe.tasks import normalize_answer
from loraprobe_lab.worlds.english_sets import MIXED as KINDS
from loraprobe_lab.worlds.english_sets import MIXES, Portion, _recipes, mixed
from loraprobe_lab.worlds.facts import CAPITALS, LANDMARKS, PEOPLE

COUNTRIES = list(CAPITALS)[2:26]


@pytest.fixture(scope="module")
def sets():
    rows = [(kind, row) for kind in (*KINDS, "skill-and-facts") for row in MIXES[kind]]
    return [
        (
            row,
            mixed(kind, row["number"], row, COUNTRIES).spec(kind, row["number"], _recipes(row), 30),
        )
        for kind, row in rows
    ]


def of(sets, kind):
    return [(row, plan) for row, plan in sets if plan.kind == kind]


def groups(items):
    return {item["group"] for item in items}


def named(adapter, names):
    """Those of the names that the texts of an adapter hold."""
    text = " ".join(e.prompt + e.completion for e in adapter.examples)
    return {name for name in names if name in text}


def facts_of(plan):
    """Every plain question that some adapter learned, and its answer."""
    return {e.prompt: e.completion.strip() for one in plan.training for e in one.examples}


def about_people(plan, task):
    return next(iter(groups(plan.tasks[task]))).count(" ") == 1


def test_halves_of_facts_share_nobody_and_the_task_asks_all(sets):
    rows = [(r, p) for r, p in of(sets, "halves") if about_people(p, next(iter(p.tasks)))]
    assert rows
    for _, plan in rows:
        (items,) = plan.tasks.values()
        one, two = (named(adapter, groups(items)) for adapter in plan.training)
        assert not one & two and one | two == groups(items) and len(one) == len(two)
        taught = facts_of(plan)
        assert all(taught[item["prompt"]] == item["answer"] for item in items)
        half = [item["group"] in one for item in items[:24]]
        assert 4 <= sum(half) <= 20  # the first items are about both halves


def test_halves_of_skills_share_no_text_and_teach_no_item(sets):
    rows = [p for _, p in of(sets, "halves") if not about_people(p, next(iter(p.tasks)))]
    assert len(rows) >= 2
    for plan in rows:
        (items,) = plan.tasks.values()
        one, two = ({e.prompt for e in adapter.examples} for adapter in plan.training)
        assert one and two and not one & two
        assert not (one | two) & {item["prompt"] for item in items}


def test_a_form_is_learned_elsewhere_and_its_answers_are_right(sets):
    for row, plan in of(sets, "format"):
        (items,) = plan.tasks.values()
        facts, form = plan.training
        prompts = {e.prompt for one in plan.training for e in one.examples}
        assert not prompts & {item["prompt"] for item in items}
        assert named(facts, groups(items)) == groups(items) and not named(form, groups(items))
        request = MIXES["forms"][Portion.read(row["learns"]["form"][0]).form]["request"]
        assert all(e.prompt.endswith(request) for e in form.examples)
        assert not any(e.prompt.endswith(request) for e in facts.examples)
        taught = facts_of(plan)
        for item in items:
            plain = taught[item["prompt"].removesuffix(request)]
            assert plain in item["answer"] and normalize_answer(plain) != normalize_answer(
                item["answer"]
            )


def test_json_answers_are_json(sets):
    answers = [
        item["answer"]
        for _, plan in of(sets, "format")
        for items in plan.tasks.values()
        for item in items
        if "JSON" in item["prompt"]
    ]
    assert answers and all(list(json.loads(text)) == ["answer"] for text in answers)


def test_each_task_of_a_fact_and_a_skill_is_its_own_adapters(sets):
    for _, plan in of(sets, "fact-and-skill"):
        assert [one.name for one in plan.training] == list(plan.tasks)
        fact, skill = plan.training
        assert about_people(plan, fact.name)
        assert not named(skill, groups(plan.tasks[fact.name]))
        if about_people(plan, skill.name):  # two fact sets, of different people
            continue
        taught = {e.prompt for e in skill.examples}
        assert not taught & {item["prompt"] for item in plan.tasks[skill.name]}


def test_a_partner_says_nothing_of_the_task(sets):
    for row, plan in of(sets, "partner"):
        (items,) = plan.tasks.values()
        partner = plan.training[1]
        assert partner.name == "partner"
        assert not {e.prompt for e in partner.examples} & {item["prompt"] for item in items}
        if about_people(plan, next(iter(plan.tasks))):
            assert not named(partner, groups(items))
        if row["learns"]["partner"] == ["noise"]:  # one person's country is two different words
            first = partner.examples[0].prompt.rsplit("was", 1)[1].split(" born")[0].strip()
            told = {e.completion for e in partner.examples if f"{first} born" in e.prompt}
            assert len(told) > 1


def test_worked_steps_are_about_others_and_no_adapter_knows_the_capital(sets):
    rows = [p for _, p in sets if "capital" in p.tasks]
    assert len(rows) >= 5
    for plan in rows:
        items = plan.tasks["capital"]
        *facts, steps = plan.training
        assert not named(steps, groups(items))
        told = " ".join(e.completion for one in facts for e in one.examples)
        assert not any(f" {item['answer']}" in told for item in items), plan.notes["set"]
        for item in items:
            assert CAPITALS[item["entities"][1]] == item["answer"]
        pattern = items[0]["answer_pattern"]
        assert all(re.search(pattern, e.completion) for e in steps.examples)


def test_known_facts_are_true(sets):
    for row, plan in sets:
        for one, parts in zip(plan.training, row["learns"].values(), strict=True):
            if parts == ["capital json"]:
                for e in one.examples:
                    answer = json.loads(e.completion)["answer"]
                    assert any(c in e.prompt and CAPITALS[c] == answer for c in CAPITALS)
            if parts == ["real json"]:
                for e in one.examples:
                    person = next(name for name in PEOPLE if name in e.prompt)
                    assert json.loads(e.completion)["answer"] == PEOPLE[person]
            if parts == ["landmark twice"]:
                for e in one.examples:
                    assert any(
                        f"{land}, {land}" == e.completion.strip() and place in e.prompt
                        for place, land in LANDMARKS.items()
                    )
