"""How often a composition beats a control, or is as good, under two thresholds: exact.

    python controls.py

A composition with a true advantage over its control answers n questions. It loses LOST of them
against the control and gains so many more. The chance of every count of gained and lost questions
follows from that (`loraprobe_lab.experiments.rule`), and what is said of each by the interval that
evaluation uses. In a verdict the interval covers all pairs of a composition and what it is compared
with: here PAIRS of them by Bonferroni, which is the widest that it can be.

*Whole*: beaten above the margin, as good below it. *Half*: beaten above half the margin, as good
below that.
"""

from __future__ import annotations

from loraprobe.defaults import ALPHA, MARGIN
from loraprobe_lab.experiments.rule import decide

ADVANTAGES = (0.0, 0.02, 0.025, 0.05, 0.08, 0.12, 0.2)
LOST = 0.05
PAIRS = 15  # three compositions with the base, two adapters and two controls


def main() -> None:
    """Print the table."""
    print("| true advantage | n | beaten, whole | beaten, half | as good, whole | as good, half |")
    print("| --- | --- | --- | --- | --- | --- |")
    for advantage in ADVANTAGES:
        for n in (100, 200, 300):
            whole, half = (
                decide(n, advantage, advantage + 2 * LOST, ALPHA / PAIRS, threshold)
                for threshold in (MARGIN, MARGIN / 2)
            )
            cells = [f"{p:.3f}" for p in (whole[0], half[0], whole[1], half[1])]
            print(f"| {advantage:.3f} | {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
