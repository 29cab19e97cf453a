"""Whether pairs that merge well are told by figures of the pair, or by their members.

`loraprobe lab mergeability FILE` reads the published table of arXiv 2601.22285 (190 pairs of 20
fine-tuned models, figures of each pair, and the normalised accuracy of several merges of it). A
pair *merges well* if its accuracy is at least the median. Three kinds of forecast are compared by
AUROC for that:

*The best figure.* Of all figures of a pair the one with the largest AUROC, in either direction. The
choice among so many has a null: the same with the models' names shuffled.

*Additive.* The accuracy of a pair as a mean and an effect of each member, fitted to the other pairs
(ridge regression).

*Seen with k partners.* The sum over both members of the mean accuracy of k drawn pairs of the
member; the pair itself is not among them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loraprobe.errors import UsageError
from loraprobe_lab.experiments.pages import BLUE, GREY, Pages, as_svg, drawing, render
from loraprobe_lab.world import read_lines

Array = npt.NDArray[Any]
FIGURE, MERGE = "merge_", "perf_"  # how the columns of figures, and of accuracies, begin
RIDGE, SHUFFLES, DRAWS = 0.1, 200, 10
PARTNERS = 1, 2, 3


@dataclass(frozen=True)
class Pairs:
    """Pairs of models. members: [pairs, 2], as numbers of `names`. figures, accuracies: name ->
    [pairs], NaN where the table has none."""

    names: tuple[str, ...]
    members: Array
    figures: Mapping[str, Array]
    accuracies: Mapping[str, Array]


def read_pairs(file: Path) -> Pairs:
    """The published table. Raises UsageError for a file that is none."""
    if not file.is_file():
        raise UsageError(f"{file} is missing:", "name the table detailed_pair_data.csv.")
    rows = list(csv.DictReader(read_lines(file)))
    if not rows or not {"task1", "task2"} <= {*rows[0]}:
        raise UsageError(f"{file} has no columns task1 and task2; name detailed_pair_data.csv.")
    names = tuple(sorted({row[key] for row in rows for key in ("task1", "task2")}))
    members = np.array([[names.index(row["task1"]), names.index(row["task2"])] for row in rows])

    def columns(begin: str) -> dict[str, Array]:
        chosen = [name for name in rows[0] if name.startswith(begin)]
        return {
            name.removeprefix(begin): np.array([float(row[name] or "nan") for row in rows])
            for name in chosen
        }

    return Pairs(names, members, columns(FIGURE), columns(MERGE))


def auroc(scores: Array, well: Array) -> float:
    """The chance that a pair that merges well has the larger score; NaN where all or none do.

    Pairs without a score are left out.
    """
    told = np.isfinite(scores)
    above, below = scores[told & well][:, None], scores[told & ~well][None]
    shares = (above > below) + (above == below) / 2
    return float(shares.mean()) if shares.size else np.nan


def best_figure(figures: Mapping[str, Array], well: Array) -> tuple[float, str]:
    """The largest AUROC of all figures, in either direction, and its figure."""
    rated = {name: auroc(values, well) for name, values in figures.items()}
    return max((max(value, 1 - value), name) for name, value in rated.items())


def shuffled(pairs: Pairs, well: Array, rng: np.random.Generator) -> Array:
    """The same of pairs whose members have another's names: [SHUFFLES]."""
    place = {frozenset(pair): at for at, pair in enumerate(pairs.members.tolist())}
    found = []
    for _ in range(SHUFFLES):
        other = rng.permutation(len(pairs.names))
        order = [place.get(frozenset(other[pair].tolist())) for pair in pairs.members]
        kept = np.array([at is not None for at in order])
        of = np.array([at for at in order if at is not None])
        moved = {name: values[of] for name, values in pairs.figures.items()}
        found.append(best_figure(moved, well[kept])[0])
    return np.array(found)


