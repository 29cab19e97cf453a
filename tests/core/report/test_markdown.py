"""The Markdown of a result: short, complete, and with no string of others as markup."""

import pytest
from audits import HOSTILE, MARKUP, READER, an_audit, markdown, planted, structure
from evidences import replaced

from loraprobe.records import QUESTION, Command, Reason, Score
from loraprobe.report.parts import Answer


@pytest.mark.parametrize("text", [*MARKUP, HOSTILE, "1.", "-", "a\n# b", "x\n\n<details>"])
def test_no_string_becomes_markup(text):
    hostile, harmless = (markdown(planted(an_audit(), told)) for told in (text, "x"))
    assert structure(hostile) == structure(harmless)


def test_it_stays_short():
    audit = an_audit("n" * 5000)
    scores = tuple(
        Score(f"s{i}", "merge", f"t{task}", QUESTION, "exact_match", 0.1, (0.0, 0.2), 10)
        for task in range(9)
        for i in range(50)
    )
    reasons = tuple(Reason("forecast", "word " * 999, 0.1, 0.2, "", "warning") for _ in range(99))
    audit = replaced(
        audit,
        adapters=audit.adapters * 30,
        scores=scores,
        verdict=replaced(audit.verdict, reasons=reasons),
    )
    text = markdown(audit)
    assert len(text.splitlines()) < 60 and max(map(len, text.splitlines())) < 1000


def test_the_rows_of_a_program_stand_together_behind_their_label():
    program = "# base\nmodel = 1\ndef ask():\n    return model"
    serve = Command("shell", text="vllm serve base")
    told = Answer("", "H", (("in Python", Command("python", text=program)), ("serve", serve)))
    _, *rows = told.rows(80)
    assert "\n".join(rows[:4]) == program and rows[4].endswith("vllm serve base")


def test_a_program_is_a_block_that_can_be_copied():
    program = "# ``` two\ndef ask():\n    return 'a|b'" + "x" * 500
    command = Command("python", text=program)
    verdict = replaced(an_audit().verdict, next=command)
    text = markdown(replaced(an_audit(), verdict=verdict))
    (block,) = [token.content for token in READER.parse(text) if token.type == "fence"]
    assert block == program.replace("```", "'''") + "\n"
