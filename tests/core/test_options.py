"""The table of options: what each means to whoever takes it, in Python and in the next command.

An option that is set stands in the next command of a verdict, or nothing depends on it there: what
that command writes or finds is then compared with what the option gave.
"""

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import bases
import making
import pytest
import torch
from evidences import score

import loraprobe
from loraprobe.adapters import Adapter
from loraprobe.cli import command_of, parameters, running
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.merging import METHODS
from loraprobe.options import Options, commands, flag_of, named_options, options_of, table
from loraprobe.pipeline import commands as stages
from loraprobe.pipeline.conclusion import next_step
from loraprobe.pipeline.inputs import open_inputs
from loraprobe.pipeline.plan import SystemBuilder, plan_of
from loraprobe.pipeline.transforms import transform_inputs
from loraprobe.records import (
    NOTHING,
    Action,
    Audit,
    Command,
    Compatibility,
    EvaluationRecords,
    Verdict,
)
from loraprobe.session import Session
from loraprobe.tasks import Task
from loraprobe.verdict.next_command import MERGE_AND_EVAL, instead_of_probing
from loraprobe.verdict.reasons import reason_of

FUNCTIONS = [n for n in loraprobe.__all__ if inspect.isfunction(getattr(loraprobe, n))]
NEEDS_A_MACHINE = "quantize", "device_map"  # of GPUs, or packages for these
EVALUATING = [name for name in commands() if "retention" in options_of(name)]
# A value of options that is not the default; any other gets one from its type or its help.
VALUES: dict[str, Any] = {
    "allow": ("base-mismatch",), "subtract": ("c",), "fields": ("prompt=prompt",),
    "methods": ("ties:density=0.3", "uniform"), "systems": ("ties",), "space": "core", "rank": 2,
    "weights": (1, 0.12345678), "limit": 40,
    "metric": "numeric", "margin": 0.1, "guards": ("guard.jsonl",), "device": "cpu",
    "diagnostics": ("intruder_dimensions",), "dtype": "bfloat16", "quantize": "4bit",
    "routers": ("arrow:top_k=1",), "batch_size": 4,
}  # fmt: skip
WITH = {"guard_margin": {"guards": ("guard.jsonl",)}}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_none_is_what_is_not_given(name, monkeypatch):
    """For every keyword of every public function; what it needs cannot be None."""
    function = getattr(loraprobe, name)
    inner = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))["function"]
    monkeypatch.setattr(inner, "cell_contents", lambda **given: given)
    own = inspect.signature(function).parameters
    needed: dict[str, Any] = {
        key: "x" for key, one in own.items() if one.default is one.empty and key != "options"
    }
    listed = inspect.getdoc(function).partition("\noptions: ")[2].partition("(docs")[0]
    keywords = {*own, *re.findall(r"\w+", listed)} - {"options", *needed}
    assert ("options" in own) == (len(keywords) > 5)
    for keyword in keywords:
        assert function(**needed, **{keyword: None}) == needed, keyword
    placed = [one for one in own.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert function(*needed.values(), *[None] * (len(placed) - len(needed))) == needed
    for keyword in needed:
        with pytest.raises(UsageError, match=keyword):
            function(**{**needed, keyword: None})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a base, adapters a, b and c of it, a task, a guard and a file of prompts."""
    place = tmp_path_factory.mktemp("world")
    making.tiny_llama(vocab=512).save_pretrained(place / "base")
    bases.subwords().save_pretrained(place / "base")
    template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    making.edit(place / "base" / "tokenizer_config.json", chat_template=template)
    for seed, name in enumerate("abc"):
        targets = ["q_proj", "v_proj"]
        making.peft_adapter(
            place / name, making.tiny_llama(vocab=512), seed + 1, r=2 + seed, target_modules=targets
        )
        config = place / name / "adapter_config.json"
        making.edit(config, base_model_name_or_path=str(place / "base"))
    (place / "prompts.txt").write_text("Once upon a time\nOne day\nThe red ball\n")
    rows = [f'{{"prompt": "Question {i}?", "answer": "{i}"}}\n' for i in range(4)]
    (place / "task.jsonl").write_text("".join(rows))
    (place / "guard.jsonl").write_text("".join(rows))
    return place


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def set_options(command: str) -> Iterator[tuple[str, Options]]:
    """Each option of a command that affects something, with options in which it is set."""
    for name in options_of(command):
        if name in named_options():
            tried = (_accepted({name: value, **WITH.get(name, {})}) for value in _values(name))
            options = next(filter(None, tried), None)
            assert options is not None, f"VALUES lacks a value of {name}"
            yield name, options


def _values(name: str) -> list[Any]:
    """Values that an option may take, for lack of better the words of its help."""
    one = table()[name]
    if name in VALUES:
        return [VALUES[name]]
    if isinstance(one.default, bool):
        return [True]
    if one.metadata["metavar"] == "NAME=FILE":
        return [(("a", Path("prompts.txt")),)]
    words = re.findall(r"[\w.-]+", f"{one.metadata['metavar']} {one.metadata['help']}")
    return [*([] if isinstance(one.default, (str, tuple)) else [7, 0.3, 50]), *words]


def _accepted(given: dict[str, Any]) -> Options | None:
    """The options if their values are of their types and within their limits."""
    name = next(iter(given))
    try:
        options = Options.of(given)
    except (LoraprobeError, TypeError):
        return None
    return None if options.value(name) == Options().value(name) else options


def typed(command: Command) -> Options:
    """The options that a command has as it is typed; it is not run."""
    seen: list[Options] = []

    def read(given: dict[str, Any]) -> None:
        seen.append(running.options_from(given)[0])
        raise UsageError("That is all.")

    with mock.patch.object(parameters, "options_from", read):
        making.call(*shlex.split(str(command))[1:])
    return seen[0]


def next_of(verdict: Verdict, options: Options, evaluation: Command = MERGE_AND_EVAL) -> Command:
    """The next command of a verdict on the adapters a and b of the base."""
    inputs = open_inputs(["a", "b"], Session(), "base", ())
    guards = [Task("guard", (), "guard.jsonl")] if options.guards else []
    asked = replace(inputs, tasks=[Task("task", (), "task.jsonl")], guards=guards)
    kind = "router" if verdict.action.kind == "route" else "merge"
    rows = (replace(score("sum", 0.9), system=verdict.system, kind=kind),)
    measured = EvaluationRecords(scores=rows)
    about = asked, measured, Compatibility()
    return next_step(verdict, options, *about, evaluation=evaluation)[0]


OPEN = Verdict("inconclusive", "evaluation", missing="items")
USED = Verdict("likely", "evaluation", system="dare_ties", action=Action("merge"), composes=True)
ROUTED = replace(USED, system="arrow", action=Action("route"))
NONE = Verdict("unlikely", "evaluation", action=Action("train-target-adapter"))
LOSSY = (reason_of("compression-lost", 0.3, 0.1, system="sum", so="", advice=""),)
FITTED = replace(ROUTED, system="hard:by=centroid,per=sequence")
# Verdicts that ask for another evaluation, each with the options that it has to change for that.
EVALUATED = {
    "items": (OPEN, "limit"),
    "the base": (replace(OPEN, evidence="pilot", missing=None), ""),
    "time": (replace(OPEN, missing="time"), ""),
    "rank": (replace(OPEN, missing="rank"), "rank methods systems"),
    "rank too": (replace(OPEN, missing="items", reasons=LOSSY), "rank limit"),
    "metric": (replace(OPEN, missing="metric"), "metric"),
    "controls": (replace(OPEN, missing="controls"), "systems"),
    "guards": (replace(OPEN, missing="guard-items"), "guards limit"),
    "wording": (replace(NONE, missing="wording", action=Action("gather-evidence")), "metric"),
    "another adapter": (NONE, ""),
    "harder": (replace(NONE, action=Action("use-base"), missing="harder-items"), ""),
    "fitted": (FITTED, ""),
}


@pytest.mark.parametrize("case", EVALUATED)
@pytest.mark.parametrize("command", EVALUATING)
def test_the_next_evaluation_has_every_option_that_was_set(here, command, case):
    verdict, changed = EVALUATED[case]
    if case == "fitted" and command != "merge-and-eval":
        return  # which others do not fit
    for name, options in set_options(command):
        found = next_of(verdict, options, Command(command))
        assert found.verb == command
        same = typed(found).value(name) == options.value(name)
        assert same is (name not in changed.split()), (name, str(found))


def measured_with(options: Options) -> SystemBuilder:
    """What builds the systems that an evaluation of a and b with these options asks."""
    inputs, session = open_inputs(["a", "b"], Session(), "base", ()), Session(options)
    prepared = transform_inputs(inputs, "route", session)
    return SystemBuilder(inputs.adapters, prepared, options, inputs.base)


def deltas(*adapters: Adapter) -> list[torch.Tensor]:
    """The changes of all modules of adapters, each in the order of their paths."""
    return [making.dense(a.modules[path]) for a in adapters for path in sorted(a.modules)]


def run(command: Command, place: Path) -> None:
    """Runs a command that writes to DIR, there."""
    words = [str(place) if word == "DIR" else word for word in shlex.split(str(command))]
    done = making.call(*words[1:])
    assert done.exit_code == 0 and place.is_dir(), (words, done.output)


@pytest.mark.parametrize("spec", ["dare_ties", "task_arithmetic"])
def test_the_next_merge_writes_what_was_measured(here, tmp_path, spec):
    for name, options in set_options("merge-and-eval"):
        found = next_of(replace(USED, system=spec), options)
        run(found, tmp_path / name)
        written = deltas(loraprobe.load(tmp_path / name))
        measured = deltas(measured_with(options).merge(METHODS.make(spec)).adapter)
        assert all(map(torch.allclose, written, measured)), (name, str(found))


def test_the_next_composition_is_what_was_measured(here, tmp_path):
    for name, options in set_options("merge-and-eval"):
        if name in NEEDS_A_MACHINE:
            continue
        found = next_of(ROUTED, options)
        run(found, tmp_path / name)
        written = loraprobe.load_composition(tmp_path / name)
        measured = measured_with(options).build("arrow").composition
        assert written.router == measured.router, name
        same = map(torch.allclose, deltas(*written.experts), deltas(*measured.experts))
        assert all(same), (name, str(found))


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("merge", {"methods": "ties:density=0.3"}),
        ("merge", {"methods": "uniform"}),
        ("route", {"routers": "arrow:top_k=1"}),
        ("route", {}),
        ("route", {"routers": "constant", "weights": (0.7, 0.3)}),
    ],
)
def test_the_evaluation_after_a_merge_asks_what_was_made(here, monkeypatch, command, made):
    """`measured_before` knows its verdict by the content: that of the only system it composes."""
    contents = list[str]()
    finish = stages.finish
    monkeypatch.setattr(
        stages,
        "finish",
        lambda *given, **named: contents.append(named["content"]) or finish(*given, **named),
    )
    function = {"merge": stages.merge, "route": stages.compose}[command]
    for name, set_ in set_options(command):
        if name in made or name in NEEDS_A_MACHINE:
            continue
        options = Options.of({name: set_.value(name), **made})
        try:
            audit = function(["a", "b"], Session(options), base="base").audit
        except UsageError:  # weights and prompts go with some routers, the others with a task
            assert name in ("router_prompts", "weights", "fields", "limit")
            continue
        found = audit.verdict.next
        assert found.verb == "merge-and-eval" and ("--task", "questions.jsonl") in found.options
        asked = typed(found)
        specs = plan_of(asked, open_inputs(["a", "b"], Session(), "base", ()).adapters).specs
        assert set(specs) <= {specs[0], "task_arithmetic"}  # the other uses what uniform ignores
        assert measured_with(asked).build(specs[0]).content == contents[-1], (name, str(found))


def test_the_command_on_questions_beside_an_inspection_has_what_it_takes(here):
    for name, options in set_options("inspect"):
        found = next_of(Verdict("inconclusive", "weights"), options)
        beside = instead_of_probing(found)
        taken = name in options_of(beside.verb) and flag_of(name) in found.words
        assert typed(beside).value(name) == (options if taken else Options()).value(name), name


def test_the_next_inspection_has_what_it_depends_on(here):
    def inspected(options: Options) -> Audit:
        given = {"base": "base", "probe": "prompts.txt"}
        return stages.inspect(["a", "b"], Session(options), **given).audit

    plain = inspected(Options())
    for name, options in set_options("inspect"):
        found = next_of(Verdict("inconclusive", "weights"), options)
        if typed(found).value(name) != options.value(name):
            try:
                again = inspected(options)
            except UsageError:  # it goes with a task, and here is none
                continue
            assert again.evaluation.coverage == plain.evaluation.coverage, name
            assert replace(again.verdict, next=NOTHING) == replace(plain.verdict, next=NOTHING)


def test_how_a_result_is_told_and_written_changes_no_verdict(here, tmp_path, monkeypatch):
    """All options of an evaluation that affect nothing, in two calls, as not all go together."""
    told, flags = [], list[list[str]]()
    for one in command_of("merge-and-eval").params:
        if one.name not in (*named_options(), "refs", "base", "task", "config", "dry_run"):
            flags.append([one.opts[0], *([] if one.is_flag else [str(tmp_path / one.name)])])
    first = [one for one in flags if one[0] != "--json"]
    call = ["merge-and-eval", "a", "b", "--base", "base", "--task", "task.jsonl"]
    call += ["--max-new-tokens", "2", "--chat-template", "off"]
    show = running.Output.result
    monkeypatch.setattr(
        running.Output,
        "result",
        lambda output, audit, *given, **more: (
            told.append(audit.verdict) or show(output, audit, *given, **more)
        ),
    )
    for given in ([], first, [["--json"]]):
        assert making.call(*call, *(word for one in given for word in one)).exit_code != 2
    assert len(flags) > 5
    assert len({repr(replace(verdict, reasons=())) for verdict in told}) == 1
