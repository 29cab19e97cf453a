"""A screen of at least 300 adapters against vlora-dev and against trying every pair, in one run.

    python benchmarks/screen_vs_peers.py [WORLD] [--task newcomers] [--adapters 300] [--pairs 3]

WORLD is the small world that ships, or one of `loraprobe lab build library`. Other adapters are
derived from its own: the same update in another basis (a duplicate), a scaled copy, random factors
of the same norms, and broken files (cut off, not finite, without a configuration). Each figure is
of a process with its start-up and an empty cache:
  library   `screen` without a task: reads, checks, compares and groups adapters
  vlora     `vlora analyze` of the same, where it is installed: of those that are whole and of one
            shape, and of some shaped like a 7B model's; it compares raw factors only
  screen    `screen --task`, with the seconds of every stage
  pair      `merge-and-eval` of two adapters; the cost of all pairs is extrapolated from a few
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from adapters_7b import write_adapter
from machine import Figures, about, aim, loraprobe, peer, ratios, timed
from safetensors.torch import load_file, save_file

from loraprobe.demo import World, shipped_world

WEIGHTS = "adapter_model.safetensors"
QUIET = ("--quiet", "--exit-zero")
Tensors = dict[str, torch.Tensor]


def rebased(tensors: Tensors, draw: torch.Generator) -> Tensors:
    """B Q and Q^T A for a random orthogonal Q of each module: the same update."""
    found = {}
    for key, A in tensors.items():
        if ".lora_A." in key:
            other = key.replace(".lora_A.", ".lora_B.")
            Q = torch.linalg.qr(torch.randn(len(A), len(A), generator=draw))[0]
            found[key] = Q.T @ A.float()
            found[other] = tensors[other].float() @ Q
    return found


def scaled(tensors: Tensors, draw: torch.Generator) -> Tensors:
    factor = 0.5 + float(torch.rand((), generator=draw))
    return {key: value * factor if ".lora_B." in key else value for key, value in tensors.items()}


def noise(tensors: Tensors, draw: torch.Generator) -> Tensors:
    """Random factors, each with the norm of the trained one."""
    found = {}
    for key, value in tensors.items():
        random_one = torch.randn(value.shape, generator=draw)
        found[key] = random_one * (value.float().norm() / random_one.norm())
    return found


def not_finite(tensors: Tensors, draw: torch.Generator) -> Tensors:
    key = next(iter(tensors))
    return {**tensors, key: torch.full_like(tensors[key], float("nan"))}


KINDS: dict[str, Callable[[Tensors, torch.Generator], Tensors]] = {
    "rebased": rebased,
    "scaled": scaled,
    "noise": noise,
    "not-finite": not_finite,
}
BROKEN = ("cut-off", "no-config")
STATES = {  # what a screen has to call them
    "rebased": "duplicate",
    "scaled": "usable",
    "noise": "usable",
    "not-finite": "broken",
    "cut-off": "broken",
    "no-config": "broken",
}


def derive(sources: Sequence[Path], output: Path, count: int) -> list[Path]:
    """So many adapters derived from the sources, of every kind in turn, below `output`."""
    rng, draw, made = random.Random(0), torch.Generator().manual_seed(0), []
    for number in range(count):
        kind = [*KINDS, *BROKEN][number % (len(KINDS) + len(BROKEN))]
        source = rng.choice(sources)
        place = output / f"{kind}-{number:03d}"
        shutil.copytree(source, place)
        file = place / WEIGHTS
        if kind in KINDS:
            changed = KINDS[kind](load_file(file), draw)
            save_file({k: v.contiguous() for k, v in changed.items()}, file)
        elif kind == "cut-off":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            (place / "adapter_config.json").unlink()
        made.append(place)
    return made


def screen(
    adapters: Sequence[Path], work: Path, *options: object
) -> tuple[Figures, dict[str, Any]]:
    """One screen, start-up included, and its document."""
    listed, result = work / "adapters.txt", work / "screen.json"
    listed.write_text("\n".join(map(str, adapters)) + "\n", encoding="utf-8")
    command = shlex.join(loraprobe("screen", f"@{listed}", "--json", *options, *QUIET))
    cache = tempfile.mkdtemp(dir=work)
    figures = timed(
        ["sh", "-c", f"exec {command} > {shlex.quote(str(result))}"], LORAPROBE_CACHE=cache
    )
    return figures, json.loads(result.read_text(encoding="utf-8"))


def against_vlora(adapters: Sequence[Path], work: Path) -> None:
    """Times the library without a task and vlora on the same adapters of one shape."""
    ours, _ = screen(adapters, work)
    print(f"  library: {ours.seconds:.1f} s, {ours.cpu:.1f} s CPU, {ours.megabytes:.0f} MB")
    vlora = peer("vlora")
    if vlora is None:
        print("  vlora is not installed: pip install 'loraprobe[bench]'")
        return
    theirs = timed([vlora, "analyze", *map(str, adapters)])
    print(f"  vlora: {theirs.seconds:.1f} s, {theirs.cpu:.1f} s CPU, {theirs.megabytes:.0f} MB")
    for figure, name in (("seconds", "seconds"), ("cpu", "CPU seconds"), ("megabytes", "memory")):
        aim(f"library / vlora analyze, {name}", ratios([ours], [theirs], figure), 1)


def of_one_shape(adapters: Sequence[Path], document: dict[str, Any]) -> list[Path]:
    """The most adapters that are whole and have as many parameters as each other."""
    rows = {r["name"]: r for r in document["library"]["adapters"] if r["state"] != "broken"}
    size, _ = Counter(row["parameters"] for row in rows.values()).most_common(1)[0]
    return [p for p in adapters if rows.get(p.name, {}).get("parameters") == size]


def brute_force(
    names: Sequence[str], world: World, task: Path, threads: int, pairs: int, work: Path
) -> list[Figures]:
    """`merge-and-eval` of some pairs on the task, each in a process of its own."""
    rng, found = random.Random(1), []
    for _ in range(pairs):
        two = [world.adapters[name] for name in rng.sample(sorted(names), 2)]
        options = ("--base", world.base, "--task", task, "--threads", threads)
        cache = tempfile.mkdtemp(dir=work)
        command = loraprobe("merge-and-eval", *two, *options, *QUIET)
        found.append(timed(command, LORAPROBE_CACHE=cache))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path, nargs="?")
    parser.add_argument("--task", default="newcomers")
    parser.add_argument("--adapters", type=int, default=300)
    parser.add_argument("--large", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(about())
    world = World.load(options.world) if options.world else shipped_world()
    task = world.path / "tasks" / f"{options.task}.jsonl"
    own = list(world.adapters.values())
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        missing = max(0, options.adapters - len(own))
        derived = derive(own, work, missing)
        started = time.perf_counter()
        figures, document = screen([*own, *derived], work)
        report(document, derived)
        print(f"library of all: {figures.seconds:.1f} s, {figures.cpu:.1f} s CPU")
        alike = of_one_shape([*own, *derived], document)
        print(f"{len(alike)} of them, of one shape:")
        against_vlora(alike, work)
        print(f"{options.large} adapters shaped like a 7B model's:")
        large = (work / f"large-{seed}" for seed in range(options.large))
        against_vlora([Path(write_adapter(place, 32, k)) for k, place in enumerate(large)], work)
        how = ("--base", world.base, "--task", task, "--threads", options.threads)
        figures, document = screen([*own, *derived], work, *how)
        print(f"screen: {figures.seconds:.1f} s, {figures.cpu:.1f} s CPU")
        for stage, seconds in document["provenance"]["seconds"].items():
            print(f"  {stage:24} {seconds:8.2f} s")
        print(f"verdict: {document['verdict']['decision']}, {document['verdict']['action']}")
        chosen = (r for r in document["verdict"]["reasons"] if r["code"] == "chosen-from-library")
        print(next(chosen)["message"])
        usable = [
            row["name"]
            for row in document["library"]["adapters"]
            if row["state"] == "usable" and row["name"] in world.adapters
        ]
        pairs = brute_force(usable, world, task, options.threads, options.pairs, work)
        count = sum(row["state"] == "usable" for row in document["library"]["adapters"])
        print(f"\nAll of it took {time.perf_counter() - started:.0f} s.")
    compare(figures, pairs, count)


def report(document: dict[str, Any], derived: Sequence[Path]) -> None:
    """Whether each derived adapter was recognised."""
    rows = {row["name"]: row for row in document["library"]["adapters"]}
    states = Counter(row["state"] for row in rows.values())
    print(f"{len(rows)} adapters: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    for kind, state in STATES.items():
        mine = [rows[p.name]["state"] for p in derived if p.name.startswith(kind)]
        print(f"  {kind:12} {mine.count(state)} of {len(mine)} called {state}")


def compare(screened: Figures, pairs: Sequence[Figures], usable: int) -> None:
    """The ratio of the cost of all pairs, extrapolated, to that of the screen."""
    every = usable * (usable - 1) // 2
    seconds = statistics.median(figures.seconds for figures in pairs)
    cpu = statistics.median(figures.cpu for figures in pairs)
    shown = ", ".join(f"{one.seconds:.1f} ({one.cpu:.1f} CPU)" for one in pairs)
    print(f"merge-and-eval of a pair: {shown} s")
    print(
        f"every pair of {usable} usable adapters ({every:,}), extrapolated: "
        f"{every * seconds / 3600:.1f} h, {every * cpu / 3600:.1f} h CPU"
    )
    for name, ours, all_pairs in (
        ("seconds", screened.seconds, every * seconds),
        ("CPU seconds", screened.cpu, every * cpu),
    ):
        aim(f"every pair / screen, {name}", [all_pairs / ours], 1, least=True)


if __name__ == "__main__":
    main()
