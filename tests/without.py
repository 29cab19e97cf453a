"""Deletes an extension in a copy of the tree and runs everything else there: `make without`.

    python tests/without.py [--quick] NAME ...

Its folder, its tests and its line of `loraprobe/wiring.py` go. The rest then has to pass the
checks, the tests and the demo. Folders of the lab that use the extension go too, with their tests.
--quick: of the tests those of help and wrong calls, the rules, the documentation and README, in one
process, so that a core serves each of several extensions at once.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
    shutil.rmtree(copy.parent / f"cache-{name}", ignore_errors=True)
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
    environment["LORAPROBE_CACHE"] = str(copy.parent / f"cache-{name}")  # a run has its own alone
    if (ROOT / ".mypy_cache").is_dir():  # what did not change is not checked again
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    tests = "-n auto --maxprocesses 8 --dist worksteal"
    if quick:
        tests = " ".join(["-n 0", *QUICK])
        environment["OMP_NUM_THREADS"] = "1"
    for command in (
        "python tests/pages.py",  # the documentation of what is left
        *CHECKS,
        f"python -m pytest {tests}",
        "python -m loraprobe demo --exit-zero --quiet",
    ):
        run = subprocess.run(
            command.split(), cwd=copy, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        print(f"without {name}: {command}\n{run.stdout}", end="", flush=True)
        run.check_returncode()


if __name__ == "__main__":
    names = [one for one in sys.argv[1:] if one != "--quick"] or wiring.EXTENSIONS
    quick = "--quick" in sys.argv
    with ThreadPoolExecutor(os.cpu_count() if quick else 1) as pool:
        for done in [pool.submit(without, name, quick) for name in names]:
            try:
                done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
