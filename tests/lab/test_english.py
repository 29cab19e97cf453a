"""The worlds in English: no answer leaks, every answer is right, and builds resume."""

import json
import random
import re
from types import SimpleNamespace

import making
import pytest
from tiny_worlds import shortened
from typer.testing import CliRunner

from loraprobe.errors import BaseError, UsageError
from loraprobe.tasks import load_task, normalize_answer
from loraprobe_lab.build import build_worlds
from loraprobe_lab.cli import app
from loraprobe_lab.training import build_tokenizer
from loraprobe_lab.world import WorldError
from loraprobe_lab.worlds import english
from loraprobe_lab.worlds.english import KINDS, MIXES, Portion, all_sets, build_sets
from loraprobe_lab.worlds.facts import CAPITALS, LANDMARKS, PEOPLE, NameMaker
from loraprobe_lab.worlds.spec import build_world

ASKED = [c for c in CAPITALS if c not in english.SHOWN]
COUNTRIES = (ASKED[:24], ASKED[-24:])
WORKED = ("step by step", "étape")  # in a question that asks for worked steps
ROWS = {
    f"{kind}-{row['number']:02d}": row for kind in MIXES if kind in KINDS for row in MIXES[kind]
}


@pytest.fixture(scope="module")
def every():
    return all_sets(*COUNTRIES, layers=30)


@pytest.fixture(scope="module")
def plans(every):
    """The specifications that have hops: the two worlds, and the sets of those kinds."""
    whole = [english.two_hop_world(), english.skill_world(COUNTRIES[0])]
    return [*whole, *(p for p in every if any("hops" in item for item in items_of(p)))]


def of(every, kind):
    """(row of the mixes, specification) of a kind that is described by its contents."""
    found = [(ROWS.get(plan.notes["set"]), plan) for plan in every if plan.kind == kind]
    return [(row, plan) for row, plan in found if row is not None]


def items_of(plan):
    return [item for items in plan.tasks.values() for item in items]


def groups(items):
    return {item["group"] for item in items}


def said(adapter):
    return " ".join(e.prompt + e.completion for e in adapter.examples)


def named(adapter, names):
    """Those of the names that the texts of an adapter hold."""
    text = said(adapter)
    return {name for name in names if name in text}


def prompts_of(*adapters):
    return {e.prompt for adapter in adapters for e in adapter.examples}


def taught_by(plan):
    """Every question that some adapter learned, and its answer."""
    return {e.prompt: e.completion.strip() for one in plan.training for e in one.examples}


def about_people(items):
    return items[0]["group"].count(" ") == 1


# words


@pytest.mark.parametrize("seed", range(2))
def test_no_made_up_word_lies_inside_another(seed):
    real = [*PEOPLE, *CAPITALS.values()]
    maker = NameMaker(seed, real)
    made = [w.lower() for n in maker.people(120) + maker.cities(12) for w in n.split()]
    taken = [w.lower() for n in real for w in n.split()]
    assert len(made) == 252
    for i, word in enumerate(made):
        assert not any(word in other or other in word for other in made[:i] + taken)


# laws of all sets


def test_kinds_of_sets_take_turns(every):
    assert [plan.kind for plan in every[: 2 * len(KINDS)]] == list(KINDS) * 2


def test_tasks_are_large_hard_to_guess_and_ask_every_group_before_any_twice(every):
    for items in (items for plan in every for items in plan.tasks.values()):
        answers = [normalize_answer(item["answer"]) for item in items]
        asked = [item["group"] for item in items]
        first = asked[: len(set(asked))]
        assert len(items) >= 60 and len(set(first)) == len(first) >= 24
        assert max(map(answers.count, answers)) / len(items) <= 0.1
        for key in ("id", "prompt"):
            assert len({item[key] for item in items}) == len(items)


def test_a_pattern_reads_every_worked_answer(plans):
    for plan in plans:
        pattern = next((i["answer_pattern"] for i in items_of(plan) if "answer_pattern" in i), None)
        for one in plan.training:
            for example in one.examples:
                whole = example.completion.count(".") == 2
                if pattern and whole and any(word in example.prompt for word in WORKED):
                    assert re.search(pattern, example.completion), (plan.notes, one.name)


