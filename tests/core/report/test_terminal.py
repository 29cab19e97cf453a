"""A terminal: what each command prints, how long it is, how it ends, and who cannot drive it."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import making
import pytest
from audits import HOSTILE, an_audit, rendered
from evidences import KINDS, replaced
from rich.console import Console
from transcripts import SCENARIOS, audit_of
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.cli.running import exit_code
from loraprobe.formatting import clean, decimals, gained, number, rounded, size, spread, wrapped
from loraprobe.records import (
    BY_PROMPT,
    Command,
    Compatibility,
    Issue,
    Measurement,
    Verdict,
    display_name,
)
from loraprobe.report import parts
from loraprobe.report.answer import answer
from loraprobe.report.parts import Answer, Figure
from loraprobe.report.sections import demo_text, one_line, sections
from loraprobe.report.terminal import print_table
from loraprobe.secrets import map_texts

UNEVEN = (Measurement("norm_ratio", ("a", "b"), 9.0),)
WIDTHS = (60, 80, 160)


def lines_of(audit, width: int, explain: bool = False) -> list[str]:
    return rendered(audit, width, explain).rstrip("\n").split("\n")


def answer_rows(audit, width: int) -> list[str]:
    told = answer(audit)
    return [*wrapped(told.headline, width), *told.rows(width)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_merge_and_eval_of_two_adapters_is_at_most_45_lines(name, width):
    audit = audit_of(replaced(SCENARIOS[name], diagnostics=UNEVEN))
    lines = lines_of(audit, width)
    wanted = answer_rows(audit, width)
    assert max(map(len, lines)) <= width and lines[-len(wanted) :] == wanted
    assert wanted[0].startswith(audit.verdict.decision.upper())
    if width >= 80:
        assert len(lines) <= 45 and len(wanted) <= 15
    rows = [line for line in lines if line and not line.startswith(" ")]
    shown = {system for system in KINDS for row in rows if row.startswith(display_name(system))}
    assert name == "incompatible" or shown == set(KINDS)


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (f"{BY_PROMPT}(a, b)", "by-prompt (a, b)"),
        ("hard:by=centroid,per=sequence(a, b)", "by-prompt (a, b)"),  # as older documents have it
        ("by-text", "by-text"),
        ("shrunk:a:b(c)", "a:b(c), shrunk"),
        (f"random-partner:{BY_PROMPT}", "random partner, by-prompt"),
        *((name, name) for name in ("sum(a, b)", "ties:density=0.3", "hard:per=sequence", "base")),
    ],
)
def test_what_a_system_is_called(system, words):
    assert display_name(system) == words


OLDER = "hard:by=centroid,per=sequence"
SPECIFIED = {"arrow": OLDER, "uniform": f"{OLDER}(a, b)"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_only_commands_and_documents_have_the_specification_of_a_system(name):
    found = map_texts(SCENARIOS[name], lambda text: SPECIFIED.get(text, text))
    audit = audit_of(found)
    parts = [part for section in sections(audit) for _, part in section.parts]
    (told,) = [part for part in parts if isinstance(part, Answer)]
    rest = [replace(part, draw=print) if isinstance(part, Figure) else part for part in parts]
    rest.remove(told)
    lines = [content for _, content in told.lines if isinstance(content, str)]
    shown = str([told.headline, lines, rest])
    assert not re.search("hard:|shrunk:|random-partner", shown)
    assert OLDER in str(audit.to_dict()) and BY_PROMPT in shown


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("legal", "godspeed", "sports", "law", "news")):
        making.random_adapter(name, seed=seed).save(folder / name)
    file = folder / "law" / "adapter_config.json"
    making.edit(file, lora_alpha=400 * json.loads(file.read_text())["lora_alpha"])
    return [str(path) for path in sorted(folder.iterdir(), reverse=True)]


def printed(*arguments: str, width: int) -> list[str]:
    with mock.patch.object(sys, "argv", ["loraprobe", *arguments]):
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n").split("\n")


@pytest.mark.parametrize("width", WIDTHS)
def test_inspect_of_two_is_at_most_30_lines_and_ends_with_commands_that_run(
    adapters, width, monkeypatch
):
    monkeypatch.chdir(Path(adapters[0]).parents[1])
    given = [f"{Path(one).parent.name}/{Path(one).name}" for one in adapters[:2]]
    lines = printed("inspect", *given, width=width)
    assert len(lines) <= 30 or width < 80
    assert any(line.startswith("FIT TOGETHER") for line in lines)
    end = " ".join(line.strip().removesuffix("\\").strip() for line in lines[-12:])
    assert f"loraprobe inspect {' '.join(given)} --base auto --probe auto" in end
    assert any("q_proj" in line for line in lines)  # what they target


@pytest.mark.parametrize("width", WIDTHS)
def test_inspect_of_five_keeps_all_figures_in_one_piece(adapters, width):
    lines = printed("inspect", *adapters, width=width)
    assert len(lines) <= 60
    pairs = [line for line in lines if " × " in line and "chance)" in line]
    assert len(pairs) == 10 and all(len(line.split()) >= 7 for line in pairs)


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_no_column_is_narrower_than_its_words(width):
    heads = [f"some error at rank{at}" for at in range(14)]
    rows = [[f"first-{i} × second", *(f"0.{i}{at:02} (1.{i}×" for at in range(14))] for i in (1, 2)]
    columns = [parts.text("pair"), *parts.figures(*heads)]
    shown = io.StringIO()
    console = Console(file=shown, width=width)
    print_table(console, parts.Table("Between", columns, rows))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = shown.getvalue().split()
    for word in " ".join([*heads, *(cell for row in rows for cell in row[1:])]).split():
        assert word in words


@pytest.mark.parametrize(("given", "shown"), [(("--json",), 0), (("--per-module",), 3)])
def test_modules_are_listed_where_they_were_asked_for(given, shown):
    audit = an_audit()
    rows = [
        Measurement("norm", names, 1.0, module="q_proj") for names in (("a",), ("b",), ("a", "b"))
    ]
    made = replaced(audit.provenance, arguments=("inspect", "a", "b", *given))
    audit = replaced(audit, provenance=made, diagnostics=rows)
    assert rendered(audit, 80).count("Module by module") == shown


@pytest.mark.parametrize(("encoding", "bar"), [("ascii", "#"), ("latin-1", "#"), ("utf-8", "▄")])
def test_bars_can_be_written(tmp_path, encoding, bar):
    file = tmp_path / "audit.json"
    file.write_text(audit_of(SCENARIOS["likely"]).to_json())
    told = CliRunner(charset=encoding).invoke(app, ["report", str(file)])
    assert told.exit_code == 0 and f" {bar * 8}" in told.stdout


def test_merge_and_route_warn_of_what_inspect_warns_of(adapters, tmp_path):
    refs = [one for one in adapters if one.endswith(("law", "news"))]
    saved = [(c, *refs, "-o", str(tmp_path / c)) for c in ("merge", "route")]
    for call in (("inspect", *refs), *saved):
        text = " ".join(" ".join(printed(*call, width=80)).split())
        assert " warning" in text and "times larger: compare" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("name", ["a", HOSTILE, "a-long-name-of-an-adapter" * 4])
def test_nothing_exceeds_the_width_but_a_word_of_a_command(width, explain, name):
    audit = an_audit(name)
    verdict = replaced(audit.verdict, next=Command("inspect", (name, "b")))
    lines = lines_of(replaced(audit, verdict=verdict), width, explain)
    longest = max(width, 16 + max(map(len, verdict.next.pieces)))
    assert max(map(len, lines)) <= longest
    wanted = answer_rows(replaced(audit, verdict=verdict), width)
    assert lines[-len(wanted) :] == wanted and lines[-len(wanted) - 1] == ""


def test_hostile_names_are_neutralised_everywhere():
    text = rendered(an_audit(HOSTILE), 200)
    assert "\x1b" not in text and "\u202e" not in text
    assert "[red]" in text  # shown as it is, not taken as markup
    assert one_line(an_audit(HOSTILE)).startswith("unlikely use-single:ev�[31mil")
    assert "\x1b" not in demo_text(an_audit(HOSTILE), ["x"], Path("y"))
    odd = "ev[/x][bold]il"
    shown = rendered(an_audit(odd), 200)
    for line in (f"{odd} × b", f"A note on {odd}.", f"Who is {odd}?"):
        assert line in shown
    assert shown.count("]il") == shown.count(odd)


@pytest.mark.parametrize(
    ("decision", "severity", "code"),
    [
        *(("likely", "note", 0), ("unlikely", "note", 1), ("inconclusive", "note", 3)),
        *(("incompatible", "error", 1), (None, "warning", 0), (None, "error", 1)),
    ],
)
def test_exit_codes_are_those_of_the_decision_or_of_compatibility(decision, severity, code):
    verdict = decision and Verdict(decision, "base")
    found = Compatibility((Issue(severity, "x", ("a",), "No."),))
    assert exit_code(replaced(an_audit(), verdict=verdict, compatibility=found)) == code


def test_numbers_sizes_and_names_are_formatted():
    told = [number(v) for v in (None, 0.0, -0.0001, 0.5, 123.4, 1e-7, 2e9)]
    assert told == "- 0.00 -1.0e-04 0.50 123 1.0e-07 2.0e+09".split()
    assert [decimals(v) for v in (None, 0.0022, -0.001, 0.5)] == ["-", "0.00", "0.00", "0.50"]
    assert gained(0.1, (0.048, 0.2), threshold=0.05) == "+0.100 [0.048, 0.200]"
    assert gained(0.1, (0.05, 0.2), threshold=0.05) == "+0.10 [0.05, 0.20]"
    assert (rounded(1_234_567), rounded(999), size(1 << 31)) == ("1.2M", "999", "2.0 GiB")
    assert (spread([8, 8]), spread([8, 16]), spread([0.5, 0.25])) == ("8", "8–16", "0.25–0.50")
    assert clean("a\tb\x07") == "a\tb�"


@pytest.mark.parametrize("width", range(24, 90, 3))
@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("legal is 24.6 times larger than news: try --balance norm.", ("--balance norm.",)),
        ("by ties:density=0.3,lambda=1.0,variant=peft in full", ("0.3", "1.0")),
    ],
)
def test_options_and_numbers_stay_in_one_piece(width, text, whole):
    lines = wrapped(text, width)
    assert "".join(" ".join(lines).split()) == "".join(text.split())
    assert max(map(len, lines)) <= width
    assert all(any(one in row for row in lines) for one in whole)
