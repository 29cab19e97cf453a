"""The elements of a page, every one of which is closed in order."""

from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "wbr"}


class Builder(HTMLParser):
    """Builds the tree; raises AssertionError where an element is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.open = ElementTree.TreeBuilder(), []

    def handle_starttag(self, tag, attributes):
        self.tree.start(tag, {name: value or "" for name, value in attributes})
        self.open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.tree.end(tag)

    def handle_data(self, data):
        if self.open:
            self.tree.data(data)


def parsed(text: str) -> ElementTree.Element:
    builder = Builder()
    builder.feed(text)
    builder.close()
    assert not builder.open
    return builder.tree.close()


def all_of(root: ElementTree.Element, *tags: str) -> list[ElementTree.Element]:
    """Elements below this one, in order; all of them without tags."""
    return [node for node in root.iter() if node is not root and (not tags or node.tag in tags)]


def text_of(node: ElementTree.Element) -> str:
    return "".join(node.itertext())


def table(root: ElementTree.Element, caption: str) -> list[list[str]]:
    """The rows of the table with that caption, headings first."""
    found = [t for t in all_of(root, "table") if text_of(all_of(t, "caption")[0]) == caption]
    return [[text_of(cell) for cell in all_of(row, "th", "td")] for row in all_of(found[0], "tr")]
