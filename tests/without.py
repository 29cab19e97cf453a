"""Deletes an extension in a copy of the tree and runs everything else there: `make without`.

    python tests/without.py [--quick] NAME ...

Its folder, its tests and its line of `loraprobe/wiring.py` go. The rest then has to pass the
checks, the tests and the demo. Folders of the lab that use the extension go too, with their tests.
--quick: of the tests those of help and wrong calls, the rules, the documentation and README.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from loraprobe import wiring

ROOT = Path(__file__).parents[1]
LAB = "loraprobe_lab"
QUICK = """tests/core/cli/test_help.py tests/core/cli/test_errors.py
tests/core/verdict/test_rules.py
tests/core/report/test_docs.py tests/test_readme.py""".split()
CHECKS = ["ruff check -q .", "ruff format -q --check .", "mypy", "lint-imports"]


def without(name: str, quick: bool) -> None:
    """Raises CalledProcessError where something fails without the extension."""
    copy = ROOT / "build" / "without" / name
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for file in filter(None, listed.stdout.split("\0")):
        if (ROOT / file).is_file():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, copy / file)
    for place in (f"loraprobe/extensions/{name}", f"tests/extensions/{name}"):
        shutil.rmtree(copy / place)
    used = [f"loraprobe.extensions.{name}"]  # also by the lab, which goes as far as it does
    for folder in (copy / LAB).iterdir():
        if folder.is_dir() and any(used[0] in file.read_text() for file in folder.glob("*.py")):
            used.append(f"{LAB}.{folder.name}")
            shutil.rmtree(folder)
    for file in (copy / "tests" / "lab").glob("*.py"):
        if any(module in file.read_text() for module in used):
            file.unlink()
    lines = (copy / "loraprobe" / "wiring.py").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.strip() != f'"{name}",']
    assert len(kept) == len(lines) - 1, f"wiring.py has no line of its own for {name}"
    (copy / "loraprobe" / "wiring.py").write_text("".join(kept))
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(copy), "PATH": f"{tools}:{os.environ['PATH']}"}
    environment["MYPY_CACHE_DIR"] = str(copy.parent / "mypy")  # one for all copies
    tests = " ".join(QUICK) if quick else ""
    for command in (
        "python tests/pages.py",  # the documentation of what is left
        *CHECKS,
        f"python -m pytest -n auto --maxprocesses 8 --dist worksteal {tests}",
        "python -m loraprobe demo --exit-zero --quiet",
    ):
        print(f"without {name}: {command}", flush=True)
        subprocess.run(command.split(), cwd=copy, env=environment, check=True)


if __name__ == "__main__":
    for chosen in [one for one in sys.argv[1:] if one != "--quick"] or wiring.EXTENSIONS:
        without(chosen, "--quick" in sys.argv)