def test_those_who_teach_steps_know_nobody_that_is_asked_about(plans):
    for plan in plans:
        *facts, steps = plan.training
        if plan.kind in ("skill-and-facts", "domain") or "capital" in plan.tasks:
            assert not named(steps, groups(items_of(plan))), plan.notes
            told = " ".join(map(said, facts))
            assert not any(f" {item['answer']}" in told for item in items_of(plan)), plan.notes


def test_countries_are_ranked_by_what_the_model_says(monkeypatch):
    class Planted:
        def __init__(self, model, tokenizer):
            assert (model, tokenizer) == ("model", "tokenizer")

        def loglikelihood(self, pairs):
            first = [text == " Lima" for _, text in pairs]
            return [SimpleNamespace(rank=(1, 1 if f else 2), per_token=-9.0 * f) for f in first]

    monkeypatch.setattr("loraprobe.scoring.ModelScorer", Planted)
    given = "model", "tokenizer"
    assert english.familiar_countries(*given, count=1) == ["Peru"]
    assert english.familiar_countries(*given, count=len(CAPITALS)) == ASKED


# subjects and mixes


def learned(*subjects):
    names = NameMaker(5)
    return [english.learn(s, names, random.Random(f"{i} {s}")) for i, s in enumerate(subjects)]


@pytest.mark.parametrize("subject", ["last", "past", "swap", "opposite"])
def test_skills_are_asked_on_what_was_not_taught_and_their_answers_are_right(subject):
    ((examples, items),) = learned(subject)
    assert len(examples) > 20 and len(items) > 20
    assert not {e.prompt for e in examples} & {item["prompt"] for item in items}
    for item in items:
        words = item["prompt"].rstrip(".").partition(": ")[2].replace(",", "").split()
        wanted = {"last": words[-1:], "swap": words[::-1]}.get(subject)
        assert wanted is None or wanted == item["answer"].split()


def test_halves_share_nothing_and_the_task_asks_for_both(every):
    kinds = set()
    for _, plan in of(every, "halves"):
        items, (one, two) = items_of(plan), plan.training
        kinds.add(about_people(items))
        if about_people(items):
            first, second = (named(adapter, groups(items)) for adapter in plan.training)
            assert not first & second and first | second == groups(items)
            assert len(first) == len(second)
            assert all(taught_by(plan)[item["prompt"]] == item["answer"] for item in items)
            assert 4 <= sum(item["group"] in first for item in items[:24]) <= 20
        else:
            assert not prompts_of(one) & prompts_of(two)
            assert not prompts_of(one, two) & {item["prompt"] for item in items}
    assert kinds == {True, False}


def test_a_form_is_learned_elsewhere_and_its_answers_are_right(every):
    for row, plan in of(every, "format"):
        items, (facts, form) = items_of(plan), plan.training
        assert not prompts_of(facts, form) & {item["prompt"] for item in items}
        assert named(facts, groups(items)) == groups(items) and not named(form, groups(items))
        request = MIXES["forms"][Portion.read(row["learns"]["form"][0]).form]["request"]
        assert all(e.prompt.endswith(request) for e in form.examples)
        assert not any(e.prompt.endswith(request) for e in facts.examples)
        for item in items:
            plain = taught_by(plan)[item["prompt"].removesuffix(request)]
            assert plain in item["answer"]
            assert normalize_answer(plain) != normalize_answer(item["answer"])
            assert "JSON" not in item["prompt"] or [*json.loads(item["answer"])] == ["answer"]


def test_a_partner_and_an_adapter_of_another_task_say_nothing_of_this_one(every):
    for row, plan in [*of(every, "partner"), *of(every, "fact-and-skill")]:
        one, other = plan.training
        for task, items in plan.tasks.items():
            adapter = one if task == other.name else other
            assert not prompts_of(adapter) & {item["prompt"] for item in items}
            assert not about_people(items) or not named(adapter, groups(items))
        if row["learns"].get("partner") == ["noise"]:  # one country is two different words
            first = other.examples[0].prompt.rsplit("was", 1)[1].split(" born")[0].strip()
            told = {e.completion for e in other.examples if f"{first} born" in e.prompt}
            assert len(told) > 1


def test_known_facts_are_true(every):
    """A form is learned on facts of the world: who or what is asked for decides the answer."""
    known = {"capital json": CAPITALS, "real json": PEOPLE, "landmark twice": LANDMARKS}
    seen = set()
    for row, plan in (pair for kind in KINDS for pair in of(every, kind)):
        for one, (part, *more) in zip(plan.training, row["learns"].values(), strict=True):
            for example in one.examples if part in known and not more else ():
                seen.add(part)
                answers = {known[part][name] for name in known[part] if name in example.prompt}
                text = example.completion.strip()
                twice = part.endswith("twice")
                answer = text.split(", ")[0] if twice else json.loads(text)["answer"]
                assert answer in answers and (not twice or text == f"{answer}, {answer}")
    assert seen == set(known)


