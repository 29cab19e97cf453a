"""Whole audits of the world that ships with the package, and where their documents differ."""

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import making

import loraprobe.demo

WORLD = Path(loraprobe.demo.__file__).parent / "small-world"
TOLERANCE = 1e-4  # relative, float32 on the CPU; Min-K%++ divides by spreads near 0
COUNTED = ("evaluation", "comparisons", "gains", "attribution")  # made of right and wrong answers
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")  # a figure in a sentence
DIFFERS = ("seconds", "peak_memory_bytes")
SHORT = ("--limit", "3", "--max-new-tokens", "6", "--threads", "1")
SCENARIOS = ("disjoint", "skill-and-facts", "keep-both")
MACHINE = re.compile(r" --(threads|batch-size) \d+")


def audit(scenario: str, *, turned: bool = False) -> list[str]:
    """The arguments of merge-and-eval on the shipped world, its adapters in either order."""
    *words, _, _ = making.shipped(scenario)  # without --threads
    refs = words[1::-1] if turned else words[:2]
    return ["merge-and-eval", *refs, *words[2:], "--exit-zero"]


def call(*arguments: object) -> dict[str, Any]:
    """The document of one call in this process, without what is told apart by name alone.

    The next command goes without the options of the machine, which it repeats.
    """
    done = making.call(*arguments, "--json", "--quiet", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    for name in (*DIFFERS, "arguments"):
        document["provenance"].pop(name)
    if verdict := document["verdict"]:
        verdict["next"] = MACHINE.sub("", verdict["next"])
    return document


@functools.cache
def _calm() -> dict[str, Any]:
    return call(*audit("skill-and-facts"), *SHORT)


def calm() -> dict[str, Any]:
    """The document of a short call, which several tests compare others with."""
    return copy.deepcopy(_calm())


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two documents differ; numbers, also those in sentences, beyond TOLERANCE, and counted
    ones beyond rounding."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{at}[{i}]")]
    if isinstance(a, str) and isinstance(b, str) and NUMBER.sub("#", a) == NUMBER.sub("#", b):
        figures = ([float(x.replace(",", "")) for x in NUMBER.findall(text)] for text in (a, b))
        return differences(*figures, at)
    if isinstance(a, float) and isinstance(b, float):
        near = 1e-9 if at[1:].startswith(COUNTED) else TOLERANCE
        if abs(a - b) <= near * max(1.0, abs(a), abs(b)):
            return []
    return [] if a == b else [f"{at}: {a!r} | {b!r}"]
