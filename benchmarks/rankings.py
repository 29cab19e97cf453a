"""Rankings of the pairs of a library whose pairs were all tried, and how good each is.

`screen_quality.py` measures the screen by them, `retrieval.py` ways to choose adapters unasked.
Every adapter is asked all items that choose alone, and the answers rank all pairs in several ways:
the screen's own, the forecast alone, scores of singles, geometry of the weights, chance. How well a
ranking does depends on the items, so each is repeated on resampled items; a figure is the mean.

The value of a pair is the better of its sum and average on all items. *Best* says whether the pair
with the largest value is among the first ten, *near* whether one within 0.05 of it is, *value* what
the best of the first ten answers. A pair that was not tried counts as 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.base import open_base
from loraprobe.base.quiet import quiet
from loraprobe.evaluation.questions import BASE
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.comparing import ComparedLibrary, compare_members, mark_unfit
from loraprobe.extensions.screen.forecasting import ForecastTexts
from loraprobe.extensions.screen.ranking import Ranking, TaskScores
from loraprobe.extensions.screen.reading import read_library
from loraprobe.extensions.screen.screening import open_screen
from loraprobe.options import Options
from loraprobe.pipeline.task_files import open_tasks
from loraprobe.records import ItemResult
from loraprobe.session import Session
from loraprobe_lab.world import World

FIRST, NEAR = 10, 0.05
Scores = np.ndarray


@dataclasses.dataclass(frozen=True)
class Seen:
    """What rankings may use: results of singles, forecasts of pairs [pairs, items], cosines.

    signals: name -> what tells without asking how good adapters are for the question and each hop
    of the items, [adapters, forms, items] (`retrieval.py`).
    """

    known: TaskScores
    forecast: np.ndarray
    hops: np.ndarray | None
    cosines: np.ndarray
    pairs: np.ndarray
    signals: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def on(self, items: np.ndarray) -> Seen:
        """The same on some of the items."""
        parts = {part: values[:, items] for part, values in self.known.parts.items()}
        task = dataclasses.replace(
            self.known.task, items=tuple(self.known.task.items[i] for i in items)
        )
        known = dataclasses.replace(self.known, task=task, parts=parts)
        hops = None if self.hops is None else self.hops[:, items]
        forecast = self.forecast[:, items]
        signals = {name: values[..., items] for name, values in self.signals.items()}
        return dataclasses.replace(self, known=known, forecast=forecast, hops=hops, signals=signals)

    def members(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Values of the adapters [n] for both members of each pair: [2, pairs]."""
        return np.asarray(values)[self.pairs].T


def rankings_of(seen: Seen) -> dict[str, Callable[[Seen], Scores]]:
    """Name -> scores [pairs]; more is better."""
    found: dict[str, Callable[[Seen], Scores]] = {
        "singles: sum of both scores": lambda s: s.members(s.known.alone()[1:]).sum(0),
        "geometry: most orthogonal": lambda s: -np.abs(s.cosines[*s.pairs.T]),
        "geometry: most alike": lambda s: s.cosines[*s.pairs.T],
        "union of answers": lambda s: _union(s.known.parts["question"], s.pairs).mean(1),
        "union, halfway to the best single": lambda s: s.known.question(s.pairs).mean(1),
        "forecast: effects added": lambda s: s.forecast.mean(1),
    }
    if seen.known.form is not None:
        found["hops x form"] = lambda s: s.known.steps(s.pairs, s.known.covered(s.pairs)).mean(1)
        found["union of hops"] = lambda s: np.prod(
            [_union(v, s.pairs).mean(1) for p, v in s.known.parts.items() if p.startswith("hop")], 0
        )
    if seen.hops is not None:
        found["hops with effects added x form"] = lambda s: s.known.steps(s.pairs, s.hops).mean(1)
        found["mean of both x form (screen)"] = lambda s: s.known.steps(
            s.pairs, (s.hops + s.known.covered(s.pairs)) / 2
        ).mean(1)
    for name in seen.signals:
        found[f"{name}: both members"] = lambda s, name=name: s.members(
            s.signals[name][:, 0].mean(-1)
        ).sum(0)
        found[f"{name}: the better member"] = lambda s, name=name: _better(s.signals[name], s.pairs)
    return found


