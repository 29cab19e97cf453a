"""The terminal output of each command: its length, its content and its end."""

from __future__ import annotations

import json
import sys
from unittest import mock

import making
import pytest
from evidences import KINDS, both, evidence, evidence_of, replaced
from test_answer import audit_of
from test_report import rendered
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.demo import shipped_world
from loraprobe.records import Attribution, Compatibility, Issue, Measurement
from loraprobe.report.answer import answer

UNEVEN = (Measurement("norm_ratio", ("a", "b"), 9.0),)
WIDTHS = (60, 80, 160)
LOW = dict.fromkeys(KINDS, 0.05)
CONFLICT = Issue("error", "base-mismatch", ("a", "b"), "a is of gpt2, b of llama.", "Take one.")
SCENARIOS = {
    "likely": both(evidence({**LOW, "chain": 1.0}), evidence({**LOW, "arrow": 0.8}, part="steps")),
    "chain": evidence(
        {**LOW, "chain": 1.0}, attribution=(Attribution("uniform", "t", not_composed=95),)
    ),
    "use-single": evidence({**LOW, "a": 1.0, "arrow": 0.7, "random-partner": 0.9}),
    "inconclusive": evidence({**LOW, "uniform": 0.3, "chain": 0.1}, half=0.3),
    "incompatible": evidence(LOW, compatibility=Compatibility((CONFLICT,))),
}


def lines_of(audit, width: int) -> list[str]:
    return rendered(audit, width, explain=False).rstrip("\n").split("\n")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_merge_and_eval_of_two_adapters_is_at_most_45_lines(name, width):
    audit = audit_of(replaced(SCENARIOS[name], diagnostics=UNEVEN))
    lines = lines_of(audit, width)
    wanted = answer(audit).laid_out(width)
    assert len(lines) <= 45 and max(map(len, lines)) <= width
    assert len(wanted) <= 12 and lines[-len(wanted) :] == wanted
    assert wanted[0].startswith(audit.verdict.decision.upper())
    shown = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert name == "incompatible" or set(KINDS) <= shown  # the names that JSON has
    assert not any("plainly" in line or ", smaller" in line for line in lines)


QUESTIONS = {  # what a practitioner asks -> the labels that answer it, by scenario
    "which one do I use": {
        "use": ("likely", "chain", "use-single", "inconclusive"),
        "fix": ("incompatible",),
    },
    "how much, against whom, how sure": {"gain": ("likely", "chain", "use-single", "inconclusive")},
    "what is better still": {"better": ("likely",)},
    "why did it fail": {"why": ("chain", "use-single", "incompatible")},
    "what would decide": {"decide": ("inconclusive",)},
    "what do I run next": {
        "next": ("likely", "chain", "inconclusive", "incompatible"),
        "in Python": ("use-single",),
    },
    "what is known before a question is asked": {"known": ("weights",)},
    "what do I have to watch": {"watch": ("weights",)},
}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_twelve_lines_answer_what_practitioners_ask(width):
    scenarios = {**SCENARIOS, "weights": evidence_of(diagnostics=UNEVEN)}
    for question, labels in QUESTIONS.items():
        for label, names in labels.items():
            for name in names:
                command = "inspect" if name == "weights" else "merge-and-eval"
                kept = dict(answer(audit_of(scenarios[name], command)).kept(width))
                assert kept.get(label), (question, name)


@pytest.mark.parametrize("width", WIDTHS)
def test_incompatible_shows_the_conflict_its_cure_and_no_comparison(width):
    found = evidence_of(
        compatibility=Compatibility((CONFLICT,)),
        diagnostics=(Measurement("cosine", ("a", "b"), 0.5),),
    )
    text = "\n".join(lines_of(audit_of(found, "inspect"), width))
    assert CONFLICT.code in text and CONFLICT.message in text and CONFLICT.cure in text
    assert "cosine" not in text and "a × b" not in text and "a x b" not in text


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("legal", "godspeed")):
        making.random_adapter(name, seed=seed).save(folder / name)
    return [str(folder / name) for name in ("legal", "godspeed")]


def called(*arguments: str, width: int) -> list[str]:
    with mock.patch.object(sys, "argv", ["loraprobe", *arguments]):
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n").split("\n")


@pytest.mark.parametrize("width", WIDTHS)
def test_inspect_of_two_is_at_most_30_lines_and_ends_with_commands_that_run(pair, width):
    lines = called("inspect", *pair, width=width)
    assert len(lines) <= 30
    assert any(line.startswith("FIT TOGETHER") for line in lines)
    end = "".join(line.strip().removesuffix("\\") for line in lines[-12:])
    assert "loraprobe inspect" in end and "--probe auto" in end
    assert all(reference in end for reference in pair)  # as they were typed
    assert any("q_proj" in line for line in lines)  # what they target


@pytest.mark.parametrize("width", WIDTHS)
def test_inspect_of_two_with_a_base_and_findings_is_at_most_30_lines(width):
    scenario = shipped_world().scenario("skill-and-facts")
    refs = [f"{name}={path}" for name, path in scenario.adapters.items()]
    base = str(shipped_world().path / "base")
    lines = called("inspect", *refs, "--base", base, width=width)
    assert len(lines) <= 30 and max(map(len, lines[:-12])) <= width
    assert any("targets-differ" in line for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_inspect_of_five_keeps_all_figures_in_one_piece(tmp_path, width):
    names = ["legal", "medical", "sports", "law", "news"]
    for seed, name in enumerate(names):
        making.random_adapter(name, seed=seed).save(tmp_path / name)
    lines = called("inspect", *(str(tmp_path / name) for name in names), width=width)
    assert len(lines) <= 55
    pairs = [line for line in lines if " x " in line]
    assert len(pairs) == 10 and all(len(line.split()) >= 5 for line in pairs)


def test_merge_and_route_warn_of_what_inspect_warns_of(pair, tmp_path):
    making.random_adapter("loud", seed=7).save(tmp_path / "loud")
    file = tmp_path / "loud" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": 400 * config["lora_alpha"]}))
    refs = [pair[0], str(tmp_path / "loud")]
    saved = [(c, *refs, "-o", str(tmp_path / c)) for c in ("merge", "route")]
    for call in (("inspect", *refs), *saved):
        text = " ".join(" ".join(called(*call, width=80)).split())
        assert " warning" in text and "--balance norm" in text and "times larger" in text
