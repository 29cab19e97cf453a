"""Coverage-guided fuzzing of one target by atheris (libFuzzer).

    pip install atheris
    python fuzz/run.py adapter -runs=100000 -timeout=5

Findings are written to fuzz/findings; arguments after the target are libFuzzer's. New inputs that
reach new code go to a scratch folder, or to the corpus with --keep, or to DIR with --into=DIR: with
-merge=1 that is the smallest corpus of the same coverage.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import torch  # noqa: E402, F401  (loaded before, so that only loraprobe is instrumented)

with atheris.instrument_imports(include=["loraprobe", "targets"]):
    from targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    corpus = HERE / "corpus" / name
    into = [option.partition("=")[2] for option in options if option.startswith("--into=")]
    scratch = str(corpus) if "--keep" in options else (into or [tempfile.mkdtemp()])[0]
    options = [option for option in options if not option.startswith("--")]
    (HERE / "findings").mkdir(exist_ok=True)
    arguments = [f"-artifact_prefix={HERE / 'findings'}/{name}-", *options, scratch, str(corpus)]
    dictionary = HERE / f"{name}.dict"
    if dictionary.is_file():
        arguments.insert(0, f"-dict={dictionary}")
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
