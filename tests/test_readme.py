"""The README is true: its tree names every file with the file's own first sentence."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".:")


def tree() -> str:
    """Every file of the package, folder by folder, with one line each."""
    lines = []
    package = ROOT / "loraprobe"
    for path in sorted(package.rglob("*.py"), key=lambda p: (p.parent != package, str(p))):
        name = str(path.relative_to(ROOT))
        lines.append(f"{name:44} {first_sentence(path)}".rstrip())
    return "\n".join(lines) + "\n"


def test_the_tree_is_that_of_the_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BEGIN in text and END in text
    assert text.split(BEGIN)[1].split(END)[0] == tree(), (
        "run `python tests/test_readme.py` to bring the README's tree up to date"
    )


def test_every_file_says_what_it_is():
    for path in sorted((ROOT / "loraprobe").rglob("*.py")):
        assert first_sentence(path), f"{path.relative_to(ROOT)} has no docstring"


def test_changelog_names_the_version():
    from loraprobe import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(before + BEGIN + tree() + END + after, encoding="utf-8")