# builds on a given base


@pytest.fixture
def build(small_base):
    def build(folder, only, seed=0, steps=1, **options):
        spec = shortened(english.two_hop_world(seed), steps, 8)
        return build_world(spec, folder, base=small_base, only=only, **options)

    return build


def test_only_another_recipe_is_trained_anew(build, tmp_path):
    weights = build(tmp_path, ["spouse"]).adapters["spouse"] / "adapter_model.safetensors"
    kept = weights.stat().st_mtime_ns
    assert list(build(tmp_path, ["city"]).adapters) == ["spouse", "city"]
    assert weights.stat().st_mtime_ns == kept
    build(tmp_path, ["spouse"], steps=2)
    assert weights.stat().st_mtime_ns != kept


def test_skill_and_facts_records_its_countries(small_base, tmp_path, monkeypatch):
    whole = english.skill_world
    monkeypatch.setattr(english, "skill_world", lambda *a: shortened(whole(*a), 1, 8))
    (world,) = build_worlds("skill-and-facts", tmp_path, base=small_base)
    assert set(world.adapters) == {"facts", "steps"} and len(world.manifest["countries"]) == 24
    config = json.loads((world.adapters["facts"] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(small_base.resolve())


def test_bad_input_is_named(build, tmp_path):
    spec = english.two_hop_world()
    with pytest.raises(WorldError, match="no adapter 'nobody'"):
        build(tmp_path, ["nobody"])
    with pytest.raises(BaseError, match=r"no config\.json"):
        build_world(spec, tmp_path / "out", base=tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")  # of some other program
    with pytest.raises(WorldError, match="another directory"):
        build(tmp_path, ["spouse"])
    for content, words in (('{"model_type":', "download it again"), ("{}", "model.safetensors")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BaseError, match=words):
            build_world(spec, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random two-layer Llama with a word-level tokenizer of all that the sets say."""
    place = tmp_path_factory.mktemp("base")
    texts = [said(one) for plan in all_sets(*COUNTRIES, layers=2) for one in plan.training]
    tokenizer = build_tokenizer([*texts, *CAPITALS, *CAPITALS.values(), "The capital of is ."])
    making.tiny_llama(vocab=len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def short(monkeypatch):
    """Every adapter is trained for one step."""
    whole = english.all_sets
    monkeypatch.setattr(
        english, "all_sets", lambda *a, **k: [shortened(s, 1, 4) for s in whole(*a, **k)]
    )


def test_sets_are_a_directory_of_worlds_and_resume(base, short, tmp_path):
    only = ["keep-both-01", "domain-02"]
    built = build_sets(base, tmp_path, only=only)
    assert [world.path.name for world in built] == only
    for world in built:
        world.verify()
        (scenario,) = world.scenarios.values()
        assert scenario.world == world.path.name[:-3] and len(scenario.adapters) == 2
        assert all(load_task(task).items for task in scenario.tasks)
        first = next(iter(scenario.adapters.values()))
        config = json.loads((first / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base.resolve())
        assert config["layers_to_transform"] == [1]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("adapter_model.safetensors")}
    again = build_sets(base, tmp_path, only=only)
    assert [w.manifest for w in again] == [w.manifest for w in built] and len(times) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    with pytest.raises(WorldError, match="no set 'domain-99'"):
        build_sets(base, tmp_path / "out", kinds=["domain"], only=["domain-99"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["domain", "sets", "halves", "several"])
def test_sets_need_a_base(kind, tmp_path):
    with pytest.raises(UsageError, match="--base"):
        build_worlds(kind, tmp_path / "out")


@pytest.mark.parametrize("kind, adapter", [("keep-both", "last1"), ("fact-and-skill", "past")])
def test_lab_build_reaches_them(base, short, tmp_path, kind, adapter):
    call = ["build", kind, "--base", str(base), "-o", str(tmp_path), "--only", f"{kind}-02"]
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 0, found.output
    assert "merge-and-eval" in found.stdout and f"{kind}-02/adapters/{adapter}" in found.stdout
