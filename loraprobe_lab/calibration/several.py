"""Adapter sets with several tasks: the errors of the probability that every skill is kept.

The sets are stored with the answers of all systems, so a first round is drawn from the answers
themselves: some items of each task, judged by the code of a verdict. A set succeeds if on all its
items some composition is shown to gain and to keep every specialist's skill, and fails if every
composition is shown not to; otherwise it is undecided. Controls have no part in either.

A file of sets is one JSON line per set, gzipped: its description, the kind of each system, and the
answers as `observations.packed` writes them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.defaults import LIKELY_FROM, PILOT_ITEMS
from loraprobe.evaluation import System, gains, score
from loraprobe.records import FORMS, ItemResult
from loraprobe.verdict import judge_evaluation
from loraprobe.verdict.calibration import LEAST, Coefficients
from loraprobe.verdict.evaluated import ORDER, candidates
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.probability import error_of, gain_of, keeps
from loraprobe_lab.calibration.accuracy import Figures, recorded
from loraprobe_lab.calibration.cases import NATURAL, Case, CaseError
from loraprobe_lab.calibration.fit import Array, fit
from loraprobe_lab.calibration.observations import packed, unpacked
from loraprobe_lab.world import write_text

SETS = "several.jsonl.gz"
DRAWS = 10  # first rounds of each set
EXCHANGES = 200  # of outcomes, for the null
WHERE = {
    "small": "left-out small bases that the lab trained",
    "natural": "SmolLM2-135M-Instruct, left out of the fit",
}


@dataclass(frozen=True)
class AnsweredSet:
    """An adapter set with several tasks, and which system answered which item right."""

    base: str
    architecture: str
    scenario: str
    world: str
    adapter_set: str
    kinds: Mapping[str, str]  # system -> kind
    results: tuple[ItemResult, ...]

    @property
    def base_kind(self) -> str:
        return "natural" if self.architecture == NATURAL else "small"

    @property
    def set_key(self) -> tuple[str, str]:
        return self.world, self.adapter_set

    @property
    def outcome(self) -> int | None:
        """1 for a success, 0 for a failure, None where it is undecided on all items."""
        found = self._evidence(self.results)
        said = [
            min((c.gain.outcome, c.retains, c.enough), key=ORDER.__getitem__)
            for part in FORMS
            for c in candidates(found, part)
        ]
        best = max(said, key=ORDER.__getitem__, default="open")
        return {"likely": 1, "unlikely": 0}.get(best)

    def first_round(
        self, items: int, rng: np.random.Generator, coefficients: Coefficients
    ) -> float:
        """The probability after a drawn first round; NaN where a verdict would have none."""
        chosen = set[tuple[str, str]]()
        for task in sorted({row.task for row in self.results}):
            asked = sorted({row.item for row in self.results if row.task == task})
            drawn = rng.choice(len(asked), size=min(items, len(asked)), replace=False)
            chosen |= {(task, asked[k]) for k in drawn}
        found = self._evidence([row for row in self.results if (row.task, row.item) in chosen])
        gain = gain_of(judge_evaluation(found), found)
        if gain is None:
            return float("nan")
        if any(row.retention is None for row in found.scores(gain.system, gain.part)):
            return float("nan")
        baseline = found.baseline or 0.0
        gained = coefficients.exceeds(found.margin, baseline, gain.difference, error_of(gain))
        return min(max(gained, LEAST), 1 - LEAST) * keeps(gain, found)

    def _evidence(self, results: Sequence[ItemResult]) -> Evidence:
        systems = [System(name, kind) for name, kind in self.kinds.items()]  # type: ignore[arg-type]
        return Evidence(
            evaluation=score(results, systems),
            gains=gains(results, systems),
            tasks=len({row.task for row in results}),
            level="evaluation",
        )


def read_sets(path: Path) -> list[AnsweredSet]:
    """The sets of a file. Raises CaseError for one that cannot be read."""
    try:
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        return [answered(row) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CaseError(f"{path} is no file of answered sets ({type(error).__name__}).") from None


def answered(row: Mapping[str, Any]) -> AnsweredSet:
    """A set from its document, or from an observation."""
    about = {k: row[k] for k in ("base", "architecture", "scenario", "world", "adapter_set")}
    return AnsweredSet(**about, kinds=row["kinds"], results=tuple(unpacked(row["results"])))


def write_sets(path: Path, sets: Sequence[AnsweredSet]) -> None:
    """Writes the sets in their order; equal sets give equal bytes."""
    lines = [
        json.dumps({**vars(one), "results": packed(one.results)}, ensure_ascii=False)
        for one in sets
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


@dataclass(frozen=True)
class SeveralFigures(Figures):
    """Measures of probabilities on decided sets; NaN if undefined.

    silent: the share of first rounds without a probability, on all sets. The others are as in
    `accuracy.Figures`, over the first rounds that have one.
    """

    sets: int
    bases: int
    gained: int
    silent: float


def left_out(sets: Sequence[AnsweredSet], cases: Sequence[Case], items: int) -> Array:
    """The probability of each set, its base left out of the fit: [draws, sets], NaN for none."""
    rng = np.random.default_rng(0)
    fits = {base: _without(cases, base) for base in dict.fromkeys(one.base for one in sets)}
    found = np.zeros((DRAWS, len(sets)))
    for i, one in enumerate(sets):
        found[:, i] = [one.first_round(items, rng, fits[one.base]) for _ in range(DRAWS)]
    return found


def _without(cases: Sequence[Case], base: str) -> Coefficients:
    kept = [case for case in cases if case.base != base]
    return fit(kept).given(kept[0])


def figures_of(sets: Sequence[AnsweredSet], p: Array) -> SeveralFigures:
    """The figures of probabilities [draws, sets]."""
    labels = [one.outcome for one in sets]
    kept = [i for i, label in enumerate(labels) if label is not None]
    y = np.array([labels[i] for i in kept], dtype=float)
    silent = float(np.isnan(p).mean()) if p.size else float("nan")
    p = p[:, kept]
    likely, rng = p >= LIKELY_FROM, np.random.default_rng(0)
    called, nan = float(likely.sum()), float("nan")
    null = [_auroc(rng.permutation(y), p[:1]) for _ in range(EXCHANGES)]
    return SeveralFigures(
        sets=len(sets),
        bases=len({one.base for one in sets}),
        decided=len(y),
        gained=int(y.sum()),
        silent=silent,
        auroc=_auroc(y, p),
        null=float(np.nanquantile(null, 0.95)) if np.isfinite(null).any() else nan,
        brier=float(np.nanmean((p - y) ** 2)) if np.isfinite(p).any() else nan,
        reference=float(y.mean() * (1 - y.mean())) if len(y) else nan,
        likely=called / len(p),
        wrong=float(likely[:, y == 0].sum() / called) if called else nan,
        called=float(likely[:, y == 1].mean()) if y.any() else nan,
    )


def _auroc(y: Array, p: Array) -> float:
    """The mean over draws, each of the sets that have a probability; NaN without both outcomes."""
    found = []
    for draw in p:
        ones, zeros = (draw[(y == k) & ~np.isnan(draw)] for k in (1, 0))
        if len(ones) and len(zeros):
            above = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
            found.append(float(above.mean()))
    return float(np.mean(found)) if found else float("nan")


def measure(
    sets: Sequence[AnsweredSet], cases: Sequence[Case], items: int = PILOT_ITEMS
) -> dict[str, SeveralFigures]:
    """The figures by kind of base."""
    found = {}
    for kind in WHERE:
        own = [one for one in sets if one.base_kind == kind]
        if own:
            found[kind] = figures_of(own, left_out(own, cases, items))
    return found


def accuracy(figures: Mapping[str, SeveralFigures], items: int = PILOT_ITEMS) -> dict[str, Any]:
    """What `calibration.json` records, of kinds of bases with enough decided sets."""
    return recorded(figures, WHERE, items)


def merged(old: Sequence[AnsweredSet], new: Sequence[AnsweredSet]) -> list[AnsweredSet]:
    """Old sets, without those that are in `new`, and then the new ones."""
    again = {one.set_key for one in new}
    return [*(one for one in old if one.set_key not in again), *new]
