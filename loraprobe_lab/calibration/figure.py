"""The calibration's figure: how true the probabilities are, how well they rank, against what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loraprobe_lab.calibration.experiment import Results
from loraprobe_lab.calibration.measures import Scored, aurocs_by_scenario, reliability
from loraprobe_lab.calibration.optional import need

INK, SOFT, ACCENT = "#222222", "#9a9a9a", "#1f5fa8"


def draw(results: Results, path: Path) -> None:
    """Writes an SVG of three panels; the same results give the same bytes."""
    matplotlib = need("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"svg.hashsalt": "loraprobe", "font.size": 9, "axes.edgecolor": INK}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
        _reliability(panels[0], results.scored)
        _roc(panels[1], results.scored)
        _bars(panels[2], results)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _reliability(panel: Any, scored: Scored) -> None:
    """Share of successes over mean probability, in bins of equal mass, with Wilson's intervals."""
    panel.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8)
    for p, share, n in reliability(scored):
        low, high = _wilson(share, n)
        panel.plot([p, p], [low, high], color=ACCENT, linewidth=1)
        panel.plot(p, share, "o", color=ACCENT, markersize=4)
    panel.set(
        xlabel="probability given", ylabel="share that gained", xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02), title="Held-out bases: are probabilities true?",
    )  # fmt: skip


def _roc(panel: Any, scored: Scored) -> None:
    """A curve a scenario, over its cells of two classes."""
    panel.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8)
    for name, value in aurocs_by_scenario(scored).items():
        chosen = (scored.scenario == name) & scored.headline
        x, y = roc(scored.y[chosen], scored.p[chosen])
        panel.plot(x, y, linewidth=1.3, label=f"{name} ({value:.2f})")
    panel.set(
        xlabel="failures called", ylabel="successes called", title="Ranking within a scenario"
    )
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, loc="lower right", title="AUROC", alignment="left")


def roc(y: Any, p: Any) -> tuple[Any, Any]:
    """Shares of failures and of successes at or above every cut, from (0, 0) to (1, 1)."""
    cuts = np.unique(p)[::-1]
    failures = [0.0, *(float((p[y == 0] >= cut).mean()) for cut in cuts)]
    successes = [0.0, *(float((p[y == 1] >= cut).mean()) for cut in cuts)]
    return failures, successes


def _bars(panel: Any, results: Results) -> None:
    """AUROC within scenario of the model and of every baseline, with intervals."""
    rows = [("loraprobe", results.headline.figures["auroc_within"], ACCENT)]
    ordered = sorted(results.baselines, key=lambda row: -row.auroc.value)
    rows += [(row.name, row.auroc, SOFT) for row in ordered]
    for place, (_, figure, colour) in enumerate(reversed(rows)):
        panel.barh(place, figure.value, color=colour, height=0.6)
        if np.isfinite(figure.low):
            panel.plot([figure.low, figure.high], [place, place], color=INK, linewidth=1)
    panel.axvline(0.5, color=INK, linewidth=0.6, linestyle=":")
    panel.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    panel.set(xlabel="AUROC within scenario", xlim=(0, 1.0), title="Against simpler predictors")


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return middle - half, middle + half
