"""Measure what adapters keep in merges of two and four, beside what each keeps alone.

    python measure.py build OUT NAME...        a library of one of BASES in OUT/NAME
    python measure.py english OUT/NAME BASE    the adapters of ENGLISH on the model in BASE
    python measure.py ask WORLD ROWS.jsonl     everything that is compared, a row an answer
    python measure.py report ROWS.jsonl...     the tables of README.md
    python measure.py pairs FILE...            figures of pairs beside their members, of ROWS or of
                                               examples/calibration/several.jsonl.gz

WORLD is a directory that `build`, `english` or `loraprobe lab build` made. Every adapter that has a
task of its own (the file of its name, or TASKS by the first word of its name) answers items of that
task alone, at the gates of GATES, in the uniform merge, the sum and Arrow with each other one, and
in drawn groups of four. A row has the answers to each item, right or wrong. What is there is not
asked again. `report --kinship 1` is of the forecast as it was before what adapters have alike
counted more.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.extensions.screen.defaults import GATES, KINSHIP, LEAST_GAIN
from loraprobe.extensions.screen.together.forecast import (
    Curve,
    MeasuredPair,
    MergeForecast,
    cycle,
    inner_products,
    interferences,
    kinship_in,
    shares,
)
from loraprobe_lab.experiments.mergeability import Pairs, auroc, judged
from loraprobe_lab.worlds.spec import build_world

BASES = {  # seed, architecture, width; the first four were looked at while the forecast was made
    "llama-07": (7, "llama", 160),
    "gpt2-108": (108, "gpt2", 96),
    "qwen3-109": (109, "qwen3", 96),
    "llama-211": (211, "llama", 128),
    "gemma3-331": (331, "gemma3", 112),
    "gpt2-332": (332, "gpt2", 128),
    "qwen3-441": (441, "qwen3", 128),
}
TASKS = {
    "homes": "homes",
    "marriages": "marriages",
    "spouses": "spouses",
    "lists": "lists",
    "two": "lists",
    "answers": "guests",
}
FOUR = 4
SIZES = {"small": (80, 40), "english": (40, 60)}  # items of a task, groups of four
# subject, recipe: what each adapter learns, in which kind, rank, place and for how long
ENGLISH: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "country-a": ("country", {"steps": 56}),
    "country-b": ("country", {"steps": 60, "learning_rate": 3e-3, "rank": 4, "upper": 0.5}),
    "job-a": ("job", {"steps": 64, "learning_rate": 3e-3, "target_modules": "mlp"}),
    "job-b": ("job", {"steps": 56, "learning_rate": 1e-3, "rank": 64}),
    "job-c": ("job", {"steps": 110, "kind": "dora", "rank": 8}),
    "instrument-a": (
        "instrument",
        {"steps": 64, "learning_rate": 3e-3, "target_modules": "attention"},
    ),
    "instrument-b": (
        "instrument",
        {"steps": 90, "kind": "rslora", "rank": 32, "learning_rate": 5e-4},
    ),
    "last-a": ("last", {"steps": 28}),
    "last-b": ("last", {"steps": 90, "learning_rate": 1e-3, "rank": 8, "upper": None}),
    "swap": ("swap", {"steps": 60, "target_modules": "attention"}),
    "past": ("past", {"steps": 28, "rank": 32, "learning_rate": 1e-3}),
    "opposite": ("opposite", {"steps": 120, "learning_rate": 1e-3, "alpha": 32.0}),
}
# what a second library on the same model learns, each with a drawn recipe
SECOND = "country country country job job instrument instrument last swap swap past past".split()
DRAWN: Mapping[str, Sequence[Any]] = {
    "steps": (56, 80, 110),
    "learning_rate": (1e-3, 2e-3, 3e-3),
    "rank": (4, 8, 16, 32, 64),
    "target_modules": ("all-linear", "all-linear", "mlp", "attention"),
    "upper": (0.25, 0.25, 0.5, None),
    "kind": ("lora", "lora", "lora", "dora", "rslora"),
}
KEEPS = 0.8  # the retention that counts as kept


def build(out: Path, names: Sequence[str]) -> None:
    """Trains the bases and their adapters."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "advice"))
    import worlds  # type: ignore[import-not-found]

    for name in names:
        plan = worlds.spec(*BASES[name])
        training = [one for one in plan.training if _task_of(one.name)]
        build_world(replace(plan, training=tuple(training), adapter_sets=()), out / name)
        print(f"{out / name} is built", flush=True)


