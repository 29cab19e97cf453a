"""Makes anew what the documentation shows of runs: sessions, the notebook's outputs, the pictures.

    python tests/sessions.py [WORDS]

With WORDS only the sessions that hold them are made anew. A session is a block of README or of a
page of docs/ with commands after "$ " that name files of the world that ships with the package;
"[...]" stands for lines that are left out. All sessions of a tutorial run one after the other in
one world, with a Hub on loopback. tests/test_examples.py compares tutorials, the shortest session
and the notebook with what this gives.
"""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hubs
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text

from loraprobe.demo import shipped_world

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOK = ROOT / "examples" / "notebook" / "compose.ipynb"
PICTURE = ROOT / "docs" / "report.png"
TERMINALS = ROOT / "docs" / "terminal"
# What each picture of a terminal shows: a call in the world that ships, from the line on that
# starts with these words.
SHOWN = {
    "verdict": ("merge-and-eval newcomers steps --base base --task newcomers.jsonl", "Scores"),
    "library": ("screen newcomers steps city spouse --base base --task newcomers.jsonl", "Short"),
    "servers": (
        "merge-and-eval newcomers steps --base base --task newcomers.jsonl --serve vllm -o use",
        "LIKELY",
    ),
}
COLUMNS = 88
# An SVG of a terminal, without the fonts that rich would load from elsewhere.
FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>loraprobe {unique_id}</title>
<style>
text {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""
BLOCK = re.compile(r"(?<=^```\n)\$ .*?(?=^```$)", re.MULTILINE | re.DOTALL)
VERDICT = re.compile(r"(UN)?LIKELY|INCONCLUSIVE|INCOMPATIBLE|MEASURED")
LEFT_OUT, FEW = "[...]", 8
COUNTS = ("two", "three", "four", "five", "six")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCENARIO = "skill-and-facts"


# ---- sessions ------------------------------------------------------------------------------------


@contextlib.contextmanager
def world() -> Iterator[Path]:
    """A directory with the base, the adapters and the tasks of the world that ships, by name."""
    shipped = shipped_world()
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        for name, path in {"base": shipped.path / "base", **shipped.adapters}.items():
            shutil.copytree(path, here / name)
        for file in (shipped.path / "tasks").iterdir():
            shutil.copy(file, here)
        questions = (here / "newcomers.jsonl").read_text(encoding="utf-8").splitlines()
        (here / "eight.jsonl").write_text("\n".join(questions[:FEW]) + "\n", encoding="utf-8")
        rows = ["list,A,B,C,D,E,correct"]
        for line in (here / "count.jsonl").read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            names = item["prompt"].partition(": ")[2].rstrip("?")
            rows.append(",".join([names, *COUNTS, "ABCDE"[COUNTS.index(item["answer"])]]))
        (here / "lists.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        rows = ["id,question,city"]
        for number, line in enumerate(questions, 1):
            item = json.loads(line)
            rows.append(f"{number},{item['prompt']},{item['answer']}")
        (here / "questions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        library = "".join(f"./{name}\n" for name in shipped.adapters)
        (here / "library.txt").write_text(library, encoding="utf-8")
        program = here / "bin" / "loraprobe"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m loraprobe "$@"\n')
        program.chmod(0o755)
        yield here


def sessions(text: str) -> list[str]:
    """The blocks of a page that run on the world that ships."""
    known = {*shipped_world().adapters, "demo"}
    return [block for block in BLOCK.findall(text) if known & named(block)]


def named(block: str) -> set[str]:
    """The first word of each call of loraprobe that is an adapter or a command with a world."""
    found = re.findall(r"^\$ loraprobe (?:demo|(?:merge-and-eval|inspect) \S+)", block, re.M)
    unsafe = "--run-unsafe-code" in block  # which needs lm-evaluation-harness
    return set() if unsafe else {call.split()[-1] for call in found}


@contextlib.contextmanager
def hub(here: Path) -> Iterator[None]:
    """A Hub on loopback with the adapters of the world as acme/NAME, as this process sees it."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in shipped_world().adapters:
            files = {file.name: file.read_bytes() for file in (here / name).iterdir()}
            hubs.commit(root / "mirrors" / "models" / "acme" / name, files)
        with hubs.olah(root) as address:
            told = {"HF_ENDPOINT": address, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0"}
            with mock.patch.dict(os.environ, told):
                yield


def retold(page: Path) -> str:
    """A tutorial with what its commands print today."""
    text = page.read_text(encoding="utf-8")
    with world() as here, hub(here) if "acme/" in text else contextlib.nullcontext():
        for block in BLOCK.findall(text):
            text = text.replace(block, rerun(block, here))
    return text


def settings(here: Path) -> dict[str, str]:
    """The environment of a call in the world, which keeps what it measured there."""
    path = f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LORAPROBE_CACHE": str(here / ".cache")}


def rerun(block: str, here: Path) -> str:
    """A session with what its commands print today, where the old one left nothing out."""
    made = []
    for part in re.split(r"^(?=\$ )", block, flags=re.M)[1:]:
        lines = part.rstrip("\n").split("\n")
        last = next(at for at, line in enumerate(lines) if not line.endswith("\\"))
        call, old = lines[: last + 1], lines[last + 1 :]
        done = subprocess.run(
            ["bash", "-c", "\n".join(call).removeprefix("$ ")],
            cwd=here,
            env={**settings(here), "COLUMNS": "80"},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1, 3), done.stderr
        new = [line.rstrip() for line in done.stdout.rstrip("\n").split("\n")]
        made += [*call, *kept(old, new)]
    return "\n".join(made) + "\n"


def kept(old: list[str], new: list[str]) -> list[str]:
    """The new lines without those that the old ones leave out.

    What is shown begins and ends with lines that start with the same words as before.
    """
    if LEFT_OUT not in old:
        return new
    found, at = list[str](), 0
    marks = [i for i, line in enumerate(old) if line == LEFT_OUT]
    for start, end in zip([-1, *marks], [*marks, len(old)], strict=True):
        shown = old[start + 1 : end]
        told = [line for line in shown if line]
        if told:
            first = next(i for i in range(at, len(new)) if mark(new[i]) == mark(told[0]))
            last = len(new) - 1
            if end < len(old):
                last = next(i for i in range(first, len(new)) if mark(new[i]) == mark(told[-1]))
            found += [*shown[: shown.index(told[0])], *new[first : last + 1]]
            at = last + 1
        found += [LEFT_OUT] if end < len(old) else []
    return found


def mark(line: str) -> str:
    """What a line starts with: its first word, or "verdict" for whatever was decided."""
    return "verdict" if VERDICT.match(line) else " ".join(line.split()[:1])


def words(text: str) -> str:
    """A text without its figures, bars and breaks, which differ on other machines."""
    plain = re.sub(r"[▄#\\]+|[MG]iB|\d[\d,]*(\.\d+)?|[+-](?=\d)|-(?=\s|$)", " ", text)
    return " ".join(plain.replace("+", " ").split())


# ---- the notebook --------------------------------------------------------------------------------


def run_notebook() -> tuple[dict[str, Any], dict[str, Any]]:
    """The notebook with the outputs of its cells, run in the working directory, and its names."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = run_cell("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            text = lines_of(printed.getvalue())
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text})
        if value is not None:
            data = {"text/plain": lines_of(repr(value))}
            result = {"data": data, "execution_count": number, "metadata": {}}
            cell["outputs"].append({**result, "output_type": "execute_result"})
    return notebook, names


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def lines_of(text: str) -> list[str]:
    """A text as a notebook holds it, without the place of the world on this machine."""
    return text.replace(f"{shipped_world().path}", "small-world").splitlines(keepends=True)


def shown_by(notebook: dict[str, Any]) -> str:
    """The values that cells of a notebook end with, as one text."""
    outputs = [row for cell in notebook["cells"] for row in cell.get("outputs", ())]
    return "\n".join("".join(row["data"]["text/plain"]) for row in outputs if "data" in row)


# ---- all of it -----------------------------------------------------------------------------------


def draw_picture() -> None:
    """The first screen of the demo's page; a browser that is missing is said."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"No {', '.join(BROWSERS)} is installed, so {PICTURE.name} stays as it was.")
        return
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "page.html"
        call = [sys.executable, "-m", "loraprobe", "demo", "--scenario", SCENARIO, "--exit-zero"]
        subprocess.run([*call, "--quiet", "--html", page], check=True)
        size = ("--window-size=1000,1150", "--hide-scrollbars", "--disable-gpu", "--no-sandbox")
        target = f"--screenshot={PICTURE}"
        call = [browser, "--headless", *size, target, page.as_uri()]
        subprocess.run(call, check=True, stderr=subprocess.DEVNULL)  # which tells of its desktop


def draw_terminals(here: Path) -> None:
    """What SHOWN calls print, as pictures on a light and on a dark ground."""
    themes = {"light": light_theme(), "dark": SVG_EXPORT_THEME}
    for name, (call, first) in SHOWN.items():
        done = subprocess.run(
            ["loraprobe", *call.split()],
            cwd=here,
            env={**settings(here), "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1, 3), done.stderr
        lines = done.stdout.rstrip().split("\n")
        start = next(i for i, line in enumerate(lines) if first in line)
        shown = Text.from_ansi("\n".join(lines[start:]))
        for ground, theme in themes.items():
            console = Console(record=True, width=COLUMNS, file=io.StringIO())
            console.print(Text(f"$ loraprobe {call}\n", style="bold"), shown, sep="")
            picture = console.export_svg(
                title="", theme=theme, code_format=FRAME, unique_id=f"{name}-{ground}"
            )
            TERMINALS.mkdir(exist_ok=True)
            (TERMINALS / f"{name}-{ground}.svg").write_text(picture, encoding="utf-8")


def light_theme() -> TerminalTheme:
    """Colours with a contrast of at least 4.5 to 1 on white."""
    black, red, green, yellow = (30, 30, 30), (176, 0, 32), (20, 110, 40), (125, 85, 0)
    blue, magenta, cyan, white = (20, 80, 180), (140, 30, 130), (0, 105, 120), (90, 90, 90)
    normal = [black, red, green, yellow, blue, magenta, cyan, white]
    return TerminalTheme((255, 255, 255), (0, 0, 0), normal, normal)


def main(wanted: str) -> None:
    with world() as here:
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            for block in sessions(text):
                if wanted in block:
                    print(block.split("\n")[0], flush=True)
                    text = text.replace(block, rerun(block, here))
            page.write_text(text, encoding="utf-8")
        if wanted:
            return
        for page in TUTORIALS:
            page.write_text(retold(page), encoding="utf-8")
        draw_terminals(here)
        with contextlib.chdir(here):
            notebook, _ = run_notebook()
    written = json.dumps(notebook, indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(written + "\n", encoding="utf-8")
    draw_picture()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
