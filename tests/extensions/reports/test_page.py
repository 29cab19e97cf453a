"""Pages: structure that assistive tools rely on, and nothing that runs. No string of others is
markup there or in Markdown, which is short and complete."""

import functools
import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import making
import pytest
from audits import HOSTILE, MARKUP, READER, an_audit, markdown, page, planted, structure
from evidences import replaced
from page_tree import all_of, parsed, text_of
from sessions import BROWSERS

import loraprobe
from loraprobe.errors import OutputError
from loraprobe.extensions.reports import figures
from loraprobe.extensions.reports import page as as_page
from loraprobe.extensions.reports.page import LARGEST
from loraprobe.records import QUESTION, Action, Command, ItemPart, Measurement, Reason, Score
from loraprobe.report.answer import answer
from loraprobe.report.documents import audit_from
from loraprobe.report.sections import ShownAudit


@pytest.fixture(scope="module")
def root():
    return parsed(page(an_audit()))


def test_a_heading_a_section_in_the_order_in_which_people_read(root):
    levels = [int(heading.tag[1]) for heading in all_of(root, "h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    names = [heading.attrib["id"] for heading in all_of(root, "h2")]
    wanted = "verdict gains causes examples findings pairs modules adapters"
    assert names == [*wanted.split(), "coverage", "reasons", "provenance"]
    sections = all_of(root, "section")
    assert [section.attrib["aria-labelledby"] for section in sections] == names
    links = [link.attrib["href"] for link in all_of(root, "a")]
    assert links == [f"#{name}" for name in names[1:]]


def test_tables_have_captions_and_scoped_headers(root):
    tables = all_of(root, "table")
    assert len(tables) > 11
    for one in tables:
        assert text_of(all_of(one, "caption")[0])
        heads, rows = all_of(one, "thead")[0], all_of(all_of(one, "tbody")[0], "tr")
        assert {h.attrib["scope"] for h in all_of(heads, "th")} == {"col"}
        assert not all_of(heads, "td")
        for row in rows:
            (name,) = all_of(row, "th")
            assert name.attrib["scope"] == "row"
            assert len(all_of(row, "td")) == len(all_of(heads, "th")) - 1


def test_figures_have_title_description_and_their_table(root):
    figures = all_of(root, "figure")
    assert len(figures) >= 3  # gains, causes, maps of modules
    for one in figures:
        drawings = all_of(one, "svg")
        assert [svg.attrib["class"] for svg in drawings] == ["wide", "narrow"]
        for svg in drawings:
            title, description = all_of(svg, "title", "desc")
            assert svg.attrib["role"] == "img" and title.text and len(description.text) > 20
            names = svg.attrib["aria-labelledby"].split()
            assert names == [title.attrib["id"], description.attrib["id"]]
        assert text_of(all_of(one, "figcaption")[0])
        assert all_of(all_of(one, "details")[0], "table")


def test_ids_are_unique_and_every_reference_leads_somewhere(root):
    ids = [node.attrib["id"] for node in all_of(root) if "id" in node.attrib]
    assert len(ids) == len(set(ids))
    for node in all_of(root):
        for key in ("aria-labelledby", "href", "clip-path"):
            for name in re.findall(r"[^\s#()]+", node.attrib.get(key) or ""):
                assert name in ids or name == "url"


def test_nothing_runs_and_nothing_is_loaded(root):
    text = page(an_audit())
    assert "default-src 'none'" in text and len(text.encode()) < LARGEST
    allowed = set(
        "html head meta title style body header h1 h2 h3 main section p dl dt dd code nav ul li a "
        "figure figcaption svg desc defs g path text use clippath rect details summary div table "
        "caption thead tbody tr th td strong wbr span".split()
    )
    for node in all_of(root):
        assert node.tag in allowed
        for key in node.attrib:
            assert not key.startswith("on") and key not in ("src", "action", "srcset", "ping")
    assert not re.search(r"@import|url\((?!#)", text)


@functools.cache
def harmless_tags() -> set[str]:
    """The elements of the same page with a plain text in every place."""
    return {node.tag for node in parsed(page(planted(an_audit(), "x"))).iter()}


# Strings that only Markdown reads as markup are plain text to HTML.
TO_HTML = [text for text in MARKUP if set(text) & set("<>&\"'$[{/")]


@pytest.mark.parametrize("text", [*TO_HTML, HOSTILE, "$x^{$", "a\nb", "\ufffe", "fig\x00ure"])
def test_no_string_of_a_page_becomes_markup(text):
    audit = planted(an_audit(), text)
    audit = replaced(audit, verdict=replaced(audit.verdict, action=Action("use-single", text)))
    made = page(audit)
    found = parsed(made)
    tags = {node.tag for node in found.iter()}
    assert tags - {"wbr"} == harmless_tags() - {"wbr"}
    assert not set(made) & set("\x1b\x00\u202e")
    if text.isprintable():
        assert "".join(text.split()) in "".join(text_of(found).split())


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_level_aa(root):
    style = all_of(root, "style")[0].text
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in style.split("@media")[:2]]
    assert len(schemes) == 2 and schemes[0]["back"] != schemes[1]["back"]
    for colours in schemes:
        for name in ("ink", "muted", "accent", "good", "bad", "open"):
            assert contrast(colours[name], colours["back"]) >= 4.5, name
            assert contrast(colours[name], colours["shade"]) >= 4.5, name
        for colour in figures.COLOURS.values():
            assert contrast(colour, colours["back"]) >= 3 and contrast(colour, "#ffffff") >= 4.5


def test_a_page_stays_small_whatever_the_audit_holds():
    long = "n" * 100_000
    audit = an_audit(long)
    assert len(page(audit).encode()) < LARGEST
    names = [f"adapter-{i}" for i in range(20)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows = [
        Measurement("cosine", pair, 0.1, f"model.layers.{layer}.mlp.{kind}_proj")
        for pair in pairs
        for layer in range(8)
        for kind in ("up", "down")
    ]
    reasons = tuple(Reason("forecast", "word " * 400, 0.1, 0.2) for _ in range(2000))
    audit = replaced(
        an_audit(),
        diagnostics=tuple(rows),
        verdict=replaced(audit.verdict, reasons=reasons),
    )
    text = page(audit)
    assert len(text.encode()) < LARGEST
    assert "more rows stand in the JSON document" in text
    assert len(all_of(parsed(text), "svg")) < 40


MANY = [f"model.layers.{layer}.mlp.up_proj" for layer in range(3000)]


def test_a_map_of_thousands_of_layers_draws_the_first_and_each_figure_is_drawn_once(monkeypatch):
    rows = [Measurement("norm", ("a",), float(at + 1), path) for at, path in enumerate(MANY)]
    cosines = [Measurement("cosine", ("a", "b"), 0.25, path) for path in MANY]
    drawn = []
    monkeypatch.setitem(figures.DRAWN, "heat", lambda sheet, **given: drawn.append(given))
    found = parsed(page(replaced(an_audit(), diagnostics=(*rows, *cosines))))
    sizes, alike = drawn[0], drawn[2]
    assert len(drawn) == 2 * len(figures.WIDTHS)
    assert {len(one["rows"]) for one in drawn} == {figures.MOST_LAYERS}
    assert (sizes["most"], alike["most"]) == (3000.0, None)
    told = [text_of(one) for one in all_of(found, "desc")]
    assert sum("of 3000 rows" in one for one in told) == 4


def test_figures_without_room_leave_their_tables(monkeypatch):
    names = [figure.attrib["id"] for figure in all_of(parsed(page(an_audit())), "desc")]
    monkeypatch.setattr(as_page, "LARGEST", 60_000)
    found = parsed(page(an_audit()))
    assert 0 < len(all_of(found, "desc")) < len(names)
    assert len(all_of(found, "figure")) == len(names) / 2


def test_the_scale_of_a_cosine_is_always_the_same():
    for most, low, high in ((None, -1.0, 1.0), (4.0, -0.8, 4.0)):
        with figures.drawing() as sheet:
            figures.heat(sheet, [[0.01, -0.02]], ["0"], ["up", "down"], most)
            assert sheet.axes[0].collections[0].get_clim() == (low, high)


def test_stacked_tables_keep_their_roles_and_name_each_cell(root):
    named = {one: one.attrib.get("class", "").split() for one in all_of(root, "table")}
    stacked = [one for one, names in named.items() if "stacked" in names]
    assert {*itertools.chain(*named.values())} == {"stacked", "scores"}
    for one in stacked:
        heads = [text_of(head) for head in all_of(all_of(one, "thead")[0], "th")]
        for row in all_of(all_of(one, "tbody")[0], "tr"):
            assert row.attrib["role"] == "row"
            assert [cell.attrib["data-label"] for cell in all_of(row, "td")] == heads[1:]


# What measures a page in a frame as wide as a phone, with everything unfolded: how wide it is, and
# the captions of tables with a cell or a caption that ends beyond what is seen.
PHONE = """<iframe id="frame" width="360" height="800" srcdoc="{}"></iframe><script>
frame.onload = () => {{
  const page = frame.contentDocument, wide = new Set();
  page.querySelectorAll("details").forEach(one => one.open = true);
  page.querySelectorAll("table").forEach(table => {{
    const end = table.closest(".scroll").getBoundingClientRect().right + 1;
    const kind = table.classList.contains("stacked") ? "th, td, caption" : "caption";
    for (const cell of table.tBodies[0].parentNode.querySelectorAll(kind))
      if (!cell.closest("thead") && cell.getBoundingClientRect().right > end)
        wide.add(table.caption.textContent);
  }});
  const told = {{width: page.documentElement.scrollWidth, wide: [...wide]}};
  document.body.textContent = "FOUND" + JSON.stringify(told) + "END";
}};
</script>"""


@pytest.mark.parametrize("name", ["a", "a-long-name/" * 8])
def test_nothing_is_cut_on_a_phone(tmp_path, name):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs a browser")
    audit = an_audit(name)
    (score, *_), parts = audit.evaluation.scores, ("question", "hop1", "hop2", "steps")
    scores = tuple(replace(score, system=s, part=ItemPart(p)) for s in "ab" for p in parts)
    audit = replace(audit, evaluation=replace(audit.evaluation, scores=scores))
    (tmp_path / "phone.html").write_text(PHONE.format(html.escape(page(audit))))
    call = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    call += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    shown = subprocess.run(
        [*call, (tmp_path / "phone.html").as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    found = json.loads(html.unescape(shown.partition("FOUND")[2].partition("END")[0]))
    assert found["width"] <= 360 and found["wide"] == []


def test_only_a_report_is_replaced_and_that_is_known_before_anything_runs(tmp_path):
    file = tmp_path / "thesis.html"
    file.write_text("<p>years of work</p>")
    result = making.call("inspect", "nowhere", "--html", str(file))
    assert result.exit_code == 2 and "no report of loraprobe" in result.stderr
    assert file.read_text() == "<p>years of work</p>"
    with pytest.raises(OutputError):
        as_page.write(an_audit("x"), (), tmp_path)
    for name in ("x", "y"):
        as_page.write(an_audit(name), (), tmp_path / "new.html")
    assert "y" in (tmp_path / "new.html").read_text()


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


def test_a_program_is_a_block_that_can_be_copied():
    program = "# ``` two\ndef ask():\n    return 'a|b'" + "x" * 500
    command = Command("python", text=program)
    verdict = replaced(an_audit().verdict, next=command)
    text = markdown(replaced(an_audit(), verdict=verdict))
    (block,) = [token.content for token in READER.parse(text) if token.type == "fence"]
    assert block == program.replace("```", "'''") + "\n"


def test_a_saved_audit_has_the_same_page_and_markdown(tmp_path):
    audit = an_audit()
    read = audit_from(json.loads(audit.to_json()))
    assert (page(read), markdown(read)) == (page(audit), markdown(audit))
    file, written = tmp_path / "audit.json", tmp_path / "page.html"
    file.write_text(audit.to_json() + "\n", encoding="utf-8")
    result = making.call("report", str(file), "--html", str(written), "--markdown")
    assert result.exit_code == 0 and result.stdout == markdown(audit) + "\n"
    assert "<!DOCTYPE html>" in written.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--html", "no/page.html"), "no folder no for page.html"),
        (("--json", "--markdown"), "--json and --markdown both print"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(given, said):
    result = making.call("inspect", "nowhere", *given)
    assert result.exit_code == 2 and said in result.output


def test_samples_need_answers_and_replace_only_samples(tmp_path):
    file = tmp_path / "samples.jsonl"
    call = "merge-and-eval", "a", "b", "--base", "c", "--task", "t", "--save-samples", str(file)
    result = making.call(*call, "--metric", "answer_loss", "--margin", "0.1")
    assert result.exit_code == 2 and "--save-samples" in result.stderr
    file.write_text('{"my": "questions"}\n')
    result = making.call(*call)
    assert result.exit_code == 2 and "no samples of loraprobe" in result.stderr
    assert file.read_text() == '{"my": "questions"}\n'


def test_a_page_is_made_without_what_draws_it():
    code = "import sys, loraprobe.extensions.reports.page; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def pair():
    return [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]


def test_a_notebook_shows_the_first_sections_of_the_page():
    audit = ShownAudit(**vars(an_audit()))
    shown = audit._repr_html_()
    assert answer(audit).headline.split(":")[0] in shown
    assert shown.count("<h2") == 3 and "<svg" in shown
    style = shown.partition("<style>")[2].partition("</style>")[0]
    named = set(re.findall(r"var\((--[a-z]+)", shown))
    assert "--line" in named  # of figures: without it intervals are not drawn
    assert all(f"{name}: #" in style for name in named)
    assert "display: grid" in style and '<div class="report">' in shown  # labels beside texts
    outer, depth = [""], 0  # selectors outside all braces: nothing else of a notebook changes
    for char in re.sub(r"/\*.*?\*/", "", style):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0 and char != "}":
            outer[-1] += char
        elif depth == 1 and char == "{":
            outer.append("")
    assert {one.strip().partition(" ")[0] for one in outer} <= {".report.report", "@media", ""}
    assert "<html" not in shown and "<nav" not in shown and len(shown) < 500_000
    assert loraprobe.inspect(pair())._repr_html_().count("<section") >= 1


def test_the_page_of_a_command_maps_layers_and_modules(tmp_path):
    """Which the command line did not ask for otherwise."""
    pair = making.shipped("disjoint")[:2]
    called = making.call("inspect", *pair, "--html", tmp_path / "page.html")
    assert called.exit_code == 0
    assert "by layer and module" in (tmp_path / "page.html").read_text(encoding="utf-8")
