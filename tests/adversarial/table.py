"""Writes docs/adversarial.md from what the cases do now.

    python tests/adversarial/table.py

Run it in a checkout of an older commit, with this folder copied there, to see what that did.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import adversarial
from adversarial import CASES, Case

PAGE = Path(__file__).parents[2] / "docs" / "adversarial.md"
HEAD = """# Hostile and careless input: before and after

The test suite runs each row, a case of `tests/adversarial`. *Before* is the outcome of the first
version, under *Strangers* that of commit 1ea8880e, *now* that of the present one.
`python tests/adversarial/table.py` writes this page.
"""


def load_cases() -> dict[str, Case]:
    """All cases, by name, in order of area."""
    for module in pkgutil.iter_modules(adversarial.__path__):
        if module.name != "table":
            importlib.import_module(f"adversarial.{module.name}")
    return dict(sorted(CASES.items(), key=lambda item: item[1].area))


def happened(case: Case) -> str:
    """The outcome of a case in an empty directory."""
    with tempfile.TemporaryDirectory() as place:
        return case.act(Path(place))


def page(outcomes: dict[str, str]) -> str:
    """The page, with what happens now by the name of the case."""
    lines, area = [HEAD], ""
    for name, case in load_cases().items():
        if case.area != area:
            area = case.area
            lines += ["", f"## {area.capitalize()}", "", "| case | input | before | now |"]
            lines.append("| --- | --- | --- | --- |")
        lines.append(f"| `{name}` | {case.what} | {case.before} | {outcomes[name]} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    found = {name: happened(case) for name, case in load_cases().items()}
    for name, what in found.items():
        wanted = CASES[name].now
        print(f"{name}: {what}" + ("" if what == wanted else f"   (meant: {wanted})"))
    PAGE.write_text(page(found), encoding="utf-8")
