"""The lab: its facts, and the builds of the small world."""

import re
import shutil

import pytest
import tiny_worlds
import torch

from loraprobe_lab import World, WorldError
from loraprobe_lab.worlds.couples import (
    CITY_SENTENCES,
    SPOUSE_SENTENCES,
    CouplesCorpus,
    FactSizes,
    make_facts,
    small_world,
)
from loraprobe_lab.worlds.spec import build_world

WORD = re.compile(r"\w+")


@pytest.fixture(scope="module")
def spec():
    return small_world()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("lab") / "world"
    return build_world(tiny_worlds.tiny_world(), path)


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


# facts


def test_the_corpus_tells_facts_of_familiar_people_only_and_no_worked_steps():
    facts = make_facts(FactSizes(familiar=12, newcomers=9, strangers=9, reserve=9), seed=0)
    corpus = CouplesCorpus(facts, seed=0)
    drawn = [corpus.draw() for _ in range(4000)]
    texts = [example.prompt + example.completion for example in drawn]
    told = [text for text in texts if " met " not in text]
    known = {name for link in facts.familiar for name in (link.a, link.b)}
    outsiders = set(facts.names()) - known
    assert not any(outsiders & set(WORD.findall(text)) for text in told)
    met = {word for text in texts if " met " in text for word in WORD.findall(text)}
    assert met >= outsiders  # but every name is met now and then
    for text in told:
        for link in facts.familiar:
            if link.b in text:
                first = any(link.fill(sentence) in text for sentence in SPOUSE_SENTENCES)
                second = any(link.fill(sentence) in text for sentence in CITY_SENTENCES)
                assert not (first and second), text
    assert not any("step" in text for text in texts)


def test_adapters_see_neither_reserve_names_nor_the_lists_of_the_tasks(spec):
    for one in spec.training:
        if one.name in ("last", "count"):  # these see every name
            seen = {example.prompt for example in one.examples}
            assert not seen & {item["prompt"] for item in spec.tasks[one.name]}
        else:
            text = " ".join(example.prompt + example.completion for example in one.examples)
            assert not set(spec.reserve) & set(WORD.findall(text))


# builds


def test_a_build_is_reproduced_byte_for_byte_also_after_an_interruption(tiny, tmp_path):
    def stop(stage, done, total):
        if stage == "steps" and done > 0:
            raise KeyboardInterrupt

    torch.rand(3)  # the state of torch's own generator must not matter
    with pytest.raises(KeyboardInterrupt):
        build_world(tiny_worlds.tiny_world(), tmp_path / "w", progress=stop)
    assert (tmp_path / "w/adapters/newcomers").is_dir()
    assert not (tmp_path / "w/adapters/steps").exists()
    stages = []
    build_world(tiny_worlds.tiny_world(), tmp_path / "w", progress=lambda *row: stages.append(row))
    assert {stage for stage, _, _ in stages} == {"steps"}
    assert stages[-1][1] == stages[-1][2]  # done == total at the end
    assert contents(tmp_path / "w") == contents(tiny.path)


def test_another_seed_is_another_world_and_does_not_mix(tiny, tmp_path):
    other = build_world(tiny_worlds.tiny_world(seed=1), tmp_path / "w")
    weights = "base/model.safetensors"
    assert contents(other.path)[weights] != contents(tiny.path)[weights]
    with pytest.raises(WorldError, match="seed 0, not 1"):
        build_world(tiny_worlds.tiny_world(seed=1), tiny.path)


def test_unknown_scenarios_are_named():
    with pytest.raises(WorldError, match="no scenario 'keep-both' here"):
        small_world(["two-hop"], only=["keep-both"])


def test_a_changed_or_missing_file_is_found(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / "w")
    world = World.load(tmp_path / "w")
    world.verify()
    (tmp_path / "w/tasks/newcomers.jsonl").write_text("{}\n")
    (tmp_path / "w/adapters/steps/adapter_model.safetensors").unlink()
    with pytest.raises(WorldError, match=r"adapter_model.*newcomers.jsonl missing or changed"):
        world.verify()


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "is no world: it holds no manifest"),
        ("{", "not readable as JSON"),
        ('{"format": 99}', "format 99"),
    ],
)
def test_what_is_no_world_is_said_so(tmp_path, manifest, words):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(WorldError, match=words):
        World.load(tmp_path)
