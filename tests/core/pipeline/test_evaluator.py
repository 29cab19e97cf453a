"""The form of prompts: which answers choose it, and what cards and tokenizers show of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import time
from pathlib import Path
from typing import Any

import making
import pytest

import loraprobe
from loraprobe import cache
from loraprobe.base import open_base
from loraprobe.cache import cached_hash, file_hash
from loraprobe.errors import OutputError
from loraprobe.evaluation import ResponseCache
from loraprobe.evaluation.questions import questions
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import identity, known_form, open_evaluator, open_responses
from loraprobe.pipeline.inputs import open_inputs
from loraprobe.pipeline.plan import baseline_systems, plan_of
from loraprobe.records import QUESTION, ItemResult
from loraprobe.session import Session
from loraprobe.tasks import Item, Task, load_task
from loraprobe_lab import shipped_world


def test_answers_that_choose_the_chat_template_serve_the_evaluation(tmp_path, monkeypatch):
    chosen, base = shipped_world().scenario("disjoint"), tmp_path / "base"
    shutil.copytree(shipped_world().path / "base", base)
    template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    making.edit(base / "tokenizer_config.json", chat_template=template)
    task = load_task(chosen.tasks[0], 4)  # 4 questions with two hops each: all are asked
    adapters = list(chosen.adapters.values())

    def opened(resume):
        options = Options(threads=1, max_new_tokens=3)
        session = Session(options, state=tmp_path / "kept", resume=resume)
        inputs = open_inputs(adapters, session, str(base), [task])
        plan = plan_of(options, inputs.adapters, inputs.tasks)
        return open_evaluator(inputs, plan, session)

    with opened(False) as evaluator:
        own = [row for row in evaluator.responses.results.values() if " plain " in row.request]
        assert {row.part for row in own} == {"question", "hop1", "hop2"}
        assert {row.system for row in own} == set(chosen.adapters) and 12 < len(own) < 2 * 12
        first = sorted(map(repr, evaluator.responses.results)), evaluator.template
        assert not evaluator.scorer.chat_template
        question = next(q for q in questions([task]) if q.part == "hop1")
        alone = baseline_systems(evaluator.inputs.adapters)[1]
        anew = dataclasses.replace(evaluator.asker, responses=ResponseCache())
        assert anew.run([alone], [task], ["hop1"])[0] == evaluator.asker.get(alone, question)
    monkeypatch.setattr("loraprobe.scoring.ModelScorer.write_all", None)
    with opened(True) as evaluator:
        assert (sorted(map(repr, evaluator.responses.results)), evaluator.template) == first


def test_an_evaluator_that_is_not_opened_keeps_nothing_open(tmp_path, monkeypatch):
    """Its results are free for the next one as long as somebody holds the error, too."""
    chosen, closed = shipped_world().scenario("disjoint"), []
    session = Session(Options(threads=1, chat_template="off"), state=tmp_path)
    task = load_task(chosen.tasks[0], 4)
    base = str(shipped_world().path / "base")
    inputs = open_inputs(list(chosen.adapters.values()), session, base, [task])
    plan = plan_of(session.options, inputs.adapters, inputs.tasks)
    monkeypatch.setattr("loraprobe.scoring.ModelScorer.close", lambda self: closed.append(self))
    with monkeypatch.context() as broken, pytest.raises(OutputError) as error:
        broken.setattr("loraprobe.pipeline.evaluator.with_better_template", full)
        open_evaluator(inputs, plan, session)
    assert len(closed) == 1
    with open_evaluator(inputs, plan, session):
        assert "full" in str(error.value)


def full(*_, **__):
    raise OutputError("The disk is full.")


TRL = 'pipeline("text-generation")([{"role": "user", "content": question}])'
PLAIN = "model.generate(**tokenizer(text))"
TEMPLATE = "{% for message in messages %}{{ message }}{% endfor %}"
SHOWN = [
    ({}, False, "no card"),
    ({"one/README.md": "# An adapter of messages"}, False, "no card"),
    ({"one/README.md": TRL}, True, "the card of one"),
    ({"two/README.md": "tokenizer.apply_chat_template(m)"}, True, "the card of two"),
    ({"one/README.md": PLAIN, "base/README.md": TRL}, False, "the card of one"),
    ({"base/README.md": TRL}, True, "the card of the base"),
    ({"two/chat_template.jinja": TEMPLATE, "base/README.md": PLAIN}, True, "beside two"),
    ({"two/tokenizer_config.json": '{"chat_template": "x"}'}, True, "the tokenizer beside two"),
    ({"two/tokenizer_config.json": "{}", "base/README.md": PLAIN}, False, "the card of the base"),
]


@pytest.mark.parametrize(("files", "form", "source"), SHOWN)
def test_cards_and_tokenizers_show_the_form_of_prompts(files, form, source, tmp_path):
    world = shipped_world()
    places = dict(zip(("one", "two"), world.scenario("disjoint").adapters.values(), strict=True))
    for name, place in {**places, "base": world.path / "base"}.items():
        shutil.copytree(place, tmp_path / name)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    adapters = [loraprobe.load(tmp_path / name) for name in places]
    found, why = known_form(adapters, open_base(tmp_path / "base"))
    assert (found, source in why) == (form, True)


# One other value of each setting that decides the result of an item.
DECIDES = {
    "weights": (1.0, 0.5),
    "space": "core",
    "rank": 8,
    "allow": ("base-mismatch",),
    "max_new_tokens": 5,
    "metric": "choice",
    "seed": 1,
    "balance": "norm",
    "quantize": "4bit",
    "device_map": "auto",
    "trust_remote_code": True,
    "subtract": ("g",),
}
# Known otherwise: as content (items of the tasks, lines of the files), or as what came of them.
ELSEWHERE = {"limit", "router_prompts", "device", "dtype", "chat_template"}
# What only places, orders, shows or judges results.
OTHERS = set("batch_size threads margin retention per_module diagnostics all_items layers".split())
OTHERS |= {"methods", "routers", "systems"}  # who is asked
OTHERS |= {"added", "guards", "guard_margin"}


def test_every_setting_is_known_to_decide_a_result_or_not():
    names = {field.name for field in dataclasses.fields(Options)}
    assert names == {*DECIDES, *ELSEWHERE, *OTHERS}
    plain = Options().fingerprint()
    for name, value in DECIDES.items():
        assert Options(**{name: value}).fingerprint() != plain, name


def test_a_metric_of_a_task_is_given_beside_one_for_all():
    both = Options(metric=("strict", "people=json"))
    assert both.metric == Options.of({"metric": "strict,people=json"}).metric
    assert Options.of({"metric": ["strict", "people=json"]}).fingerprint() == both.fingerprint()
    assert Options.of({"metric": "strict"}).metric == "strict" and Options().metric == "auto"


def test_a_bases_identity_is_in_whatever_is_read_with_it(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    before = open_base(tmp_path).identity
    for beside in ("README.md", "model.onnx", "optimizer.pt", ".gitattributes"):
        (tmp_path / beside).write_text("x")
    assert open_base(tmp_path).identity == before
    for beside in ("tokenizer.json", "chat_template.jinja", "tokenizer.model", "modeling_own.py"):
        (tmp_path / beside).write_text("x")
        after = open_base(tmp_path).identity
        assert after.keys() - before.keys() == {beside}
        before = after
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert open_base(moved).identity == before, "where it lies decides nothing"


def test_adapters_versions_items_and_lines_of_prompts_decide(tmp_path, llama, monkeypatch):
    llama.save_pretrained(tmp_path)
    base, pair = open_base(tmp_path), [making.random_adapter(name) for name in "ab"]
    (tmp_path / "prompts").write_text("one\ntwo\n")
    prompts = Options(router_prompts=(("a", tmp_path / "prompts"),))
    items = tuple(Item(str(i), f"{i}?", ("x",)) for i in range(3))

    def of(
        items: tuple[Item, ...] = items, options: Options = prompts, adapters: Any = pair
    ) -> dict[str, Any]:
        return identity(adapters, base, [Task("t", items)], options)

    plain = of()
    assert of(adapters=pair[::-1]) != plain, "weights go by the order"
    assert of(adapters=[pair[0], making.random_adapter("b", seed=1)]) != plain
    assert of(items[:2]) != plain, "--limit"
    assert of((dataclasses.replace(items[0], answers=("y",)), *items[1:])) != plain
    assert of((dataclasses.replace(items[0], metric="strict"), *items[1:])) != plain
    assert of((dataclasses.replace(items[0], examiner="another program"), *items[1:])) != plain
    assert of(options=Options()) != plain
    (tmp_path / "prompts").write_text("\none\ntwo")
    assert of() == plain, "blank lines are no prompts"
    (tmp_path / "prompts").write_text("one\nthree\n")
    assert of() != plain
    (tmp_path / "prompts").write_text("one\ntwo\n")
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0")
    assert of()["versions"].items() >= {("torch", "0.0"), ("transformers", "0.0")}
    assert of() != plain


# What decides every answer, so that a run with another value uses no answer of this one.
APART: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"quantize": "4bit"}, {}),
    ({"device_map": "auto"}, {}),
    ({"trust_remote_code": True}, {}),
    ({}, {"device": "cuda"}),
    ({}, {"dtype": "bfloat16"}),
    ({}, {"engine": "vllm"}),
]
# What stands in the request of an answer that depends on it.
TOGETHER = ["weights", "space", "rank", "allow", "max_new_tokens", "metric", "seed", "balance"]
CASES = [(options, session, False) for options, session in APART]
CASES += [({name: DECIDES[name]}, {}, True) for name in TOGETHER]
CASES += [({"chat_template": "on"}, {}, True), ({}, {}, True)]


@pytest.mark.parametrize(("options", "session", "found"), CASES)
def test_answers_serve_other_runs_on_the_same_machine(
    tmp_path, llama, monkeypatch, options, session, found
):
    llama.save_pretrained(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0")

    def opened(options: Any = (), session: Any = ()) -> ResponseCache:
        run = Session(Options(**dict(options)), resume=True, **dict(session))
        responses, _ = open_responses([], open_base(tmp_path), [], run)
        responses.close()
        return responses

    answer = "exact_match", 1.0, "x", "item:1"
    row = ItemResult("base", "t", QUESTION, "1", *answer, request="base 1 question")
    opened().append([row])
    assert (opened(options, session).get(row.request) == row) == found
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.1")
    assert opened().get(row.request) is None
    (tmp_path / "tokenizer.json").write_text("x")
    assert opened().get(row.request) is None


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A file that, as far as the clock tells, was written an hour ago."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
    (tmp_path / "model.safetensors").write_bytes(b"weights one")
    return tmp_path / "model.safetensors"


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files whose content was hashed."""
    read: list[Path] = []
    monkeypatch.setattr(cache, "file_hash", lambda file: read.append(file) or file_hash(file))
    return read