def english(place: Path, base: Path) -> None:
    """Trains the adapters of ENGLISH, or for another name of `place` those of SECOND, on a model
    that knows English; each has its own task."""
    from loraprobe_lab.training import Recipe
    from loraprobe_lab.worlds.english import learn
    from loraprobe_lab.worlds.facts import REAL_NAMES, NameMaker
    from loraprobe_lab.worlds.spec import TrainingSet, WorldSpec, groups_first, own_seed

    seed = "together" if place.name == "smollm2" else place.name
    people, training, tasks = NameMaker(seed, REAL_NAMES), list[TrainingSet](), {}
    common = {"learning_rate": 2e-3, "batch_size": 20, "warmup": 5, "upper": 0.25}
    for name, (subject, row) in (ENGLISH if place.name == "smollm2" else second()).items():
        texts, items = learn(subject, people, random.Random(f"{seed} {name}"))
        recipe = Recipe(**common | dict(row), seed=own_seed(name, seed))  # type: ignore[arg-type]
        training.append(TrainingSet(name, subject, tuple(texts), recipe))
        tasks[name] = groups_first(items)
    plan = WorldSpec("together", 0, tuple(training), tasks, (), notes={"set": place.name})
    build_world(plan, place, base=base)


def second() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """What the adapters of SECOND learn, with recipes that are drawn."""
    draw, found = random.Random("second"), dict[str, tuple[str, Mapping[str, Any]]]()
    for at, subject in enumerate(SECOND):
        row = {key: draw.choice(values) for key, values in DRAWN.items()}
        if row["kind"] == "rslora":  # whose scaling is larger by the root of the rank
            row["learning_rate"] /= 4
        found[f"{subject}-{at:02d}"] = (subject, row)
    return found


def _task_of(adapter: str, tasks: Mapping[str, Path] | None = None) -> str | None:
    """The name of an adapter's own task."""
    if adapter in (tasks or {}):
        return adapter
    return None if "asked" in adapter else TASKS.get(adapter.partition("-")[0])


# ---- asking --------------------------------------------------------------------------------------


def ask(place: Path, file: Path) -> None:
    """Asks everything that `file` does not have, and appends it."""
    import torch

    from loraprobe.base import load_base, open_base, pick_device
    from loraprobe.composition import Composition
    from loraprobe.evaluation import Asker, System
    from loraprobe.hub import load_all
    from loraprobe.routing import ROUTERS
    from loraprobe.routing.constant import ConstantGates
    from loraprobe.scoring import ModelScorer
    from loraprobe.tasks import load_task
    from loraprobe_lab.world import World

    world = World.load(place)
    items, groups = SIZES["small" if world.base else "english"]
    dtype = torch.float32 if world.base else torch.bfloat16
    model = load_base(
        open_base(world.base or world.base_name), device=pick_device("cpu"), dtype=dtype
    )
    scorer = ModelScorer(model.model, model.tokenizer)
    tasks = {path.stem: path for path in sorted((place / "tasks").glob("*.jsonl"))}
    asked_of = {name: _task_of(name, tasks) for name in world.adapters}
    places = [f"{name}={world.adapters[name]}" for name, task in asked_of.items() if task]
    adapters = {adapter.name: adapter for adapter in load_all(places)}
    own = {name: load_task(tasks[str(asked_of[name])], items) for name in adapters}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {_key(json.loads(line)) for line in lines}

    def merge(method: str, group: Sequence[str]) -> Composition:
        experts, n = tuple(adapters[name] for name in group), len(group)
        if method == "arrow":
            return Composition("arrow", experts, ROUTERS.make("arrow"))
        gates = (1 / n,) * n if method == "uniform" else (1.0,) * n
        return Composition(method, experts, ConstantGates(gates))

    with file.open("a", encoding="utf-8") as out:

        def add(row: dict[str, Any]) -> None:
            print(json.dumps({"base": place.name, **row}), file=out, flush=True)

        def record(method: str, group: Sequence[str], name: str, made: Composition | None) -> None:
            row: dict[str, Any] = {"method": method, "set": [*group], "adapter": name}
            if _key(row) not in known:
                system = System("system", "merge" if made else "base", made)
                asker = Asker(scorer, max_new_tokens=16)
                asked = asker.run([system], [own[name]], {"question"})
                add({**row, "right": "".join(str(int(one.value)) for one in asked)})

        names = [*adapters]
        if ("inner", (), "") not in known:
            values = [
                [float(f"{value:.6g}") for value in line]
                for line in inner_products([*adapters.values()]).tolist()
            ]
            add({"method": "inner", "set": [], "adapter": "", "names": names, "values": values})
        for name in names:
            record("base", (), name, None)
            for gate in (*GATES, 1.0):
                alone = Composition(name, (adapters[name],), ConstantGates((gate,)))
                record(f"gate {gate:g}", (name,), name, alone)
        sets = (*itertools.combinations(names, 2), *_groups(names, groups))
        for method, group in itertools.product(("uniform", "sum", "arrow"), sets):
            made = merge(method, group)
            for name in group:
                record(method, group, name, made)


