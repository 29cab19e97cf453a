"""Elementwise methods against outputs of other tools, stored as numbers in vectors/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraprobe.merging import METHODS
from loraprobe.merging import sparse as selection

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "elementwise.json").read_text()
)
CASES = [(peer["peer"], case) for peer in STORED["peers"] for case in peer["cases"]]
UNIFORMS = torch.tensor(STORED["uniforms"], dtype=torch.float64)


def deltas_of(case: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(STORED["deltas"][case["deltas"]], dtype=torch.float64)


def ours(spec: str, deltas: torch.Tensor, weights: list[float], monkeypatch) -> torch.Tensor:
    """The method with the stored draws in place of its own: generator i draws UNIFORMS[i]."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(deltas))]
    drawn = iter(list(UNIFORMS) * 2)  # once for the masks, once more where a norm is kept
    monkeypatch.setattr(selection, "uniform", lambda shape, generator: next(drawn))
    given = torch.tensor(weights, dtype=torch.float64)
    return METHODS.make(spec)(deltas, given, generators)


@pytest.mark.parametrize(
    ("peer", "case"), CASES, ids=[f"{peer}: {case['method']}" for peer, case in CASES]
)
def test_result_equals_the_other_tools(peer, case, monkeypatch):
    """To 1e-6: the stored numbers have 7 decimals, and mergekit masks in float32."""
    result = ours(case["method"], deltas_of(case), case["weights"], monkeypatch)
    theirs = torch.tensor(case["result"], dtype=torch.float64)
    assert float(theirs.norm()) > 0.1
    torch.testing.assert_close(result, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "case", [case for _, case in CASES if "chances" in case], ids=lambda case: case["method"]
)
def test_the_probabilities_of_magprune_are_theirs(case):
    method: Any = METHODS.make(case["method"])
    for delta, theirs in zip(deltas_of(case), case["chances"], strict=True):
        chances = selection.chances_of(delta, method.density, method.epsilon)
        expected = torch.tensor(theirs, dtype=torch.float64)
        nonzero = delta != 0  # which of equal magnitudes, here zeros, ranks first does not matter
        torch.testing.assert_close(chances[nonzero], expected[nonzero], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            chances.sort(1).values, expected.sort(1).values, rtol=1e-6, atol=0
        )


def test_every_variant_of_every_elementwise_method_is_pinned():
    """mergekit's each; peft's have their own file."""
    pinned = {(case["method"].partition(":")[0], peer.split()[0]) for peer, case in CASES}
    mergekit = "ties dare_linear dare_ties breadcrumbs breadcrumbs_ties della della_linear sce"
    assert {name for name, peer in pinned if peer == "mergekit"} == set(mergekit.split())
    assert ("della", "DELLA's") in pinned and ("sce", "FuseChat's") in pinned


@pytest.mark.parametrize("case", STORED["differ"], ids=lambda case: case["call"])
def test_documented_differences_from_mergekit(case, monkeypatch):
    """It drops all where none of the largest is to go, and weighs small adapters alike."""
    deltas = torch.tensor(STORED["deltas"]["small"], dtype=torch.float64) * case["scale"]
    result = ours(case["method"], deltas, case["weights"], monkeypatch)
    theirs = torch.tensor(case["result"], dtype=torch.float64)
    assert float((result - theirs).norm() / result.norm()) > 0.1
    if case["method"] == "sce":
        larger = ours("sce", deltas / case["scale"], case["weights"], monkeypatch)
        torch.testing.assert_close(result, larger * case["scale"], rtol=1e-9, atol=0)
    else:
        assert float(theirs.norm()) == 0
        pruned = ours("magnitude_prune:density=0.5", deltas, case["weights"], monkeypatch)
        torch.testing.assert_close(result, pruned)  # nothing of the largest is dropped
