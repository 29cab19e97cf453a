"""Checks that an adapter is complete and that its deltas have a plausible size.

peft loads a file that lost modules without a message: an absent module keeps its initial value,
which has no effect. Without the base the full list of modules is unknown, so these are warnings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.expressions import ExpressionError
from loraprobe.adapters.issue_collector import IssueCollector
from loraprobe.adapters.paths import layer_pattern
from loraprobe.adapters.targeting import Names, untargeted
from loraprobe.adapters.types import Extra, ModuleInfo
from loraprobe.defaults import EXTREME_NORM
from loraprobe.formatting import count, listing
from loraprobe.records import Issue


def report_incompleteness(
    infos: Mapping[str, ModuleInfo],
    config: Mapping[str, Any],
    extras: Sequence[Extra],
    found: IssueCollector,
) -> None:
    """Reports targets without weights, weights without targets and layers that differ."""
    _report_targets([*infos, *(extra.module for extra in extras if extra.module)], config, found)
    _report_layers(infos, found)
    _report_shapes(infos, found)
    try:
        beyond = untargeted(without_experts(infos), config)
    except ExpressionError as error:
        found.error(
            "targets-unreadable",
            f"The config's targets cannot be read as peft reads them: {error}.",
            "Correct target_modules, exclude_modules, modules_to_save or layers_pattern in "
            "adapter_config.json.",
        )
        return
    if beyond:
        found.warning(
            "weights-untargeted",
            f"The file holds weights for {count(len(beyond), 'module')} that the config does not "
            f"target, {beyond[0]} first: used here, but peft would leave them out.",
            "Correct target_modules in adapter_config.json, or remove those weights.",
            beyond[0],
        )


def _report_targets(
    held: Collection[str], config: Mapping[str, Any], found: IssueCollector
) -> None:
    targets = config.get("target_modules")
    if not isinstance(targets, (list, tuple)) or not held:
        return  # a regular expression, "all-linear" or nothing does not list the modules
    names = Names(targets)
    matched = {name for path in held for name in names.of(path)}
    lost = [str(target) for target in targets if str(target) not in matched]
    if lost:
        found.warning(
            "targets-without-weights",
            f"The config targets {listing(lost[:4])}{' and more' if lost[4:] else ''}, for which "
            "the file holds no weights: where the base has such modules they stay untouched.",
            "Make sure that the file is complete and that the base has no such modules.",
        )


def _report_layers(paths: Collection[str], found: IssueCollector) -> None:
    """Reports modules that some layers lack.

    A parent, such as `self_attn`, should have the same children in every layer that has it.
    """
    children: dict[str, dict[str, set[str]]] = {}
    for path in paths:
        parent, _, child = path.rpartition(".")
        children.setdefault(layer_pattern(parent), {}).setdefault(parent, set()).add(child)
    lost = []
    for parents in children.values():
        everywhere = set().union(*parents.values())
        lost += [f"{p}.{c}" for p, own in parents.items() for c in sorted(everywhere - own)]
    if lost:
        found.warning(
            "layers-uneven",
            f"{len(lost)} {'module lacks' if len(lost) == 1 else 'modules lack'} weights that "
            f"other layers have, {lost[0]} first.",
            "Unless it was trained so, the file is incomplete; save or download it again.",
            lost[0],
        )


def _report_shapes(infos: Mapping[str, ModuleInfo], found: IssueCollector) -> None:
    """Reports a module whose shape differs between layers; nearly all models have one shape."""
    shapes: dict[str, set[tuple[int, int]]] = {}
    for path, info in infos.items():
        shapes.setdefault(layer_pattern(path), set()).add((info.out_features, info.in_features))
    uneven = [(pattern, sorted(held)) for pattern, held in shapes.items() if len(held) > 1]
    if uneven:
        pattern, held = uneven[0]
        listed = " and ".join(str(list(shape)) for shape in held[:3])
        found.note(
            "shapes-uneven",
            f"{pattern} has different shapes in different layers, such as {listed}.",
            "If the base's layers are alike, the file is damaged.",
        )


def extreme_norm(name: str, norm: float, path: str) -> Iterator[Issue]:
    """A warning if `norm`, the largest delta of the adapter (in module `path`), is implausible."""
    if norm > EXTREME_NORM:
        message = (
            f"The delta of {name} in {path} has a Frobenius norm of {norm:.0f}, beyond "
            f"{EXTREME_NORM:.0f}; the sound adapters that were measured have less than 20."
        )
        cure = (
            "Its training probably diverged; take an earlier checkpoint, or look at its outputs "
            "before composing it."
        )
        yield Issue("warning", "norm-extreme", (name,), message, cure, path)