def _groups(names: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Groups of four, drawn."""
    draw, found = random.Random(0), set[tuple[str, ...]]()
    while len(found) < count:
        found.add(tuple(sorted(draw.sample(names, FOUR))))
    return sorted(found)


def _key(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
    return row["method"], tuple(row["set"]), row["adapter"]


# ---- reporting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One retention, and what could be known of it before.

    kept: it, from -0.2 to 1.2. forecast: by the share alone; at_gate: the retention alone at the
    gate 1/n. alone: the score of the adapter alone. norm_ratio: its norm in that of its partners.
    """

    adapter: str
    group: tuple[str, ...]
    kept: float
    forecast: float
    at_gate: float
    alone: float
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Answers:
    """What one base answered. right: (method, set, adapter) -> right or wrong, [items].

    kinship: as in `forecast.py`; None for that which the measured pairs tell.
    """

    base: str
    right: Mapping[tuple[str, tuple[str, ...], str], np.ndarray]
    names: tuple[str, ...]
    inner: np.ndarray
    kinship: float | None = None

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Of the adapters that gain enough over the base."""
        found = {}
        for name in self.names:
            base, alone = self.right["base", (), name], self.right["gate 1", (name,), name]
            if (alone - base).mean() >= LEAST_GAIN:
                at = {gate: self.right[f"gate {gate:g}", (name,), name] for gate in GATES}
                found[name] = Curve.of(base, alone, at)
        return found

    def share(self, name: str, group: Sequence[str]) -> float:
        """How much of an adapter the uniform merge of a group contains."""
        at = [self.names.index(one) for one in group]
        kinship = KINSHIP if self.kinship is None else self.kinship
        return shares(self.inner[np.ix_(at, at)], kinship)[[*group].index(name)]

    def kept(self, method: str, group: tuple[str, ...], name: str) -> float:
        """The retention of an adapter."""
        base, alone = self.right["base", (), name], self.right["gate 1", (name,), name]
        values = self.right[method, group, name]
        return float(np.clip((values - base).mean() / (alone - base).mean(), -0.2, 1.2))

    def measured(self, method: str, size: int) -> list[Measured]:
        """All retentions of one method in groups of a size."""
        rows = []
        norms = np.sqrt(np.diag(self.inner))
        for how, group, name in self.right:
            if how != method or len(group) != size or name not in self.curves:
                continue
            at, others = self.names.index(name), [self.names.index(o) for o in group if o != name]
            curve = self.curves[name]
            cosines = self.inner[at, others] / (norms[at] * norms[others])
            rows.append(
                Measured(
                    name,
                    group,
                    self.kept(method, group, name),
                    curve.at(self.share(name, group)),
                    curve.at(1 / size),
                    float(self.right["gate 1", (name,), name].mean()),
                    float(cosines.mean()),
                    float(norms[at] / norms[others].mean()),
                )
            )
        return rows

    def with_pairs(self, seed: int) -> tuple[set[frozenset[str]], MergeForecast]:
        """The pairs that `screen --own` measures with this seed, and its forecast from them."""
        design, pairs = cycle([*self.curves], seed), []
        for pair in design:
            group = tuple(sorted(pair, key=self.names.index))
            for name in group:
                (partner,) = {*group} - {name}
                at, other = self.names.index(name), self.names.index(partner)
                alike = float(self.inner[at, other] / self.inner[at, at])
                beside = Curve.of(
                    self.right["base", (), name],
                    self.right["gate 1", (name,), name],
                    {0.5: self.right["uniform", group, name]},
                )
                pairs.append(MeasuredPair(name, partner, beside.at(0.5), beside.error(0.5), alike))
        curves = {
            name: self.curves.get(name, next(iter(self.curves.values()))) for name in self.names
        }
        kinship = kinship_in(self.curves, pairs) if self.kinship is None else self.kinship
        taken = interferences(curves, pairs, kinship)
        measured = {frozenset(pair) for pair in design}
        return measured, MergeForecast(curves, self.inner, taken, pairs, kinship)


def answers_in(files: Iterable[Path], kinship: float | None = None) -> list[Answers]:
    """The bases of stored rows."""
    rows = []
    for file in files:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        rows += [json.loads(line) for line in text.splitlines()]
    found = []
    for base in dict.fromkeys(row["base"] for row in rows):
        own = [row for row in rows if row["base"] == base]
        inner = next(row for row in own if row["method"] == "inner")
        right = {_key(row): np.array([*map(int, row["right"])]) for row in own if "right" in row}
        found.append(
            Answers(base, right, tuple(inner["names"]), np.array(inner["values"]), kinship)
        )
    return found


def additive(rows: Sequence[Measured], ridge: float = 0.1) -> list[float]:
    """Mean + effect of the adapter + mean effect of its partners, of the other sets' retentions."""
    names = sorted({name for row in rows for name in row.group})
    place = {name: at for at, name in enumerate(names)}
    design = np.zeros((len(rows), 2 * len(names)))
    for line, row in zip(design, rows, strict=True):
        line[place[row.adapter]] = 1
        for other in row.group:
            line[len(names) + place[other]] += (other != row.adapter) / (len(row.group) - 1)
    kept, found = np.array([row.kept for row in rows]), np.zeros(len(rows))
    for group in {row.group for row in rows}:
        out = np.array([row.group == group for row in rows])
        known, mean = design[~out], kept[~out].mean()
        penalty = ridge * np.eye(design.shape[1])
        effects = np.linalg.solve(known.T @ known + penalty, known.T @ (kept[~out] - mean))
        found[out] = mean + design[out] @ effects
    return found.tolist()


def from_partners(rows: Sequence[Measured], partners: int = 2, draws: int = 10) -> list[float]:
    """The mean retention of the adapter beside so many drawn partners, other than this one's."""
    draw, found = random.Random(0), []
    for row in rows:
        pool = [one.kept for one in rows if one.adapter == row.adapter and one.group != row.group]
        means = [np.mean(draw.sample(pool, min(partners, len(pool)))) for _ in range(draws)]
        found.append(float(np.mean(means)))
    return found


def from_neighbour(answers: Answers, rows: Sequence[Measured]) -> list[float]:
    """The retention of the adapter beside the one that is nearest to its partner, by the cosine."""
    norms = np.sqrt(np.diag(answers.inner))
    cosines = answers.inner / np.outer(norms, norms)
    kept = {(row.adapter, frozenset(row.group)): row.kept for row in rows}
    found = []
    for row in rows:
        (partner,) = {*row.group} - {row.adapter}
        at, others = answers.names.index(partner), [*{*answers.names} - {*row.group}]
        nearest = max(others, key=lambda one: cosines[at, answers.names.index(one)])
        found.append(kept[row.adapter, frozenset((row.adapter, nearest))])
    return found


DRAWS = 10  # of the pairs that are measured


def report(files: Sequence[Path], kinship: float | None = None) -> None:
    """Prints the tables."""
    bases = answers_in(files, kinship)
    for method, size in itertools.product(("uniform", "sum", "arrow"), (2, FOUR)):
        print(f"\n### {method}, groups of {size}: r, AUROC (retention >= {KEEPS})\n")
        rivals = "alone at 1/n | additive | two partners | neighbour | cosine | norm ratio | score"
        print(f"| base | retentions | kept | by the share | {rivals} |")
        print("| --- |" + " --- |" * 10)
        for answers in bases:
            if not (rows := answers.measured(method, size)):
                continue
            truth = np.array([row.kept for row in rows])
            neighbour = from_neighbour(answers, rows) if size == 2 else [0.0] * len(rows)
            figures = [
                [row.forecast for row in rows],
                [row.at_gate for row in rows],
                additive(rows),
                from_partners(rows),
                neighbour,
                [row.cosine for row in rows],
                [row.norm_ratio for row in rows],
                [row.alone for row in rows],
            ]
            told = " | ".join(ranks(values, truth) for values in figures)
            print(f"| {answers.base} | {len(rows)} | {(truth >= KEEPS).mean():.0%} | {told} |")
    for size in (2, FOUR):
        print(f"\n### `screen --own`, uniform, groups of {size}, without and with measured pairs\n")
        print("| base | pairs | r, AUROC | bias | error | in 95 % | 0.8 or more: kept |"
              " below 0.5: kept | groups forecast: kept |")  # fmt: skip
        print("| --- |" + " --- |" * 8)
        for answers, pairs in itertools.product(bases, (False, True)):
            told = [one for seed in range(DRAWS if pairs else 1)
                    for one in forecasts(answers, size, seed if pairs else None)]  # fmt: skip
            columns = zip(*(one[:3] for one in told), strict=True)
            guess, truth, inside = map(np.array, columns)
            high, low = truth[guess >= KEEPS] >= KEEPS, truth[guess < 0.5] >= KEEPS
            groups: dict[Any, list[tuple[bool, bool]]] = {}
            for value, kept, _, group in told:
                groups.setdefault(group, []).append((value >= KEEPS, kept >= KEEPS))
            sure = [all(k for _, k in one) for one in groups.values() if all(f for f, _ in one)]
            print(
                f"| {answers.base} | {'two each' if pairs else 'none'} | {ranks(guess, truth)} "
                f"| {(guess - truth).mean():+.2f} | {np.sqrt(((guess - truth) ** 2).mean()):.2f} "
                f"| {inside.mean():.0%} | {part(high)} | {part(low)} | {part(np.array(sure))} |"
            )


# ---- figures of pairs ----------------------------------------------------------------------------


def pairs_report(files: Sequence[Path]) -> None:
    """Prints the table of `loraprobe lab mergeability` for pairs that were measured here.

    A pair merges well if the mean of what both members keep is at least the median.
    """
    print("| base | merge | pairs | best figure | by chance | members | r | seen with 1 | 2 | 3 |")
    print("| --- |" + " --- |" * 9)
    for file in files:
        libraries = stored_sets(file) if "several" in file.name else measured_pairs(file)
        for base, pairs in libraries:
            for merge in pairs.accuracies:
                row = judged(pairs, merge, np.random.default_rng(0))
                best, null = "-", "-"
                if row["figure"]:
                    best = f"{row['best']:.2f} ({row['figure']})"
                    null = f"{row['null']:.2f}, {row['null95']:.2f}"
                seen = " | ".join(f"{value:.2f}".replace("nan", "-") for value in row["partners"])
                print(f"| {base} | {merge} | {row['pairs']} | {best} | {null} "
                      f"| {row['additive']:.2f} | {row['r']:.2f} | {seen} |")  # fmt: skip


def measured_pairs(file: Path) -> list[tuple[str, Pairs]]:
    """The pairs of each base in ROWS, with the figures that inner products and scores give."""
    found = []
    for answers in answers_in([file]):
        names = tuple(answers.curves)
        pairs = [*itertools.combinations(range(len(names)), 2)]
        places = np.array([[answers.names.index(names[one]) for one in pair] for pair in pairs])
        norms = np.sqrt(np.diag(answers.inner))[places]
        inner = answers.inner[places[:, 0], places[:, 1]]
        scores = {name: answers.right["gate 1", (name,), name].mean() for name in names}
        alone = np.array([[scores[names[one]] for one in pair] for pair in pairs])
        figures = {
            "cosine": inner / norms.prod(1),
            "inner product": inner,
            "ratio of norms": norms.max(1) / norms.min(1),
            "smaller norm": norms.min(1),
            "lower score alone": alone.min(1),
            "mean score alone": alone.mean(1),
        }
        kept = {}
        for method in ("uniform", "sum", "arrow"):
            groups = [tuple(names[one] for one in pair) for pair in pairs]
            own = [[answers.kept(method, group, name) for name in group] for group in groups]
            kept[method] = np.mean(own, 1)
        found.append((answers.base, Pairs(names, np.array(pairs), figures, kept)))
    return found


def stored_sets(file: Path) -> list[tuple[str, Pairs]]:
    """The pairs of each base in several.jsonl.gz, which has answers and no weights: no figures."""
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    found = []
    for base in dict.fromkeys(row["base"] for row in rows):
        kept: dict[tuple[str, str], dict[str, float]] = {}
        for row in (row for row in rows if row["base"] == base):
            members = tuple(name for name, kind in row["kinds"].items() if kind == "adapter")
            tasks = np.array([item[0] for item in row["results"]["items"]])
            right = {
                name: np.array([mark == "1" for mark in marks])
                for name, marks in row["results"]["right"].items()
            }
            own = {name: right[name][tasks == name].mean() for name in members}
            from_base = {name: right["base"][tasks == name].mean() for name in members}
            if len(members) != 2 or min(own[n] - from_base[n] for n in members) < LEAST_GAIN:
                continue
            kept[members] = {}
            for method in ("uniform", "sum", "arrow"):
                shares = [
                    (right[method][tasks == n].mean() - from_base[n]) / (own[n] - from_base[n])
                    for n in members
                ]
                kept[members][method] = float(np.mean(np.clip(shares, -0.2, 1.2)))
        names = tuple(sorted({name for pair in kept for name in pair}))
        places = np.array([[names.index(name) for name in pair] for pair in kept])
        columns = {
            m: np.array([one[m] for one in kept.values()]) for m in ("uniform", "sum", "arrow")
        }
        found.append((base, Pairs(names, places, {}, columns)))
    return found


def ranks(values: Any, truth: np.ndarray) -> str:
    """The correlation and the AUROC of a figure."""
    values = np.asarray(values, dtype=float)
    if values.std() == 0:
        return "-"
    return f"{np.corrcoef(values, truth)[0, 1]:.2f}, {auroc(values, truth >= KEEPS):.2f}"


def part(kept: np.ndarray) -> str:
    """A share, and of how many."""
    return f"{kept.mean():.0%} of {len(kept)}" if len(kept) else "-"


def forecasts(
    answers: Answers, size: int, seed: int | None
) -> list[tuple[float, float, bool, tuple[Any, ...]]]:
    """Forecast, retention, whether the interval holds it, and the draw and the group.

    seed: of the measured pairs, which are left out; None for no such pairs.
    """
    design, forecast = answers.with_pairs(seed or 0)
    if seed is None:
        known = KINSHIP if answers.kinship is None else answers.kinship
        design, forecast = set(), MergeForecast(forecast.curves, answers.inner, kinship=known)
    rows = []
    for row in answers.measured("uniform", size):
        if frozenset(row.group) not in design:
            told = forecast.of(row.group)[row.group.index(row.adapter)]
            low, high = told.ci95
            rows.append((told.value, row.kept, low <= row.kept <= high, (seed, *row.group)))
    return rows


def main() -> None:
    """Runs one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("build", "english", "ask", "report", "pairs"))
    parser.add_argument("given", nargs="+")
    parser.add_argument("--kinship", type=float, help="of the report, in place of the measured one")
    given = parser.parse_args()
    if given.step == "build":
        build(Path(given.given[0]), given.given[1:])
    elif given.step in ("english", "ask"):
        (english if given.step == "english" else ask)(*map(Path, given.given))
    elif given.step == "pairs":
        pairs_report([*map(Path, given.given)])
    else:
        report([*map(Path, given.given)], given.kinship)


if __name__ == "__main__":
    main()
