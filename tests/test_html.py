"""The report as an HTML page: one file, nothing runs, nothing is loaded, strangers are escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from making import random_adapter
from test_report import HOSTILE, an_audit
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.errors import OutputError
from loraprobe.report.html import MARK, page, write_page


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Tags:
    reader = Tags()
    reader.feed(text)
    return reader


def test_strangers_names_are_text():
    text = page(an_audit(HOSTILE))
    reader = parsed(text)
    assert set(reader.seen) <= {"html", "head", "meta", "title", "style", "body", "pre", "code",
                                "span"}  # fmt: skip
    assert "<script>" not in text and "\x1b" not in text and "\u202e" not in text
    assert "default-src 'none'" in text and not re.search(r"(src|href)=", text)
    assert "verdict" in reader.text.lower()


def test_the_commands_write_it(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        random_adapter(name, seed=seed).save(tmp_path / name)
    file = tmp_path / "deep" / "report.html"
    refs = [str(tmp_path / "a"), str(tmp_path / "b")]
    for command in (["inspect", *refs], ["merge", *refs, "-o", str(tmp_path / "out")]):
        result = CliRunner().invoke(app, [*command, "--html", str(file), "--json"])
        assert result.exit_code == 0, result.output
        assert "report.html" in result.stderr and result.stdout.startswith("{")
        text = file.read_text(encoding="utf-8")
        assert MARK in text and f"loraprobe {command[0]}" in parsed(text).text
    assert [p.name for p in file.parent.iterdir()] == ["report.html"]


def test_only_a_report_is_replaced_and_that_is_known_before_anything_runs(tmp_path):
    file = tmp_path / "thesis.html"
    file.write_text("<p>years of work</p>")
    result = CliRunner().invoke(app, ["inspect", "nowhere", "--html", str(file)])
    assert result.exit_code == 2 and "no report of loraprobe" in result.stderr
    assert file.read_text() == "<p>years of work</p>"
    with pytest.raises(OutputError):
        write_page(an_audit("x"), tmp_path)
    write_page(an_audit("x"), tmp_path / "new.html")
    write_page(an_audit("y"), tmp_path / "new.html")
    assert "y" in (tmp_path / "new.html").read_text()
