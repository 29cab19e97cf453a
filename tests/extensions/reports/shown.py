"""What Markdown and pages show of planted audits; `python tests/transcripts.py` writes it."""

from collections.abc import Callable
from xml.etree import ElementTree

from audits import markdown, page
from page_tree import all_of, parsed, text_of
from transcripts import SHOWN, titled

FEW = ("likely", "one of everything", "an inspected adapter")


def documents() -> str:
    """The Markdown of FEW."""
    return titled({name: markdown(SHOWN[name]) for name in FEW})


def pages() -> str:
    """What stands on the pages of FEW: headings, tables, and what is folded or marked."""
    return titled({name: outline(parsed(page(SHOWN[name]))) for name in FEW})


def outline(root: ElementTree.Element) -> str:
    """The texts of a page in their order, a row of a table as a line; figures by their texts."""
    lines = []
    tags = "h1 h2 h3 p dt dd summary caption tr desc".split()
    for node in (one for one in all_of(root) if one.tag in tags or "style" in one.attrib):
        cells = all_of(node, "th", "td") if node.tag == "tr" else [node]
        row = " | ".join(" ".join(text_of(cell).split()) for cell in cells)
        marks = (node.attrib[key] for key in ("class", "style") if key in node.attrib)
        lines.append(f"{' '.join([node.tag, *marks])}: {row}")
    return "\n".join(lines)


TEXTS: dict[str, Callable[[], str]] = {"markdown.txt": documents, "page.txt": pages}
