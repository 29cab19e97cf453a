"""The cross-lingual small world: what its base and adapters read, and what they are asked."""

from __future__ import annotations

import json

import pytest
from tiny_worlds import tiny_base

from loraprobe.tasks import load_task
from loraprobe_lab.worlds.cross_lingual import cross_lingual_world, draw_axes, draw_familiarity
from loraprobe_lab.worlds.languages import (
    ANSWERS,
    FAMILIARITY,
    RELATIONS,
    LanguagesCorpus,
    PeopleSizes,
    fact_examples,
    language_examples,
    make_people,
    target_items,
)
from loraprobe_lab.worlds.tokenizer import words_of

SIZES = PeopleSizes(familiar=12, newcomers=6, invented=6, reserve=4, values=4)
BASE = tiny_base()


@pytest.fixture(scope="module")
def spec():
    return cross_lingual_world(5, sizes=SIZES, base=BASE, count=6)


def texts_of(spec, count=1500):
    draw = spec.corpus(0)
    return [example.prompt + example.completion for example in (draw() for _ in range(count))]


def words(texts):
    return set(words_of(texts))


def of(language):
    """The words of one language alone."""
    found = words(
        text.format(a="", b="")
        for relation in RELATIONS.values()
        for texts in relation[language].values()
        for text in texts
    )
    return {word.strip("\u2581") for word in found} - set(".?") - {""}


def test_the_languages_share_no_word():
    assert of("first") and of("second")
    assert not {w.lower() for w in of("first")} & {w.lower() for w in of("second")}


def test_questions_of_a_relation_are_its_own_and_translate_one_to_one():
    for language in ("first", "second"):
        rows = [relation[language] for relation in RELATIONS.values()]
        asked = [question for row in rows for question in row["questions"]]
        assert len(set(asked)) == len(asked)
    pairs = [(row["first"]["questions"], row["second"]["questions"]) for row in RELATIONS.values()]
    assert all(len(one) == len(other) for one, other in pairs)


def test_groups_of_people_share_nobody_and_values_come_equally_often():
    people = make_people(PeopleSizes(), 3)
    groups = [people.familiar, people.newcomers, people.invented, people.reserve]
    values = [v for row in people.values.values() for v in row]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(people.names())
    assert not set(values) & set(people.names()) and len(set(values)) == len(values)
    for relation, rows in people.facts.items():
        counts = [list(rows.values()).count(value) for value in people.values[relation]]
        assert max(counts) - min(counts) <= 1


def test_more_sets_leave_the_earlier_ones_as_they_are(spec):
    fewer = cross_lingual_world(5, sizes=SIZES, base=BASE, count=2)
    assert fewer.adapter_sets == spec.adapter_sets[:2] and fewer.training == spec.training[:4]
    assert all(fewer.tasks[name] == spec.tasks[name] for name in fewer.tasks)


def test_no_two_adapters_share_their_facts(spec):
    assert len({adapter.examples for adapter in spec.training}) == 12


def test_modes_and_relations_take_turns_and_all_levels_of_familiarity_occur():
    for seed in range(5):
        familiarity = draw_familiarity(seed)
        axes = draw_axes(seed, 6, familiarity)
        assert sorted(familiarity.values()).count("none") == 2
        assert set(familiarity.values()) <= set(FAMILIARITY)
        for three in (axes[:3], axes[3:]):
            assert {one["mode"] for one in three} == set(ANSWERS)
            assert {one["relation"] for one in three} == set(RELATIONS)
        assert all(one["familiarity"] == familiarity[one["relation"]] for one in axes)
        assert all(one["relation"] in one["facts"] for one in axes)


