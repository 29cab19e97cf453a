"""Writes docs/methods.md, options.md, codes.md, llms.txt and the data of `loraprobe methods` from
the code, and what the files `extensions/NAME/written.py` have under PAGES; their CODES are
findings.

    python tests/pages.py

tests/core/report/test_docs.py compares the pages with what this gives.
"""

import importlib
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe.adapters.files import trainings
from loraprobe.cli.methods import documented, registries, row_of
from loraprobe.cli.parameters import OTHERS, PANELS, tables
from loraprobe.findings import SUBJECTS
from loraprobe.lora.spaces import SPACES
from loraprobe.options import AddedOptions, groups
from loraprobe.verdict.reasons import CODES
from loraprobe.wiring import GROUP, extensions

DOCS = Path(__file__).parents[1] / "docs"
ADDED = [
    importlib.import_module(f"extensions.{file.parent.name}.written")
    for file in sorted(Path(__file__).parent.glob("extensions/*/written.py"))
]
ADDED_CODES = {subject: codes for one in ADDED for subject, codes in one.CODES.items()}


PACKAGE = DOCS.parent / "loraprobe"
ADDING = [one for one in extensions() if one.members and type(one).__module__.startswith(GROUP)]


def members() -> list[dict[str, Any]]:
    """Every entry of every registry, and the ways of training, as plain data."""
    return sorted([*of_core(), *itertools.chain(*map(of_extension, ADDING))], key=kind_and_name)


def kind_and_name(row: dict[str, Any]) -> tuple[int, str]:
    """By which rows are sorted; spaces and ways of training stand in the order of their tables."""
    nouns = [one.noun for one in registries()]
    return (nouns.index(row["kind"]), row["name"]) if row["kind"] in nouns else (len(nouns), "")


def of_extension(extension: Any) -> list[dict[str, Any]]:
    """The entries that an extension adds."""
    modules = {name for names in extension.members.values() for name in names}
    return [row_of(kind, c) for kind in registries() for c in kind if c.__module__ in modules]


def of_core() -> list[dict[str, Any]]:
    """The entries of the core, and the ways of training."""
    added = f"{GROUP}."
    rows = [row_of(k, cls) for k in registries() for cls in k if added not in cls.__module__]
    for name, space in SPACES.items():
        text = documented(space.stacked) | {"formula": space.formula, "paper": space.paper}
        rows.append({"kind": "space", "name": name, **text})
    shown = ("name", "summary", "description", "formula", "paper")
    for training in trainings():
        text = {key: training.get(key, "").strip() for key in shown}
        rows.append({"kind": "training method", **text})
    return rows


def methods_page() -> str:
    """Every entry of `loraprobe methods` with formula, paper and options."""
    rows = members()
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
        "Python functions take the same options as keywords, the field's name; None is as if it "
        "was not given.",
    ]
    added = [group.title for group in groups() if issubclass(group, AddedOptions)]
    for panel in (*PANELS, *added):
        lines += ["", f"## {panel}", "", "| option | field | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for name, (shown_in, field, _) in tables().items():
            if shown_in != panel or name in OTHERS or not field.metadata:
                continue
            default = field.default
            shown = ", ".join(default) if isinstance(default, tuple) else default
            shown = "-" if shown in (None, "") else shown
            flag = next(iter(field.metadata["flags"]), f"--{name.replace('_', '-')}")
            lines.append(f"| `{flag}` | `{name}` | {shown} | {field.metadata['help']} |")
    return "\n".join(lines) + "\n"


def codes_page() -> str:
    """Every code of a finding or a reason with its meaning."""
    lines = [
        "# Codes",
        "",
        "Scripts may rely on these codes. `--allow` takes those of findings, except `serve-*`.",
    ]
    found = {about: {c: row.meaning for c, row in rows.items()} for about, rows in SUBJECTS.items()}
    for subject, group in {**found, **ADDED_CODES}.items():
        lines += ["", f"## Findings: {subject}", "", "| code | meaning |", "| --- | --- |"]
        lines += [f"| `{code}` | {meaning} |" for code, meaning in group.items()]
    lines += ["", "## Reasons of a verdict", "", "| code | meaning | source of its threshold |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| `{n}` | {one.meaning} | {one.source or '-'} |" for n, one in CODES.items()]
    return "\n".join(lines) + "\n"


def methods_data(rows: list[dict[str, Any]]) -> str:
    """What `loraprobe methods` prints, without an import of what it describes."""
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def llms_page() -> str:
    """The pages of the documentation with their titles, for a language model."""
    lines = [
        "# loraprobe",
        "",
        "> Tells whether composing LoRA adapters (merging them, routing between them) will work "
        "for a task, why, and what to do instead: a command line and a Python package.",
        "",
        "`loraprobe skill` prints every command with its options and the exit codes.",
        "",
        "## Documentation",
        "",
    ]
    for page in sorted(DOCS.glob("*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({page.name})")
    return "\n".join(lines) + "\n"


PAGES = {
    DOCS / "methods.md": methods_page,
    DOCS / "options.md": options_page,
    DOCS / "codes.md": codes_page,
    PACKAGE / "cli" / "methods.json": lambda: methods_data(of_core()),
    **{
        PACKAGE / "extensions" / type(one).__module__.rpartition(".")[2] / "methods.json": partial(
            lambda added: methods_data(of_extension(added)), one
        )
        for one in ADDING
    },
    **{DOCS / name: page for one in ADDED for name, page in one.PAGES.items()},
    DOCS / "llms.txt": llms_page,
}


if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