def test_a_hash_is_computed_once(weights, read):
    wanted = file_hash(weights)
    assert [cached_hash(weights) for _ in range(3)] == [wanted] * 3
    assert read == [weights]


def replaced(file: Path) -> None:
    file.with_name("new").write_bytes(b"weights two")
    file.with_name("new").replace(file)


@pytest.mark.parametrize(
    "change", [lambda f: f.write_bytes(b"weights two"), replaced], ids=["written", "replaced"]
)
def test_a_change_that_keeps_size_and_time_is_seen(weights, read, change):
    cached_hash(weights)
    old = weights.stat()
    change(weights)
    os.utime(weights, ns=(old.st_atime_ns, old.st_mtime_ns))
    new = weights.stat()
    assert (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert cached_hash(weights) == file_hash(weights) and len(read) == 2


def test_the_hash_of_a_file_that_just_changed_is_not_kept(weights, own_cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: weights.stat().st_mtime_ns)
        assert cached_hash(weights) == file_hash(weights)
    assert not own_cache.exists()


@pytest.mark.parametrize("spoil", [b"", b"no hash", b"\xff" * 64])
def test_a_damaged_note_is_made_again(weights, read, own_cache, spoil):
    wanted = cached_hash(weights)
    (note,) = (own_cache / "hashes").iterdir()
    note.write_bytes(spoil)
    assert cached_hash(weights) == wanted and len(read) == 2


def _contents(place: Path) -> dict[str, bytes]:
    files = [place, *place.rglob("*")]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def test_a_planted_hash_is_not_believed(weights, read, own_cache):
    wanted = cached_hash(weights)
    (note,) = (own_cache / "hashes").iterdir()
    kept = note.read_bytes()
    for planted in (b"0" * 64, b"0" * 64 + kept[64:], b" " + kept[65:]):
        note.write_bytes(planted)
        assert cached_hash(weights) == wanted
    assert len(read) == 4 and note.read_bytes() == kept
    (own_cache / "key").chmod(0o644)  # another user may know it
    assert cached_hash(weights) == wanted and len(read) == 5


@pytest.mark.parametrize("linked", ["hashes", "file", "key"])
def test_no_hash_is_written_through_a_link(weights, read, own_cache, tmp_path, linked):
    cached_hash(weights)
    (note,) = (own_cache / "hashes").iterdir()
    place = {"hashes": own_cache / "hashes", "file": note, "key": own_cache / "key"}[linked]
    place.rename(tmp_path / "behind")
    before = _contents(tmp_path / "behind")
    place.symlink_to(tmp_path / "behind")
    assert cached_hash(weights) == file_hash(weights) and len(read) == 2
    assert _contents(tmp_path / "behind") == before
    assert place.is_symlink() == (linked == "hashes")


def test_a_cache_that_cannot_be_written_costs_only_time(weights, read, monkeypatch):
    monkeypatch.setenv("LORAPROBE_CACHE", str(weights / "below"))
    assert cached_hash(weights) == cached_hash(weights) == file_hash(weights)
    assert len(read) == 2