def additive(pairs: Pairs, accuracy: Array) -> Array:
    """A forecast for each pair from all others, in closed form: [pairs]."""
    design = np.zeros((len(accuracy), len(pairs.names)))
    for column in pairs.members.T:
        design[np.arange(len(accuracy)), column] = 1
    normal = design.T @ design + RIDGE * np.eye(design.shape[1])
    hat = design @ np.linalg.solve(normal, design.T)
    rest = accuracy - accuracy.mean()
    return accuracy - (rest - hat @ rest) / (1 - np.diag(hat))


def with_partners(pairs: Pairs, accuracy: Array, partners: int, rng: np.random.Generator) -> Array:
    """A forecast for each pair from so many other pairs of each member, NaN where there are fewer:
    [pairs]."""
    found = np.zeros(len(accuracy))
    for at, pair in enumerate(pairs.members):
        for member in pair:
            others = np.flatnonzero((pairs.members == member).any(1))
            others = others[others != at]
            if len(others) < partners:
                found[at] = np.nan
                break
            found[at] += accuracy[rng.choice(others, partners, replace=False)].mean()
    return found


def mergeability(file: Path, seed: int = 0) -> Pages:
    """Judges every merge of the table. Raises UsageError for a file that is none."""
    pairs, rng = read_pairs(file), np.random.default_rng(seed)
    rows = [judged(pairs, name, rng) for name in pairs.accuracies]
    document = {"source": "arXiv 2601.22285", "seed": seed, "pairs": len(pairs.members)}
    document |= {"models": len(pairs.names), "figures": len(pairs.figures), "merges": rows}
    return Pages(
        "mergeability", document, render("mergeability", **document), lambda: _figure(rows)
    )


def judged(pairs: Pairs, merge: str, rng: np.random.Generator) -> dict[str, Any]:
    """One merge, on the pairs of which its accuracy was published.

    NaN where no pair has figures, or where no two members have so many other pairs.
    """
    told = np.isfinite(pairs.accuracies[merge])
    figures = {name: values[told] for name, values in pairs.figures.items()}
    some = Pairs(pairs.names, pairs.members[told], figures, {})
    accuracy = pairs.accuracies[merge][told]
    well = accuracy >= np.median(accuracy)
    forecast, null = additive(some, accuracy), np.array([np.nan])
    best, figure = np.nan, ""
    if figures:
        (best, figure), null = best_figure(figures, well), shuffled(some, well, rng)
    draws = {
        k: np.mean([auroc(with_partners(some, accuracy, k, rng), well) for _ in range(DRAWS)])
        for k in PARTNERS
    }
    return {
        "merge": merge.replace("_", " "),
        "pairs": int(told.sum()),
        "best": best,
        "figure": figure.replace("_", " "),
        "null": float(np.median(null)),
        "null95": float(np.quantile(null, 0.95)),
        "additive": auroc(forecast, well),
        "r": float(np.corrcoef(forecast, accuracy)[0, 1]),
        "partners": [float(draws[k]) for k in PARTNERS],
    }


def _figure(rows: list[dict[str, Any]]) -> str:
    """The best figure with its null, and the additive forecast, for each merge."""
    with drawing() as Figure:
        figure = Figure(figsize=(6, 0.5 * len(rows) + 1))
        panel = figure.subplots()
        for y, row in enumerate(rows):
            panel.plot([0.5, row["null95"]], [y, y], color=GREY, linewidth=4, alpha=0.4)
            panel.plot(row["best"], y, "o", color=GREY)
            panel.plot(row["partners"][0], y, "s", color=BLUE, fillstyle="none")
            panel.plot(row["additive"], y, "o", color=BLUE)
        panel.set_yticks(range(len(rows)), [row["merge"] for row in rows])
        panel.set_xlim(0.5, 1)
        panel.set_xlabel("AUROC: best figure of the pair (grey; bar: by chance), members (blue)")
        return as_svg(figure)
