"""Every module says what it is, the changelog names the version, and README's Python is typed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_file_has_a_docstring():
    for package in ("loraprobe", "loraprobe_lab"):
        for path in sorted((ROOT / package).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert docstring, f"{path.relative_to(ROOT)} has no docstring"


def test_a_reader_of_thirty_lines_knows_what_to_type():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for call in ("loraprobe inspect ", "loraprobe merge-and-eval ", "make demo", "make test"):
        assert any(line.startswith(call) for line in lines[:30]), call
    assert len(lines) <= 150


def test_changelog_names_the_version():
    from loraprobe import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not (ROOT / ".mypy_cache").is_dir(),
    reason="mypy takes a minute of a processor where `make check` has not run yet",
)
def test_the_python_of_the_readme_passes_mypy(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    both = "audit.verdict.decision\n"
    assert code.count(both) == 1
    code = code.replace(
        "audit = loraprobe.merge_and_eval", f"{both}audit = loraprobe.merge_and_eval"
    )
    (tmp_path / "readme.py").write_text(f"from typing import Any\n\nmodel: Any\n{code}")
    call = [sys.executable, "-m", "mypy", str(tmp_path / "readme.py")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)  # the project's cache
    assert done.returncode == 0, done.stdout + done.stderr
