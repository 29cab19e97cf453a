"""Writes docs/methods.md and docs/options.md from the code.

    python tests/pages.py

tests/test_docs.py compares the pages with what this gives.
"""

from __future__ import annotations

from pathlib import Path

from loraprobe.cli.methods import described
from loraprobe.declarations import declarations
from loraprobe.options import Options, OutputOptions

DOCS = Path(__file__).parents[1] / "docs"


def methods_page() -> str:
    """Every diagnostic, probe, merge method, router and space with formula, paper and options."""
    rows = described()
    lines = ["# Methods", "", "`loraprobe methods NAME` prints the same on a terminal."]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines += ["", f"## {kind.capitalize()}s"]
        for row in (row for row in rows if row["kind"] == kind):
            options = ", ".join(f"{k}={v}" for k, v in row.get("options", {}).items())
            lines += ["", f"### {row['name']}", "", row["description"], ""]
            for label, value in (
                ("options", options),
                ("formula", row.get("formula")),
                ("paper", row.get("paper")),
                ("laws", ", ".join(row.get("laws", ()))),
            ):
                if value not in (None, "", "-"):
                    lines.append(
                        f"- {label}: `{value}`" if label == "options" else f"- {label}: {value}"
                    )
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """Every option by group, with its default."""
    lines = [
        "# Options",
        "",
        "Python functions take the same options as keywords: the field's name.",
    ]
    declared = {**declarations(Options), **declarations(OutputOptions)}
    defaults = {**vars(Options()), **vars(OutputOptions())}
    for group in dict.fromkeys(one.group for one in declared.values()):
        lines += ["", f"## {group}", "", "| option | field | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for name, one in declared.items():
            if one.group == group:
                default = defaults[name]
                shown = ", ".join(default) if isinstance(default, tuple) else default
                shown = "-" if shown in (None, "") else shown
                lines.append(f"| `{one.flag}` | `{name}` | {shown} | {one.help} |")
    return "\n".join(lines) + "\n"


PAGES = {"methods.md": methods_page, "options.md": options_page}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
