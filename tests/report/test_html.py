"""Pages and cards: nothing runs, nothing is loaded, and strangers' strings are text everywhere."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import pytest
from making import saved_pair
from markdown_it import MarkdownIt
from test_report import HOSTILE, an_audit
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.errors import OutputError
from loraprobe.records import Transformation, Verdict, WeightSearch
from loraprobe.report.card import composition_card, model_card
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
    assert set(reader.seen) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "pre",
        "code",
        "span",
    }
    assert "<script>" not in text and "\x1b" not in text and "\u202e" not in text
    assert "default-src 'none'" in text and not re.search(r"(src|href)=", text)
    assert "unlikely" in reader.text.lower()


MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b onclick="x">',
    "</code></pre>",
    "[here](http://e.vil/x)",
    "![i](http://e.vil/i.png)",
    "<http://e.vil>",
    "http://e.vil/x",
    "www.e.vil",
    "a@e.vil",
    "**b** *i* __b__ _i_ ~~s~~",
    "`c`",
    "``",
    "a | b",
    "# h",
    "- x",
    "+ x",
    "1. x",
    "---",
    "===",
    "> q",
    "&lt;b&gt; &#60;i&#62;",
    "[r]: http://e.vil",
    "$x$ {{ x }} {% x %}",
    "\\*x\\* \\",
    "[bold]x[/bold]",
    "[link=http://e.vil]x[/link]",
]
OURS = frozenset(
    "command kind side part severity decision evidence metric device dtype commit sha256".split()
)


def planted(record, text):
    """The record with `text` in place of every string that somebody else may have chosen."""
    if isinstance(record, str):
        return text
    if isinstance(record, tuple):
        return tuple(planted(held, text) for held in record)
    if isinstance(record, Mapping):  # of names, but for the ranks of an adapter
        ranks = record.keys() == {"min", "max"}
        return dict(record) if ranks else {text + k: held for k, held in record.items()}
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record) if field.name not in OURS]
        held = {name: planted(getattr(record, name), text) for name in names}
        return dataclasses.replace(record, **held)
    return record


@pytest.mark.parametrize("text", MARKUP)
def test_no_string_of_a_page_becomes_markup(text):
    audit = planted(an_audit(), text)
    audit = dataclasses.replace(
        audit, verdict=dataclasses.replace(audit.verdict, action=f"use-single:{text}")
    )
    reader = parsed(page(audit))
    assert set(reader.seen) == set(parsed(page(an_audit())).seen)
    assert "".join(text.split()) in "".join(reader.text.split())


def structure(card: str) -> list[str]:
    """What a reader of Markdown makes of a card's text: its blocks, links, tables ...; whether a
    string stands as code depends on what it holds."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(card.split("---\n", 2)[2])
    plain = ("text", "text_special", "softbreak", "code_inline")
    parts = [part for token in tokens for part in (token, *(token.children or ()))]
    return [part.type for part in parts if part.type not in plain]


def cards(text: str) -> list[str]:
    """Both kinds of card, with this text as everything that a stranger may have chosen."""
    audit = planted(an_audit(), text)
    verdict = Verdict("unlikely", "evaluation", audit.verdict.reasons)
    common = {
        "name": text,
        "front_matter": {"base_model": text, "license": text},
        "verdict": verdict,
        "issues": audit.compatibility.issues,
        "allowed": (text,),
        "transformations": [Transformation(text, 1.0, 1.0, 1.0, (text, text))],
        "search": WeightSearch({text: 1.0}, 1.0, 1.0, 1.0, 9, 9, 9, 9),
    }
    merge = model_card(
        **common,
        sources=[dataclasses.replace(row, license=text) for row in audit.adapters],
        method=text,
        space=text,
        rank="8",
        weights=(1.0, -1.0),
        compression_error=0.0,
        rounding_error=0.0,
        dtype="float32",
        seed=0,
    )
    routed = [
        composition_card(
            **common, router=text, experts=audit.adapters, why_not_peft=why, missed_prototype=missed
        )
        for why, missed in ((text, None), (None, text))
    ]
    return [merge, *routed]


@pytest.mark.parametrize("text", MARKUP)
def test_no_string_of_a_card_becomes_markup(text):
    for hostile, harmless in zip(cards(text), cards("x"), strict=True):
        assert structure(hostile) == structure(harmless)
        outside = re.sub(r"`[^`]*`", "", hostile.split("---\n", 2)[2])
        # What GitHub and the Hub make links of without any mark.
        assert not re.search(r"://|\bwww\.|\w@\w", outside)


def test_the_commands_write_it(tmp_path):
    saved_pair(tmp_path)
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
