"""What a budget left out decides nothing, and is told with the next command."""

import pytest
from evidences import N, codes, evidence, known, replaced

from loraprobe.extensions.screen.part import ScreenPart
from loraprobe.extensions.screen.verdict import Chosen, LibraryChoice
from loraprobe.records import Audit, Provenance, Rounds
from loraprobe.verdict import decide

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
