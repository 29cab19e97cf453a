"""Reports: the JSON Schema fits the document, and strangers' strings cannot drive a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import jsonschema
import pytest
import yaml
from evidences import replaced
from planting import changed
from rich.console import Console

from loraprobe.cli.output import exit_code
from loraprobe.formatting import clean, number, rounded, size, spread
from loraprobe.records import (
    AdapterSummary,
    Attribution,
    Audit,
    BaseSummary,
    Comparison,
    Compatibility,
    Coverage,
    EvaluationRecords,
    Forecast,
    Gain,
    GateStatistics,
    Issue,
    LayerGroup,
    Library,
    LibraryAdapter,
    LibraryItems,
    LibraryScore,
    Measurement,
    Provenance,
    Reason,
    Reply,
    Sample,
    Score,
    Shortlisted,
    Verdict,
)
from loraprobe.report.answer import answer
from loraprobe.report.bars import scores
from loraprobe.report.documents import json_schema
from loraprobe.report.markdown import model_card
from loraprobe.report.terminal import demo_text, one_line, render

HOSTILE = "ev\x1b[31mil\u202e[red]<script>|`"


def a_library(name: str) -> Library:
    """An adapter of every state."""
    lost = Issue("error", "adapter", (name,), f"{name} is empty.", "Download it again.")
    far = Issue("warning", "norm-outlier", (name,), f"The norm of {name} is large.", "Look at it.")
    one = LibraryAdapter(
        name, name, None, "e" * 64, "gpt2", {"min": 8, "max": 8}, 2, 4096, 1.5, "usable", (far,)
    )
    one = dataclasses.replace(one, scores=(LibraryScore("t", "question", 0.5, 20),))
    rows = [
        dataclasses.replace(one, family=1, place=(x, 0.25), outlier=x > 0) for x in (-1.0, 0.0, 1.0)
    ]
    broken = dataclasses.replace(one, state="broken", issues=(lost,), norm=None, rank=None)
    copy = dataclasses.replace(one, state="duplicate", same_as=name)
    scaled = dataclasses.replace(rows[0], same_as=name)
    unfit = dataclasses.replace(broken, state="unfit")
    adapters = (*rows, scaled, broken, unfit, copy)
    return Library(adapters, 16384, 0.02, 0.5, (LibraryItems("t", 20, 40),))


def an_audit(name: str = "a") -> Audit:
    """One of everything."""
    summary = AdapterSummary(
        name, f"./{name}", "c" * 40, "gpt2", {"min": 8, "max": 16}, 2, 4096, 1.5
    )
    replies = Reply("base", "", False), Reply("uniform", name, False, "interference")
    reason = Reason("gain-below-margin", f"{name} gains 0.02.", 0.02, 0.05, "user", "decisive")
    return Audit(
        command="merge-and-eval",
        provenance=Provenance("0", "2", ("x",), seconds={"load": 1.25}, peak_memory_bytes=1 << 30),
        adapters=(summary, dataclasses.replace(summary, name="b")),
        base=BaseSummary("gpt2", "d" * 40),
        layers=(LayerGroup(name, "h.*.c", "conv1d", 2, (8, 16), (4, 4), (4, 4), (1.0, 2.0)),),
        compatibility=Compatibility((Issue("warning", "x-y", (name,), f"{name} is odd.", "Fix."),)),
        diagnostics=(
            Measurement("norm", (name,), 1.5),
            Measurement("subspace_overlap", (name, "b"), 0.3, side="in", chance=0.1),
            Measurement("cosine", (name, "b"), math.nan, module="h.0.c"),
            Measurement("norm", (name,), 1.25, module="h.0.c"),
            Measurement("norm", (name,), 0.25, module="h.1.c"),
        ),
        evaluation=EvaluationRecords(
            coverage=(Coverage("hop_accuracy", "t", 0.5, 10, 1, (name,), (0.2, 0.8), 0.1),),
            scores=(
                Score("base", "base", "t", "question", "exact_match", 0.1, (0.0, 0.2), 10),
                Score("uniform", "merge", "t", "question", "exact_match", 0.1, (0.0, 0.2), 10, 0.5),
            ),
            comparisons=(Comparison("uniform", name, "t", "question", 0.0, (-0.1, 0.1), 10),),
            gains=(Gain("t", "question", "uniform", name, 0.0, (-0.1, 0.1), (-0.2, 0.2), 10, 900),),
            attribution=(Attribution("uniform", "t", 1, 2, 3, 4, 0),),
        ),
        samples=(Sample("t", "question", name, f"Who is {name}?", (name, "x"), replies),),
        gates=(
            GateStatistics("arrow", None, {name: 0.75, "b": 0.25}, 0.5, 0.72, 4, 90),
            GateStatistics("arrow", "h.0", {name: 1.0, "b": 0.0}, 0.0, 0.0, 2, 90),
            GateStatistics("arrow", "h.1", {name: 0.5, "b": 0.5}, 0.69, 1.0, 2, 90),
        ),
        library=a_library(name),
        shortlist=(Shortlisted((name, "b"), "pair", 1, 3, Forecast("sum", 0.1, (0.0, 0.2), 9)),),
        verdict=Verdict("unlikely", "evaluation", (reason,), "uniform", f"use-single:{name}"),
        notes=(f"A note on {name}.",),
    )


def rendered(audit: Audit, width: int = 100, explain: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    render(audit, console, explain=explain)
    return out.getvalue()


def test_document_satisfies_its_schema_and_holds_no_nan():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(an_audit().to_json())
    jsonschema.validate(document, schema)
    assert document["schema_version"] == 2
    assert document["compatibility"]["compatible"] is True
    assert document["diagnostics"][2]["value"] is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 1),
        (("verdict", "decision"), "perhaps"),
        (("evaluation", 0, "ci95"), [0.1]),
        (("adapters", 0, "modules"), "many"),
    ],
)
def test_schema_refuses_what_is_wrong(path, value):
    document = json.loads(an_audit().to_json())
    changed(document, path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_terminal_shows_every_part():
    text = rendered(an_audit())
    for part in (
        "Adapters",
        "Layers",
        "x-y",
        "subspace overlap (in)",
        "3.0× chance",
        "guess",
        "(0.20–0.80)",
        "UNLIKELY",
        "a alone",
        "gain-below-margin",
        "A note on a.",
        "1.2 s",
    ):
        assert part in text, part


def test_gates_are_a_bar_a_layer():
    text = rendered(an_audit())
    (first, second) = (line for line in text.splitlines() if "█▅" in line or "▁▅" in line)
    assert first.split() == ["arrow", "a", "█▅", "0.75", "72%"]
    assert second.split() == ["b", "▁▅", "0.25"]
    many = tuple(
        GateStatistics("arrow", f"h.{i}", {"a": float(i >= 50)}, 0.0, 0.0, 1, 9) for i in range(100)
    )
    whole = dataclasses.replace(an_audit().gates[0], share={"a": 0.5})
    text = rendered(dataclasses.replace(an_audit(), gates=(whole, *many)))
    assert "▁" * 20 + "█" * 20 in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("explain", [False, True])
def test_terminal_never_exceeds_its_width(width, explain):
    assert max(map(len, rendered(an_audit(), width, explain).splitlines())) <= width


def test_the_answer_is_the_end_of_what_is_printed():
    for width in (60, 80, 160):
        for explain in (False, True):
            lines = rendered(an_audit(), width, explain).splitlines()
            wanted = answer(an_audit()).laid_out(width)
            assert lines[-len(wanted) :] == wanted and lines[-len(wanted) - 1] == ""


def test_only_explaining_shows_probes_codes_and_notes():
    short = rendered(an_audit(), 100, explain=False)
    for part in ("hop accuracy", "gain-below-margin", "A note on a.", "Where the answers went"):
        assert part in rendered(an_audit()) and part not in short


def test_module_names_break_at_their_joints():
    path = "base_model.model.model.layers.10.self_attn.k_proj"
    rows = tuple(Measurement("norm", ("a",), 1.0, module=f"{path}.{i}") for i in range(5))
    text = rendered(dataclasses.replace(an_audit(), diagnostics=rows), 50)
    pieces = [line.split()[0] for line in text.splitlines() if line.startswith("base_model")]
    pieces += [line.split()[0] for line in text.splitlines() if line.startswith(("self", "k_"))]
    whole = path.split(".")
    names = {part for piece in pieces for part in piece.strip(".").split(".")}
    assert len(pieces) == 10 and names <= {*whole, *"01234"}


def test_an_evaluation_is_titled_with_the_metric_of_the_question():
    audit = an_audit()
    hop = dataclasses.replace(audit.evaluation.scores[0], part="hop1")
    question = dataclasses.replace(audit.evaluation.scores[0], metric="choice")
    assert "choice)" in rendered(replaced(audit, scores=(hop, question)), 120)


def test_hostile_names_are_neutralised_everywhere():
    text = rendered(an_audit(HOSTILE))
    assert "\x1b" not in text and "\u202e" not in text
    assert "[red]" in text  # shown as it is, not taken as markup
    assert one_line(an_audit(HOSTILE)).startswith("unlikely use-single:ev�[31mil")
    assert "\x1b" not in demo_text(an_audit(HOSTILE), ["x"])


def test_json_on_a_terminal_drives_nothing_and_loses_nothing():
    odd = "ev\x1b[31mil\x9b31m\u202e\u2066\x7f"
    text = an_audit(odd).to_json()
    assert not set(odd) & set("\x1b\x9b\u202e\u2066\x7f") & set(text)
    assert json.loads(text)["adapters"][0]["name"] == odd


def test_what_looks_like_markup_is_shown_as_it_stands():
    odd = "ev[/x][bold]il"
    audit = an_audit(odd)
    audit = replaced(
        audit,
        adapters=tuple(dataclasses.replace(row, base_model=odd) for row in audit.adapters),
        coverage=tuple(dataclasses.replace(row, task=odd) for row in audit.evaluation.coverage),
        scores=tuple(
            dataclasses.replace(row, task=odd, system=odd) for row in audit.evaluation.scores
        ),
        attribution=tuple(
            dataclasses.replace(row, system=odd) for row in audit.evaluation.attribution
        ),
    )
    text = rendered(audit, 200)
    for line in ("Coverage: ev[/x][bold]il", "Evaluation: ev[/x][bold]il", "ev[/x][bold]il × b"):
        assert line in text
    assert text.count("]il") == text.count(odd)


@pytest.mark.parametrize(
    ("decision", "code"), [("likely", 0), ("unlikely", 1), ("incompatible", 1), ("inconclusive", 3)]
)
def test_exit_codes(decision, code):
    assert exit_code(dataclasses.replace(an_audit(), verdict=Verdict(decision, "base"))) == code


def test_exit_code_without_verdict_is_compatibility():
    fits = dataclasses.replace(an_audit(), verdict=None)
    conflict = Compatibility((Issue("error", "x", ("a",), "No."),))
    assert exit_code(fits) == 0
    assert exit_code(dataclasses.replace(fits, compatibility=conflict)) == 1


def test_model_card_is_yaml_and_keeps_strangers_strings_inert():
    audit = an_audit(HOSTILE)
    text = model_card(
        name=HOSTILE,
        front_matter={"base_model": "gpt2: {x"},
        sources=audit.adapters,
        method="Ties(density=0.3)",
        space="full",
        rank="16",
        weights=(0.5, 0.5),
        compression_error=0.01,
        rounding_error=0.0,
        dtype="bfloat16",
        seed=0,
        serve=("vllm serve gpt2 --lora-modules a=.",),
        audit=audit,
        allowed=("x-y",),
    )
    front, body = text.split("---\n")[1:3]
    assert yaml.safe_load(front)["base_model"] == "gpt2: {x"
    assert "<script>" not in body and "\x1b" not in body
    assert "accepted with --allow" in body and "Ties(density=0.3)" in body


def test_numbers_sizes_and_names_are_formatted():
    told = [number(v) for v in (None, 0.0, -0.0001, 0.5, 123.4, 1e-7, 2e9)]
    assert told == "- 0.00 -1.0e-04 0.50 123 1.0e-07 2.0e+09".split()
    assert (rounded(1_234_567), rounded(999), size(1 << 31)) == ("1.2M", "999", "2.0 GiB")
    assert (spread([8, 8]), spread([8, 16]), spread([0.5, 0.25])) == ("8", "8–16", "0.25–0.50")
    assert clean("a\tb\x07") == "a\tb�"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_figures_of_many_adapters_stay_in_one_piece(width):
    """All pairs of four adapters: more columns than a terminal has, so several tables."""
    names = ("legal", "medical", "sports", "gpt2")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows = [
        Measurement(name, pair, 0.1 * i + 0.001 * j, side="in", chance=0.01)
        for i, name in enumerate(("cosine", "energy_ratio", "subspace_overlap", "norm_ratio"))
        for j, pair in enumerate(pairs)
    ]
    text = rendered(dataclasses.replace(an_audit(), diagnostics=tuple(rows)), width)
    for row in rows:
        assert f" {row.value:.{1 if row.name == 'norm_ratio' else 3}f}" in text
        assert " × ".join(row.adapters) in text


def test_a_table_of_scores_says_who_answered_fewer_questions():
    rows = [
        Score(system, kind, task, "question", "exact_match", 0.5, (0.4, 0.6), n)
        for system, kind, n in (
            ("base", "base", 120),
            ("uniform", "merge", 30),
            ("sum", "merge", 120),
            ("shrunk:a", "control", 30),
            ("random-partner", "control", 30),
        )
        for task in ("t", "u")
    ]
    caption = scores(replaced(an_audit(), scores=tuple(rows)), 80).caption
    assert "120 + 120" in caption and "(uniform and controls: 30 + 30)" in caption
    one = [dataclasses.replace(row, n=30) for row in rows if row.task == "t"]
    caption = scores(replaced(an_audit(), scores=tuple(one)), 80).caption
    assert "30 questions of t" in caption and "(" not in caption
