"""The form of prompts: which answers choose it, and what cards and tokenizers show of it."""

from __future__ import annotations

import json
import shutil

import pytest

import loraprobe
from loraprobe.base import open_base
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.plan import questions
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import known_form, open_evaluator
from loraprobe.pipeline.inputs import open_inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import baseline_systems, plan_of
from loraprobe.tasks import load_task
from loraprobe_lab import shipped_world


def test_answers_that_choose_the_chat_template_serve_the_evaluation(tmp_path, monkeypatch):
    chosen, base = shipped_world().scenario("disjoint"), tmp_path / "base"
    shutil.copytree(shipped_world().path / "base", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    task = load_task(chosen.tasks[0], 4)  # 4 questions with two hops each: all are asked
    adapters = list(chosen.adapters.values())

    def opened(resume):
        options = Options(threads=1, max_new_tokens=3)
        session = Session(options, state=tmp_path / "kept", resume=resume)
        inputs = open_inputs(adapters, session, str(base), [task])
        plan = plan_of(options, inputs.adapters, inputs.tasks)
        return open_evaluator(inputs, plan, session)

    with opened(False) as evaluator:
        own = [row for row in evaluator.ledger if row.system in chosen.adapters]
        assert {row.part for row in own} == {"question", "hop1", "hop2"}
        assert {row.system for row in own} == set(chosen.adapters) and len(own) == 2 * 3 * 4
        first = sorted(map(repr, evaluator.ledger)), evaluator.template
        asked = evaluator.scorer.with_template(False)
        question = next(q for q in questions([task]) if q.part == "hop1")
        single_ = baseline_systems(evaluator.inputs.adapters)[1]
        with asked.with_composition(single_.composition):
            (again,) = ask(asked, [question], single_.name, 3)
        assert again in list(evaluator.ledger)
    monkeypatch.setattr("loraprobe.scoring.Scorer.write_all", None)
    with opened(True) as evaluator:
        assert (sorted(map(repr, evaluator.ledger)), evaluator.template) == first


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
