"""mergekit recipes of adapters: exactly what mergekit computes on whole models, or refused by key.

The oracle merges whole weights by mergekit's formulas (`merge_methods/linear.py` and
`generalized_task_arithmetic.py`) and takes the difference to the base.
"""

from __future__ import annotations

import making
import pytest
import torch
import yaml
from test_cli import one_sentence

import loraprobe

BASE = "org/base"
LONG = {"model": {"path": BASE}, "lora": {"path": "one"}}


def deltas(path) -> dict[str, torch.Tensor]:
    adapter = loraprobe.load(path)
    return {name: making.dense(update).double() for name, update in adapter.modules.items()}


def recipe(place, **changes) -> str:
    """A recipe of both adapters; None leaves a key out."""
    models = changes.pop("models", None) or [
        {"model": f"{BASE}+one", "parameters": {"weight": 0.6}},
        {"model": f"{BASE}+two", "parameters": {"weight": 0.2}},
    ]
    content = {"merge_method": "linear", "base_model": BASE, "models": models, **changes}
    text = yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    (place / "recipe.yml").write_text(text, encoding="utf-8")
    return "recipe.yml"


def merged(base, models, weights, method, normalize, scale=1.0):
    """A whole weight as mergekit merges it."""
    if method == "linear":
        whole = sum(w * m for w, m in zip(weights, models, strict=True))
        return whole / sum(weights) if normalize else whole
    mixed = sum(w * (m - base) for w, m in zip(weights, models, strict=True))
    return base + scale * (mixed / sum(weights) if normalize else mixed)


@pytest.mark.parametrize(
    ("method", "parameters", "how"),
    [
        ("linear", {}, {"normalize": True}),
        ("task_arithmetic", {}, {"normalize": False}),
        ("task_arithmetic", {"normalize": True}, {"normalize": True}),
        ("task_arithmetic", {"lambda": 0.5}, {"normalize": False, "scale": 0.5}),
    ],
)
def test_a_recipe_gives_what_mergekit_computes(place, method, parameters, how):
    file = recipe(place, merge_method=method, parameters=parameters, dtype="float32")
    shown = making.call("merge", file, "-o", "out")
    assert shown.exit_code == 0, shown.stderr
    one, two, out = (deltas(place / name) for name in ("one", "two", "out"))
    for name, delta in out.items():
        base = torch.randn(delta.shape, dtype=torch.float64)
        models = [base + one[name], base + two[name]]
        expected = merged(base, models, [0.6, 0.2], method, **how) - base
        scale = max(one[name].norm(), two[name].norm())
        # The factors are written in single precision, whose rounding the rank adds up.
        assert (delta - expected).norm() < 1e-5 * scale


def test_a_base_among_the_models_of_linear_counts_in_the_sum(place):
    models = [
        {"model": BASE, "parameters": {"weight": 0.5}},
        {
            "model": {"model": {"path": BASE}, "lora": {"path": "one"}},
            "parameters": {"weight": 1.5},
        },
    ]
    shown = making.call("merge", recipe(place, models=models, dtype="float32"), "-o", "out")
    assert shown.exit_code == 0, shown.stderr
    one, out = deltas(place / "one"), deltas(place / "out")
    for name, delta in out.items():
        assert (delta - 0.75 * one[name]).norm() < 1e-5 * one[name].norm()


def test_the_command_line_wins_over_a_recipe(place):
    file = recipe(place, merge_method="task_arithmetic", dtype="float32")
    shown = making.call("merge", file, "-o", "out", "--weights", "1,0")
    assert shown.exit_code == 0, shown.stderr
    one, out = deltas(place / "one"), deltas(place / "out")
    assert all((out[name] - one[name]).norm() < 1e-5 * one[name].norm() for name in out)


OTHER = {"model": "other/base+two", "parameters": {"weight": 1}}
MODEL = {"model": f"{BASE}+one", "parameters": {"weight": 1.0}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"merge_method": "slerp"}, "merge_method 'slerp'"),
        ({"merge_method": "dare_ties"}, "merge_method 'dare_ties'"),
        ({"slices": []}, "'slices'"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"parameters": {"t": 0.5}}, "'t'"),
        ({"parameters": {"normalize": False}}, "linear without normalize"),
        ({"models": [MODEL | {"parameters": {"weight": [0, 1]}}]}, "weight by layer"),
        ({"models": [MODEL | {"layer_range": [0, 8]}]}, "'layer_range'"),
        (
            {"models": [MODEL, {"model": "other/base+two", "parameters": {"weight": 1}}]},
            "other/base",
        ),
        ({"models": [{"model": f"{BASE}+one"}]}, "weight"),
        ({"models": [{"model": BASE, "parameters": {"weight": 1}}]}, "base+adapter"),
        ({"merge_method": "ties"}, "--method ties"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(place, changes, key):
    said = one_sentence(making.call("merge", recipe(place, **changes), "-o", "out"))
    assert key in said and not (place / "out").exists()
