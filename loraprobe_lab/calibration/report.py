"""The page that tells how a calibration was made and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe.verdict.features import FEATURES
from loraprobe_lab.calibration import splits
from loraprobe_lab.calibration.cases import Case, cells
from loraprobe_lab.calibration.experiment import Results
from loraprobe_lab.calibration.measures import Figure
from loraprobe_lab.calibration.resample import Agreement

NAMES = {
    "auroc_within": "AUROC within scenario",
    "auroc_pooled": "AUROC pooled",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "wrong_calls": "wrong among those called `likely`",
    "called": "true successes called `likely`",
    "answered": "cases inside the calibrated range",
}
AIMS = {
    "held-out bases": 0.95,
    "scenario": 0.90,
    "architecture": 0.90,
}  # of the AUROC within scenario

# What users are told of where the accuracy was measured: strangers' models are larger.
WHERE = "held-out bases, small ones that the lab trained"


@dataclass(frozen=True)
class Page:
    """What the page is made of."""

    cases: Sequence[Case]
    results: Results
    document: Mapping[str, Any]
    agreement: Agreement
    openings: Mapping[str, int]
    skipped: Sequence[str]
    command: str

    def render(self) -> str:
        """Markdown."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("loraprobe_lab.calibration", "."),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"figure": figure, "share": share}
        return environment.get_template("report.md.jinja").render(
            page=self,
            results=self.results,
            names=NAMES,
            rule=splits.RULE,
            cells=cells(self.cases),
            counts=counts(self.cases),
            features=FEATURES,
            model=self.document["model"],
            prior=self.document["prior"],
            margin=self.document["margin"],
            threshold=self.results.fitted.threshold,
            path=self.results.fitted.path,
            shortfalls=shortfalls(self.results),
        )


def counts(cases: Sequence[Case]) -> dict[str, int]:
    """How much stands behind the figures."""
    own = splits.trained(cases)
    natural = [case for case in cases if case not in own]
    return {
        "cases": len(own),
        "bases": len({case.base for case in own}),
        "sets": len({case.adapter_set for case in own}),
        "natural_cases": len(natural),
        "natural_sets": len({case.adapter_set for case in natural}),
        "undecided": sum(case.label is None for case in own),
    }


def shortfalls(results: Results) -> list[str]:
    """Every aim that is missed, in a sentence, with its figure."""
    found = []
    for part in (results.headline, *results.parts):
        kind = next((kind for kind in AIMS if part.name.startswith(kind)), None)
        value = part.figures["auroc_within"].value
        if kind is None:
            continue
        if not np.isfinite(value):
            found.append(f"{part.name}: no scenario holds both classes, so there is no AUROC.")
        elif value < AIMS[kind]:
            found.append(f"{part.name}: AUROC within scenario {value:.3f}, aim {AIMS[kind]:.2f}.")
    figures = results.headline.figures
    if not figures["brier"].value <= 0.08:
        found.append(f"Brier score on held-out bases {figures['brier'].value:.3f}, aim 0.08.")
    if not figures["wrong_calls"].value <= 0.05:
        found.append(f"Wrong among `likely`: {share(figures['wrong_calls'].value)}, aim 5 %.")
    if not figures["called"].value >= 0.5:
        found.append(f"True successes called: {share(figures['called'].value)}, aim 50 %.")
    for row in results.baselines:
        if not row.auroc_gain.low > 0:
            found.append(
                f"Against {row.name} the gain in AUROC within scenario is "
                f"{figure(row.auroc_gain)}: its interval does not exclude zero."
            )
    return found


def figure(value: Figure, digits: int = 2) -> str:
    """0.93 (0.90 to 0.96), a dash where it is not defined."""
    if not np.isfinite(value.value):
        return "–"
    text = f"{value.value:.{digits}f}"
    if np.isfinite(value.low):
        text += f" ({value.low:.{digits}f} to {value.high:.{digits}f})"
    return text


def share(value: float | None) -> str:
    """12.5 %"""
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"


def accuracy(results: Results) -> dict[str, Any]:
    """The headline as the calibration file quotes it."""
    found: dict[str, Any] = {"where": WHERE, "cases": results.headline.cases}
    keys = {"auroc_within": "auroc", "auroc_pooled": "auroc_pooled"}
    for name, value in results.headline.figures.items():
        found[keys.get(name, name)] = _quoted(value)
    return found


def _quoted(value: Figure) -> Any:
    if not np.isfinite(value.value):
        return None
    if not np.isfinite(value.low):
        return round(value.value, 4)
    return {"value": round(value.value, 4), "ci95": [round(value.low, 4), round(value.high, 4)]}
