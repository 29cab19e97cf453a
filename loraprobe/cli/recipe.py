"""Reads a mergekit recipe of adapters of one base (`base+adapter`) as options of merge.

mergekit merges each adapter into the base, then the whole models. Its linear methods on such models
equal a weighted sum of the deltas (`merge_methods/linear.py`, `generalized_task_arithmetic.py`);
everything else is refused by its key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprobe.errors import UsageError

KEYS = "merge_method models base_model parameters dtype out_dtype tokenizer_source".split()
INERT = ("density", "int8_mask", "rescale")  # parameters that linear methods do not read
PARAMETERS = ("weight", "normalize", "lambda", *INERT)
SPARSE = ("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della")


@dataclass(frozen=True)
class _Model:
    """One entry of `models`; `adapter` is "" for the base itself."""

    base: str
    adapter: str
    parameters: Mapping[str, Any]


def inexact(part: str, cure: str) -> UsageError:
    """The error for a part of a recipe that no adapter expresses exactly."""
    return UsageError(f"{part} of mergekit cannot be expressed exactly; {cure}.")


def from_recipe(recipe: Mapping[Any, Any], file: str) -> dict[str, Any]:
    """The options of merge by name. Raises UsageError for what cannot be expressed exactly."""
    try:
        return _options(recipe)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _options(recipe: Mapping[Any, Any]) -> dict[str, Any]:
    for key in recipe:
        if key not in KEYS:
            raise inexact(repr(key), "leave it out, or merge with mergekit")
    if recipe.get("tokenizer_source") not in (None, "base"):
        raise inexact("tokenizer_source", "an adapter keeps the base's tokenizer: leave it out")
    method = recipe["merge_method"]
    if method not in ("linear", "task_arithmetic"):
        near = "use linear or task_arithmetic"
        if method in SPARSE:
            near = f"--method {method} gives the nearest adapter of a rank, with its error"
        raise inexact(f"merge_method {method!r}", near)
    shared = _parameters(recipe.get("parameters"))
    models = [_model(entry, shared) for entry in recipe.get("models") or ()]
    base = str(recipe.get("base_model") or (models[0].base if models else ""))
    for model in models:
        if model.base != base:
            raise inexact(f"a model on {model.base!r}", f"give all as {base}+ADAPTER")
        if "weight" not in model.parameters and (model.adapter or method == "linear"):
            raise UsageError("a model has no weight; give it parameters: weight.")
    experts = [model for model in models if model.adapter]
    if not experts:
        raise UsageError("no model is base+adapter; name one so.")
    scale = _scale(method, models if method == "linear" else experts, shared)
    dtype = recipe.get("out_dtype") or recipe.get("dtype")
    return {
        "adapters": [model.adapter for model in experts],
        "method": "task_arithmetic",
        "weights": [float(model.parameters["weight"]) * scale for model in experts],
    } | ({"dtype": str(dtype)} if dtype else {})


def _scale(method: str, counted: list[_Model], shared: Mapping[str, Any]) -> float:
    """The factor of all weights: one through their sum with `normalize`, and `lambda`."""
    total = sum(float(model.parameters["weight"]) for model in counted)
    if shared.get("normalize", method == "linear"):
        if abs(total) < 1e-8:
            raise inexact("normalize with weights of sum 0", "set normalize to false")
        scale = 1 / total
    elif method == "linear" and not math.isclose(total, 1.0, rel_tol=1e-6):
        what = f"linear without normalize and with weights of sum {total:g}, which scales the base,"
        raise inexact(what, "use task_arithmetic")
    else:
        scale = 1.0
    return scale if method == "linear" else scale * float(shared.get("lambda", 1.0))


def _model(entry: Any, shared: Mapping[str, Any]) -> _Model:
    named = entry.get("model") if isinstance(entry, Mapping) else None
    if not isinstance(named, (str, Mapping)):
        raise inexact(f"the entry {entry!r:.60}", "write model: base+adapter")
    for key in (*entry, *(named if isinstance(named, Mapping) else ())):
        if key not in ("model", "lora", "parameters"):
            raise inexact(repr(key), "leave it out, or merge with mergekit")
    own = _parameters(entry.get("parameters"))
    for key in ("normalize", "lambda"):
        if key in own:
            raise inexact(f"{key} of one model", "give it among the recipe's own parameters")
    if isinstance(named, Mapping):
        base, adapter = (_path(named.get(key)) for key in ("model", "lora"))
    else:
        base, _, adapter = named.partition("+")
    return _Model(base, adapter, {**shared, **own})


def _path(part: Any) -> str:
    """A path with its revision, which mergekit also writes as an object."""
    if not isinstance(part, Mapping):
        return str(part or "")
    revision = part.get("revision")
    return f"{part.get('path')}@{revision}" if revision else str(part.get("path"))


def _parameters(found: Any) -> dict[str, Any]:
    """Parameters that are one number or truth value each."""
    for key, value in (found or {}).items():
        if key not in PARAMETERS:
            raise inexact(repr(key), "leave it out, or merge with mergekit")
        if not isinstance(value, (int, float)):
            raise inexact(f"{key} by layer or by tensor", "give one number")
    return dict(found or {})
