"""What a server serves is told from its log-probabilities, also where these are noisy.

figures.json has log-probabilities of the likeliest token after 48 texts, in float32, of
SmolLM2-135M-Instruct (0), with an adapter for facts of rank 16 by its scale (1: as it is), and with
another adapter of the same base (other).
"""

import json
from pathlib import Path

import numpy as np
import pytest

from loraprobe.extensions.serve.recognising import WRONG, recognise

HELD = {
    name: np.array(row)
    for name, row in json.loads(Path(__file__).with_name("figures.json").read_text()).items()
}
CURVE = sorted((float(name), row) for name, row in HELD.items() if name != "other")
SIDES = np.stack([HELD["0"], HELD["1"], HELD["other"]])
RUNS = 100


def scaled(scale: float) -> np.ndarray:
    """The figures at a scale, between those that were recorded."""
    scales, rows = zip(*CURVE, strict=True)
    return np.array([np.interp(scale, scales, column) for column in np.transpose(rows)])


def runs(truth: np.ndarray, noise: float, sides: np.ndarray, base: bool = True, texts: int = 48):
    """What is told of a server with noise, in RUNS runs. base: whether it serves one."""
    sides, truth = sides[:, :texts], truth[:texts]
    for seed in range(RUNS):
        drawn = np.random.default_rng(seed)
        theirs, its_base = (
            np.minimum(figures + drawn.normal(0, noise, figures.size), 0.0)
            for figures in (truth, sides[0])
        )
        floor = its_base - sides[0] if base else None
        yield recognise(theirs, sides, floor, lambda scale: scaled(scale)[:texts])


@pytest.mark.parametrize("noise", [0.0005, 0.06, 0.3])
@pytest.mark.parametrize("others", [2, 3])
def test_noise_raises_no_false_alarm_and_hides_no_missing_adapter(noise, others):
    right = list(runs(SIDES[1], noise, SIDES[:others]))
    assert not any(one.clear and one.place != 1 for one in right)
    assert sum(one.clear for one in right) >= 98
    missing = list(runs(SIDES[0], noise, SIDES[:others]))
    assert all(one.clear and one.place == 0 for one in missing)


@pytest.mark.parametrize("noise", [0.0005, 0.06, 0.3])
def test_another_adapter_is_named_if_it_is_given_and_else_told_as_none(noise):
    given = [one.place if one.clear else "open" for one in runs(SIDES[2], noise, SIDES)]
    assert given.count(2) >= 98 and set(given) <= {2, "open"}
    unknown = [one.place for one in runs(SIDES[2], noise, SIDES[:2]) if one.clear]
    assert unknown.count(None) >= 98 and 1 not in unknown


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("noise", [0.0005, 0.06, 0.3])
def test_a_scale_is_told_by_how_much(scale, noise):
    found = [one.scale for one in runs(HELD[f"{scale:g}" if scale < 1 else "2.0"], noise, SIDES)]
    told = [one for one in found if one is not None]
    assert len(told) >= 95
    assert abs(np.mean(told) / scale - 1) < 0.05
    assert np.std(told) < 0.01 + 0.5 * noise


@pytest.mark.parametrize("scale", [0.95, 1.05])
def test_a_scale_that_hardly_differs_is_that_of_the_adapter(scale):
    assert all(one.place == 1 and one.clear for one in runs(scaled(scale), 0.06, SIDES))


def test_noise_that_hides_an_adapter_that_is_not_known_leaves_it_open():
    """0.6 hides the difference between the adapters, which are 0.77 apart."""
    found = list(runs(SIDES[2], 0.6, SIDES[:2]))
    assert sum(not one.clear for one in found) >= 97
    assert not any(one.clear and one.place == 1 for one in found)


def test_a_scale_is_told_only_where_it_fits_better_than_chance():
    weak = SIDES[0] + 0.25 * (SIDES[1] - SIDES[0])
    sides = np.stack([SIDES[0], weak])
    for seed in range(RUNS):
        drawn = np.random.default_rng(seed)
        theirs, floor = weak + drawn.normal(0, 0.09, 48), drawn.normal(0, 0.09, 48)
        found = recognise(theirs, sides, floor, lambda s: sides[0] + s * (weak - sides[0]))
        assert found.scale is None


def test_an_adapter_that_was_given_is_named_although_a_scale_fits_as_well():
    sides = np.stack([SIDES[0], SIDES[1], HELD["0.5"]])
    assert all(one.place == 2 for one in runs(HELD["0.5"], 0.06, sides))


def test_what_a_scale_does_not_explain_is_another_adapter():
    beside = 0.5 * np.resize([1.0, -1.0], 48)
    theirs = HELD["0.5"] + beside  # 0.5 is nearer than 0 and 1, and half of the difference is left
    found = recognise(theirs, SIDES[:2], np.resize([0.06, -0.06], 48), scaled)
    assert found.clear and found.place is None and found.scale is None


def test_few_texts_raise_no_false_alarm():
    """Of 8 texts, chance makes the noise of one run twice that of another in 3 of 100."""
    found = list(runs(SIDES[1], 0.15, SIDES[:2], texts=8))
    assert not any(one.clear and one.place != 1 for one in found)
    assert any(one.clear for one in found)


def test_what_would_be_wrong_too_often_is_left_open():
    found = list(runs(SIDES[1], 0.6, SIDES[:2], base=False, texts=6))
    often = [one for one in found if one.wrong > WRONG]
    assert len(often) > 50 and not any(one.clear for one in often)


@pytest.mark.parametrize("truth", [0, 1])
def test_noise_as_large_as_the_difference_leaves_it_open(truth):
    found = list(runs(SIDES[truth], 0.9, SIDES))
    assert sum(not one.clear for one in found) >= 95
    assert not any(one.clear and one.place == 1 - truth for one in found)


@pytest.mark.parametrize("truth", [0, 1, 2])
def test_without_a_base_the_closest_is_told_where_it_is_close(truth):
    for one in runs(SIDES[truth], 0.06, SIDES, base=False):
        assert one.clear and one.place == truth
    for one in runs(SIDES[truth], 0.3, SIDES, base=False):
        assert not one.clear or one.place == truth


def test_the_share_of_wrong_decisions_is_that_of_fresh_noise():
    """`wrong` is drawn from the noise of one run; other runs err as often."""
    sides = SIDES[:2, :12].copy()
    sides[1] = sides[0] + 0.25 * (sides[1] - sides[0])  # an adapter that hardly differs
    told, drawn, errs = list[float](), np.random.default_rng(1), 0
    for _ in range(RUNS):
        noise = drawn.normal(0, 0.2, (2, 12))
        told.append(recognise(sides[1] + noise[0], sides, noise[1], lambda _: sides[1]).wrong)
    for _ in range(2000):
        theirs = np.minimum(sides[1] + drawn.normal(0, 0.2, 12), 0)
        errs += int(np.square(theirs - sides).sum(1).argmin() == 0)
    # `wrong` counts scales told by mistake too, and takes the worse of two sides.
    assert np.median(told) > WRONG and errs / 2000 - 0.02 < np.median(told) < 0.5
