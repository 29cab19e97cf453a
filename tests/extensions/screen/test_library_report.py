"""What reports show of a library and of a short list; what a budget left out decides nothing."""

import json
import re
from pathlib import Path

import jsonschema
import making
import pytest
import torch
from audits import HOSTILE, MARKUP, markdown, page, planted, rendered, structure
from evidences import N, codes, evidence, known, replaced
from libraries import a_screen, library_audit
from page_tree import all_of, parsed, table

import loraprobe
from loraprobe.extensions.screen.part import ScreenPart
from loraprobe.extensions.screen.records import Screened, screened
from loraprobe.extensions.screen.report import unusable
from loraprobe.extensions.screen.verdict import Chosen, LibraryChoice
from loraprobe.records import Audit, Provenance, Rounds
from loraprobe.report.documents import audit_from, json_schema
from loraprobe.verdict import decide


def test_short_list_and_library_have_their_places_on_a_page():
    names = [heading.attrib["id"] for heading in all_of(parsed(page(a_screen())), "h2")]
    wanted = "verdict short-list gains causes examples findings pairs modules library adapters"
    assert names == [*wanted.split(), "coverage", "reasons", "provenance"]


def test_a_short_list_stands_in_a_terminal_in_place_of_scores_and_adapters():
    audit = a_screen()
    found = screened(audit)
    short, whole = (rendered(audit, 120, explain) for explain in (False, True))
    assert "Short list, proved" in short and "Short list, proved" in whole
    only = replaced(audit, added=(Screened(found.library),))
    assert len(short.splitlines()) < len(rendered(only, 120, False).splitlines())


@pytest.mark.parametrize("text", [*MARKUP, HOSTILE])
def test_no_string_in_a_library_is_markup(text):
    hostile, harmless = (planted(a_screen(), told) for told in (text, "x"))
    assert structure(markdown(hostile)) == structure(markdown(harmless))
    tags = [{node.tag for node in parsed(page(one)).iter()} for one in (hostile, harmless)]
    assert tags[0] - {"wbr"} == tags[1] - {"wbr"}
    told = rendered(hostile, 200)
    assert "\x1b" not in told and "\u202e" not in told


def test_a_document_has_the_keys_of_a_library_and_is_read_again():
    audit = a_screen()
    document = json.loads(audit.to_json())
    jsonschema.validate(document, json_schema())
    assert document["library"]["map_share"] == 0.5 and len(document["shortlist"]) == 1
    keys = [*document]
    assert keys.index("shortlist") == keys.index("library") + 1
    assert screened(audit_from(document)) == screened(audit)


def test_the_map_has_a_dot_for_each_adapter_and_says_what_it_shows():
    (figure,) = all_of(parsed(page(library_audit())), "figure")
    assert (
        "50%" in all_of(figure, "desc")[0].text and "4 adapters" in all_of(figure, "desc")[0].text
    )
    rows = table(figure, "The map of the library")
    assert rows[0] == ["adapter", "family", "across", "up"]
    assert len(rows) == 5 and rows[1][2:] == ["-1.00", "0.25"]
    assert not all_of(parsed(page(library_audit(adapters=2))), "figure")  # two have no map
    assert len(page(library_audit(150)).encode()) < 1_000_000


def test_of_a_library_markdown_names_what_cannot_be_used_and_families():
    text = markdown(library_audit())
    assert "Cannot be used" in text and "Families" in text and len(text.splitlines()) <= 60


@pytest.mark.needs("convert")
def test_the_cure_of_a_row_holds_for_all_its_adapters(tmp_path):
    kinds = {"one": "LOHA", "two": "VERA", "three": "IA3", "four": "OFT"}
    for name, kind in kinds.items():
        making.write_adapter(tmp_path / name, {"x": torch.ones(1)}, peft_type=kind)
    making.saved_pair(tmp_path)
    audit = loraprobe.screen([tmp_path / name for name in (*kinds, "a", "b")])
    rows = {row[0]: row[-1] for row in unusable(screened(audit)).rows}
    assert list(rows) == ["one and two", "three and four"]
    assert "convert REF --base auto" in rows["one and two"]
    assert "convert" not in rows["three and four"]


def test_every_label_of_the_answer_is_explained():
    text = (Path(__file__).parents[3] / "docs" / "reading.md").read_text(encoding="utf-8")
    labels = ", ".join(re.findall(r"^\| ([a-z, ]+) \|", text, re.M)).split(", ")
    assert {*labels} >= {"chosen", "stopped", "copies", "families", "outliers"}


FAIL = {"base": 0.0, "a": 0.05, "b": 0.04, "uniform": 0.05, "arrow": 0.03}
FAIL |= {"shrunk:a": 0.04, "random-partner": 0.03}
GAIN = {**FAIL, "uniform": 0.5}
NOT_DECIDED = {**FAIL, "uniform": 0.12}
LEFT = LibraryChoice(2, 1, 1, ((3, 20),), 60, unasked=18)
WHOLE = replaced(LEFT, unasked=0)
EARLY = {"rounds": Rounds(1, 3, N, 120, 0.99)}


@pytest.mark.parametrize(
    ("values", "chosen", "more", "decision", "missing"),
    [
        (FAIL, Chosen(LEFT, True), {}, "inconclusive", "time"),
        (FAIL, Chosen(WHOLE, True), {}, "unlikely", None),
        (GAIN, Chosen(LEFT, True), {}, "likely", None),
        (NOT_DECIDED, Chosen(WHOLE, True), EARLY, "inconclusive", "time"),
        (NOT_DECIDED, Chosen(WHOLE, False), EARLY, "inconclusive", None),
        (FAIL, Chosen(WHOLE, True), EARLY, "unlikely", None),
    ],
)
def test_what_a_budget_left_out_decides_nothing(values, chosen, more, decision, missing):
    asked = known(evidence(values, half=0.1 if values is NOT_DECIDED else 0.02))
    found = decide(replaced(asked, **more), [chosen])
    assert (found.decision, found.missing) == (decision, missing)
    assert ("budget-ended" in codes(found)) is (missing == "time")
    assert ("stopped-early" in codes(found)) is (missing != "time" and bool(more))
    assert "chosen-from-library" in codes(found)


def test_the_answer_says_out_of_what_was_chosen_and_what_ended_the_run():
    found = replaced(evidence(NOT_DECIDED, half=0.1), rounds=Rounds(2, 3, N, 150, 0.99))
    verdict = decide(found, [Chosen(WHOLE, True)])
    audit = Audit("screen", Provenance("0", "2", ()), evaluation=found.measured, verdict=verdict)
    told = dict(ScreenPart().lines(audit))
    assert "2 of 3" in told["stopped"] and "--budget" in told["stopped"]
    assert told["chosen"].startswith("from 2 adapters")