def _better(signal: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Mean [pairs] over the hops of items, or over questions without hops, of the better member."""
    parts = signal[:, 1:] if signal.shape[1] > 1 else signal
    return np.maximum(parts[pairs[:, 0]], parts[pairs[:, 1]]).mean((1, 2))


def _union(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether the base or a member is right: [pairs, items]."""
    own = values[1:]
    return np.nan_to_num(np.maximum(np.maximum(own[pairs[:, 0]], own[pairs[:, 1]]), values[0]))


@dataclasses.dataclass(frozen=True)
class Truth:
    """What pairs of adapter names answer of all items of a task."""

    values: Mapping[frozenset[str], float]
    single: float
    base: float

    @classmethod
    def of(cls, document: Mapping[str, Any], task: str) -> Truth:
        rows, names = document["tasks"][task]["sets"], document["adapters"]
        found: dict[frozenset[str], float] = {}
        for row in rows:
            finals = [row[key] for key in ("sum", "average") if key in row]
            value = max(finals) if finals else row["first"]
            found[frozenset(names[m] for m in row["members"])] = value
        single = max(v for k, v in found.items() if len(k) == 1)
        pairs = {k: v for k, v in found.items() if len(k) == 2}
        return cls(pairs, single, document["tasks"][task]["base"])

    @property
    def best(self) -> float:
        return max(self.values.values())

    def of_first(self, first: Sequence[frozenset[str]]) -> dict[str, float]:
        """How good the first pairs of a ranking are."""
        value = max((self.values.get(pair, 0.0) for pair in first), default=0.0)
        return {
            "best": float(value >= self.best - 1e-9),
            "near": float(value >= self.best - NEAR),
            "value": value,
        }


def asked_alone(
    world: World, task: str, items: int
) -> tuple[ComparedLibrary, Ranking, list[ItemResult]]:
    """The library, the screen's ranking of its sets, and the answers of base and single adapters.

    Every adapter is asked all items that choose, and none is asked of sums of sets.
    """
    session = Session(
        Options(added=(ScreenOptions(items=items, keep=FIRST),)), command="screen", resume=True
    )
    base, tasks = open_base(base_of(world)), open_tasks(task_file(world, task), session.options)
    members = read_library([str(path) for path in world.adapters.values()])
    found = compare_members(mark_unfit(members, base))
    with open_screen(found.members, base, tasks, session) as screen:
        screen.asked, screen.untried = screen.evaluator.tasks, ()
        screen.reading = ForecastTexts.of(screen.evaluator.scorer, screen.asked)
        names = [*screen.ask([BASE]), *screen.ask(screen.in_order())]
        return found, screen.ranking(names), screen.results


def task_file(world: World, task: str) -> str:
    return str(world.path / "tasks" / f"{task}.jsonl")


def base_of(world: World) -> Path:
    assert world.base is not None
    return world.base


def seen_of(chosen: Ranking, found: ComparedLibrary) -> Seen:
    names = chosen.names
    order = [found.compared.index(name) for name in names]
    pairs = np.stack(np.triu_indices(len(names), 1), 1)
    parts = chosen.forecast_parts(pairs, 0.5)[chosen.alone[0].task.name]
    hops = [values for part, values in parts.items() if part.startswith("hop")]
    cosines = found.cosines[np.ix_(order, order)]
    kept = np.prod(hops, 0) if hops else None
    return Seen(chosen.alone[0], parts["question"], kept, cosines, pairs)


def recalls(seen: Seen, names: Sequence[str], truth: Truth, repeats: int) -> list[dict[str, Any]]:
    """Each ranking on resampled items, and chance."""
    rng, rows = np.random.default_rng(0), []
    items = len(seen.known.task.items)
    draws = [rng.integers(0, items, items) for _ in range(repeats)]
    sets = [frozenset((names[i], names[j])) for i, j in seen.pairs.tolist()]
    values = np.array([truth.values.get(pair, 0.0) for pair in sets])
    best = int(values.argmax())

    def row(name: str, score: Callable[[Seen], Scores]) -> dict[str, Any]:
        found = []
        for draw in draws:
            scores = score(seen.on(draw)) + rng.random(len(sets)) * 1e-9
            first = np.argsort(-scores)[:FIRST]
            place = 1 + int((scores > scores[best]).sum())
            found.append(truth.of_first([sets[k] for k in first]) | {"place": place})
        means = {
            key: float(np.mean([one[key] for one in found])) for key in ("best", "near", "value")
        }
        return {"ranking": name, **means, "place": float(np.median([f["place"] for f in found]))}

    for name, score in rankings_of(seen).items():
        rows.append(row(name, score))
    rows.append(row("chance", lambda _: rng.random(len(sets))))
    return rows


def arguments() -> argparse.ArgumentParser:
    """The arguments of a benchmark of rankings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("world", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--output", "-o", type=Path)
    parser.add_argument("--task", action="append")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=50)
    return parser


def each_task(
    options: argparse.Namespace,
    look: Callable[[World, Truth, str], dict[str, Any]],
    tell: Callable[[Mapping[str, Any]], str],
) -> None:
    """Looks at each task, prints what `tell` makes of it, and writes all so far as JSON."""
    world = World.load(options.world)
    document = json.loads(options.truth.read_text(encoding="utf-8"))
    rows = []
    for task in options.task or document["tasks"]:
        with quiet():
            rows.append(look(world, Truth.of(document, task), task))
        print(tell(rows[-1]), flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
