"""The size of the repository in figures: `make figures` prints them.

Lines are lines of files that git tracks. Functions and classes are counted with `ast`, so that
comments and strings are not taken for code.
"""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("loraprobe", "loraprobe_lab")
LONG_FILE, LONG_FUNCTION = 300, 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked() -> list[Path]:
    """Every existing file that git tracks, relative to the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end, without decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    given = function.args
    return len([*given.posonlyargs, *given.args, *given.kwonlyargs])


def figures() -> dict[str, int | str]:
    """Name -> figure, in the order in which they are printed."""
    python = [path for path in tracked() if path.suffix == ".py"]
    lines = {path: len(text(path).splitlines()) for path in python}
    code = {path: ast.parse(text(path)) for path in python if path.parts[0] in CODE}
    found: dict[str, int | str] = {
        f"lines of {name}": sum(n for path, n in lines.items() if path.parts[0] == name)
        for name in (*CODE, "tests")
    }
    found["lines of README.md"] = len(text(Path("README.md")).splitlines())
    found[f"files over {LONG_FILE} lines"] = sum(lines[path] > LONG_FILE for path in code)
    defined = [function for tree in code.values() for function in functions(tree)]
    found[f"functions over {LONG_FUNCTION} lines"] = sum(
        length(function) > LONG_FUNCTION for function in defined
    )
    classes = [node for tree in code.values() for node in ast.walk(tree)]
    names = Counter(node.name for node in classes if isinstance(node, ast.ClassDef))
    found["class names defined twice"] = sum(count > 1 for count in names.values())
    found["fmt: skip"] = sum(text(path).count("# fmt: " + "skip") for path in python)
    front = [tree for path, tree in code.items() if path.parts[:2] == ("loraprobe", "cli")]
    commands = [function for tree in front for function in functions(tree)]
    longest = max(commands, key=parameters)
    found["parameters of the longest command"] = f"{parameters(longest)} ({longest.name})"
    return found


if __name__ == "__main__":
    for name, figure in figures().items():
        print(f"{figure:>8}  {name}" if isinstance(figure, int) else f"{figure}  {name}")