def test_the_base_reads_no_fact_about_newcomers_and_never_both_languages():
    people = make_people(SIZES, 2)
    corpus = LanguagesCorpus(people, dict.fromkeys(RELATIONS, "much"), 2)
    strangers = set(people.newcomers) | set(people.invented) | set(people.reserve)
    met = set()
    for _ in range(2000):
        example = corpus.draw()
        text = {w.strip("\u2581") for w in words_of([example.prompt + example.completion])}
        if text & {"met", "Say"}:
            met |= text & set(people.names())
            continue
        assert not text & strangers
        assert not (text & of("first") and text & of("second"))
    assert met == set(people.names())


@pytest.mark.parametrize("level", FAMILIARITY)
def test_the_base_reads_the_second_language_as_far_as_it_is_familiar(level):
    people = make_people(PeopleSizes(familiar=60, newcomers=2, invented=2, reserve=2), 4)
    corpus = LanguagesCorpus(people, dict.fromkeys(RELATIONS, level), 4)
    drawn = [corpus.draw() for _ in range(4000)]
    second = [e for e in drawn if e.prompt.split()[0] in {"Loghas", "Hejmas", "Laboras", "Studis"}]
    read = FAMILIARITY[level]
    met = {name for e in second for name in people.familiar if name in e.prompt.split()}
    assert len(met) == round(read.people * 60) and bool(second) == (read.texts > 0)
    assert any(e.prompt.endswith("?") for e in second) == read.asked


def test_the_language_is_learned_on_others_than_are_asked_about(spec):
    people = make_people(SIZES, 5)
    for index, chosen in enumerate(spec.adapter_sets):
        facts, language = spec.training[2 * index : 2 * index + 2]
        asked = {item["group"] for item in spec.tasks[chosen.name]}
        second = {w.lower() for w in of("second")}
        assert asked == set(people.newcomers)
        for example in facts.examples:
            text = words([example.prompt + example.completion])
            assert not {w.strip("\u2581").lower() for w in text} & second
        for example in language.examples:
            text = {w.strip("\u2581") for w in words([example.prompt + example.completion])}
            assert not text & asked


def test_the_facts_adapter_learns_exactly_what_is_asked(spec):
    for index, chosen in enumerate(spec.adapter_sets):
        told = {e.prompt: e.completion for e in spec.training[2 * index].examples}
        question = RELATIONS[chosen.axes["relation"]]["first"]["questions"][0]
        for item in spec.tasks[chosen.name]:
            assert told[question.format(a=item["group"])] == f" {item['answer']}"


@pytest.mark.parametrize("mode", ANSWERS)
def test_worked_answers_end_in_the_answer_and_hops_chain(mode, tmp_path):
    people = make_people(SIZES, 1)
    rows = people.facts["home"]
    path = tmp_path / "task.jsonl"
    items = target_items("home", rows, mode, ("f", "l"))
    path.write_text("\n".join(map(json.dumps, items)))
    taught = {e.prompt: e.completion.strip() for e in language_examples("home", rows, mode)}
    known = {e.prompt: e.completion for e in fact_examples({"home": rows}, people.facts, 0)}
    for item, (person, value) in zip(load_task(path).items, rows.items(), strict=True):
        assert item.answers == (value,) and item.entities == (person,)
        if mode == "at-once":
            assert taught[item.prompt] == value and item.cot_prompt is None
        else:
            assert taught[item.cot_prompt].rstrip(".").split()[-1] == value
        if mode == "translated":
            assert taught[item.hop_prompt(0)].rstrip("?") == item.hops[0].answers[0]
            assert known[item.hop_prompt(1)] == f" {value}"
            assert taught[item.cot_prompt].startswith(item.hop_prompt(1))


def test_invented_people_replace_familiar_ones_by_their_share(spec):
    people = make_people(SIZES, 5)
    for index, axes in enumerate(draw_axes(5, 6, draw_familiarity(5))):
        text = {
            w.strip("\u2581")
            for e in spec.training[2 * index + 1].examples
            for w in words([e.prompt])
        }
        invented, familiar = text & set(people.invented), text & set(people.familiar)
        assert len(invented) == round(axes["invented"] * 6) and len(invented) + len(familiar) == 6
