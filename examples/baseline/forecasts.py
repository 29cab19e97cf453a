"""Compares forecasts of the number of questions with the curves: python forecasts.py curves.jsonl

The rule was written down before the curves on 256 questions were measured; see README.md.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from process import Point, needed

TARGETS, SEEN = (0.3, 0.5, 0.8), (32, 64)


def curves(rows):
    """The points of each base, task and seed, by the number of questions."""
    found = {}
    for row in sorted(rows, key=lambda row: row["n"]):
        if "start" not in row:
            point = Point(row["n"], row["score"] * row["scored"], row["scored"])
            found.setdefault((row["base"], row["task"], row["seed"]), []).append(point)
    return found


def rising(points):
    """Logits of the points where each is at least as high as those before: pooled neighbours."""
    blocks = [[point.right, point.asked, 1] for point in points]
    at = 1
    while at < len(blocks):
        (right, asked, count), before = blocks[at], blocks[at - 1]
        if right / asked < before[0] / before[1]:
            blocks[at - 1 : at + 1] = [[before[0] + right, before[1] + asked, before[2] + count]]
            at = max(1, at - 1)
        else:
            at += 1
    odds = [
        (right / count + 0.5) / ((asked - right) / count + 0.5) for right, asked, count in blocks
    ]
    return np.repeat(np.log(odds), [block[2] for block in blocks])


def reached(points, target):
    """The number of questions at which a curve reaches a target, infinite if it never does."""
    heights, goal = rising(points), math.log(target / (1 - target))
    numbers = [point.items for point in points]
    for one, low, other, high in zip(numbers, heights, numbers[1:], heights[1:], strict=False):
        if low < goal <= high:
            return one * (other / one) ** ((goal - low) / (high - low))
    return points[0].items if heights[0] >= goal else math.inf


def compared(points, target, seen):
    """A forecast and the truth: (forecast or None, truth), or None where there is none to make."""
    start, points = points[0], points[1:]
    truth, known = reached(points, target), [one for one in points if one.items <= seen]
    if points[-1].items <= seen or truth <= seen:
        return None
    return needed(known, start.right / start.asked, target), truth


def holds(forecast, truth, most):
    """Within a factor of two of the truth; of a target not reached, no less than was measured."""
    if math.isinf(truth):
        return forecast is None or forecast.items >= most
    return forecast is not None and 0.5 <= forecast.items / truth <= 2


def inside(forecast, truth, most):
    """Whether the truth lies in the interval, as far as it was measured."""
    return forecast.low <= truth <= forecast.high if math.isfinite(truth) else forecast.high >= most


def whole(number):
    return round(number) if math.isfinite(number) else "-"


def shown(forecast):
    """A forecast with its interval."""
    return f"{forecast.items} [{forecast.low}, {whole(forecast.high)}]" if forecast else "-"


def main():
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("curves", type=Path)
    read.add_argument("--least", type=int, default=256, help="the most questions of a curve")
    given = read.parse_args()
    found = curves(map(json.loads, given.curves.read_text().splitlines()))
    for seen in SEEN:
        sets = {}
        for (base, task, seed), points in found.items():
            if points[-1].items < given.least:
                continue
            rows = sets.setdefault((base, task), [])
            for target in TARGETS:
                if pair := compared(points, target, seen):
                    rows.append((seed, target, *pair, points[-1].items))
        said = [row for rows in sets.values() for row in rows if row[2]]
        good = {key: [holds(*row[2:]) for row in rows] for key, rows in sets.items()}
        print(f"\nfrom the points up to {seen}")
        for (base, task), rows in sets.items():
            told = "; ".join(
                f"{target} ({seed}): {shown(forecast)} measured {whole(truth)}"
                for seed, target, forecast, truth, _ in rows
            )
            print(f"{base} {task}: {sum(good[base, task])} of {len(rows)}: {told}")
        telling = [
            good[key]
            for key, rows in sets.items()
            if any(forecast or truth < math.inf for _, _, forecast, truth, _ in rows)
        ]
        held = sum(3 * sum(one) >= 2 * len(one) for one in telling)
        print(f"sets that hold: {held} of {len(telling)}")
        every = [ok for one in good.values() for ok in one]
        print(f"forecasts that hold: {sum(every)} of {len(every)}")
        near, within = (sum(judge(*row[2:]) for row in said) for judge in (holds, inside))
        print(f"said: {len(said)}; that hold: {near}; whose interval holds: {within}")


if __name__ == "__main__":
    main()
