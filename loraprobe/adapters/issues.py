"""Finds what is odd in an adapter's config, and what its file lacks.

Some initialisations of LoRA move a part of a base weight W into A and B, so that training starts at
(W - s B0 A0) + s B0 A0. After training the file holds s B A, which fits W - s B0 A0 and not W. When
peft loads such a file, it repeats the change (PiSSA, OLoRA, LoftQ), fails (CorDA), or omits the
change (LoRA-GA). peft's conversion on saving gives a plain LoRA for W of twice the rank and sets
init_lora_weights to true.

peft loads a file that lost modules without a message: an absent module keeps its initial value,
which has no effect. Without the base the full list of modules is unknown, so these are warnings.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from loraprobe.adapters.config import PEFT_DEFAULT, TRAINERS, unknown_keys
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.expressions import ExpressionError
from loraprobe.adapters.extras import FLAGS
from loraprobe.adapters.paths import layer_pattern
from loraprobe.adapters.targeting import Names, untargeted
from loraprobe.adapters.types import Extra, ModuleInfo
from loraprobe.defaults import EXTREME_NORM
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.records import Issue

# The start of a value of init_lora_weights in lower case -> name of the method that changes the
# base.
CHANGES_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}
LOFTQ = (
    "peft has no conversion for it: merge the adapter into the quantised base that LoftQ made, or "
    "train one without LoftQ."
)
# With these values the base weights stay unchanged.
KEEPS_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# Config key -> the kind of extra that the file then holds.
PROMISED = {
    **{flag: kind for kind, flag in FLAGS.items()},
    "trainable_token_indices": "token_delta",
    "modules_to_save": "modules_to_save",
}
SAME = {"unclear_tokens": "token_delta"}  # tensors that are there, and have an issue of their own


def config_issues(
    name: str, raw: Mapping[str, Any], extras: Sequence[Extra], modules: Collection[str]
) -> Iterator[Issue]:
    """Unknown keys, a missing lora_alpha, an initialisation that changes the base, lost tensors.

    name: that of the adapter. modules: the paths with factors.
    """
    unknown = unknown_keys(raw)
    if filled := [key for key in unknown if raw[key]]:
        message = (
            f"The config sets {', '.join(filled)}, which loraprobe does not know and which may "
            "change what the adapter computes."
        )
        yield finding("unknown-config", (name,), message)
    if trainers := [f"{key} ({TRAINERS[key]})" for key in raw if key in TRAINERS]:
        message = (
            "The config has keys of a trainer, which do not change what the adapter does: "
            f"{', '.join(trainers)}."
        )
        yield finding("trainer-config", (name,), message)
    yield from _initialisation(name, raw.get("init_lora_weights"))
    if empty := [key for key in unknown if not raw[key]]:
        message = f"The config has unknown keys without a value: {', '.join(empty)}."
        yield finding("unknown-config-empty", (name,), message)
    if "lora_alpha" not in raw:
        message = (
            f"The config has no lora_alpha; peft then takes {PEFT_DEFAULT}, which need not be what "
            "the adapter was trained with."
        )
        yield finding("missing-alpha", (name,), message)
    yield from _missing(name, raw, extras, modules)


def _missing(
    name: str, raw: Mapping[str, Any], extras: Sequence[Extra], modules: Collection[str]
) -> Iterator[Issue]:
    """Errors for absent tensors that the config requires: all of a kind, or some modules'."""
    kinds = {SAME.get(extra.kind, extra.kind) for extra in extras}
    if absent := [key for key, kind in PROMISED.items() if raw.get(key) and kind not in kinds]:
        message = f"The config sets {' and '.join(absent)}, but the file has no tensors for it."
        yield finding("missing-tensors", (name,), message)
    for kind, flag in FLAGS.items():
        held = {extra.module for extra in extras if extra.kind == kind}
        lost = [path for path in modules if path not in held]
        if held and lost:
            message = (
                f"The config sets {flag}, but the file lacks its tensor for "
                f"{count(len(lost), 'module')}, {lost[0]} first."
            )
            yield finding("missing-tensors", (name,), message, lost[0])


def _initialisation(name: str, init: object) -> Iterator[Issue]:
    """An error for a value of init_lora_weights that may have changed the base."""
    if not isinstance(init, str) or not init or init.lower() in KEEPS_BASE:
        return
    value = f"init_lora_weights={reprlib.repr(init)}"
    method = next((m for start, m in CHANGES_BASE.items() if init.lower().startswith(start)), None)
    if method is None:
        message = (
            f"{name} was initialised in a way that is not known ({value}), which may have "
            "changed the base weights; peft does not load it."
        )
        yield finding("init-unknown", (name,), message)
        return
    message = (
        f"{name} was initialised by {method} ({value}), which changes the base "
        "weights, and was saved without conversion: it fits only that changed base."
    )
    cure = LOFTQ if method == "LoftQ" else None
    yield finding("init-changed-base", (name,), message, cure=cure)


def unused_issues(name: str, unused: Sequence[Extra]) -> Iterator[Issue]:
    """A warning for tensors that peft leaves out."""
    if unused:
        message = (
            f"The file holds {count(len(unused), 'tensor')} ({unused[0].key} first) that peft "
            "leaves out, since the config does not ask for it or its module has no factors; left "
            "out here too."
        )
        yield finding("tensors-unused", (name,), message, unused[0].module)


def incompleteness(
    name: str,
    infos: Mapping[str, ModuleInfo],
    config: Mapping[str, Any],
    extras: Sequence[Extra],
) -> Iterator[Issue]:
    """Targets without weights, weights without targets, and layers that differ."""
    held = [*infos, *(extra.module for extra in extras if extra.module)]
    yield from _targets(name, held, config.get("target_modules"))
    yield from _layers(name, infos)
    yield from _shapes(name, infos)
    try:
        beyond = untargeted(without_experts(infos), config)
    except ExpressionError as error:
        message = f"The config's targets cannot be read as peft reads them: {error}."
        yield finding("targets-unreadable", (name,), message)
        return
    if beyond:
        message = (
            f"The file holds weights for {count(len(beyond), 'module')} that the config does not "
            f"target, {beyond[0]} first: used here, but peft would leave them out."
        )
        yield finding("weights-untargeted", (name,), message, beyond[0])


def _targets(name: str, held: Collection[str], targets: object) -> Iterator[Issue]:
    if not isinstance(targets, (list, tuple)) or not held:
        return  # a regular expression, "all-linear" or nothing does not list the modules
    names = Names(targets)
    matched = {one for path in held for one in names.of(path)}
    lost = [str(target) for target in targets if str(target) not in matched]
    if lost:
        message = (
            f"The config targets {listing(lost[:4])}{' and more' if lost[4:] else ''}, for which "
            "the file holds no weights: where the base has such modules they stay untouched."
        )
        yield finding("targets-without-weights", (name,), message)


def _layers(name: str, paths: Collection[str]) -> Iterator[Issue]:
    """A warning for modules that some layers lack.

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
        message = (
            f"{len(lost)} {'module lacks' if len(lost) == 1 else 'modules lack'} weights that "
            f"other layers have, {lost[0]} first."
        )
        yield finding("layers-uneven", (name,), message, lost[0])


def _shapes(name: str, infos: Mapping[str, ModuleInfo]) -> Iterator[Issue]:
    """A note for a module whose shape differs between layers; nearly all models have one shape."""
    shapes: dict[str, set[tuple[int, int]]] = {}
    for path, info in infos.items():
        shapes.setdefault(layer_pattern(path), set()).add((info.out_features, info.in_features))
    uneven = [(pattern, sorted(held)) for pattern, held in shapes.items() if len(held) > 1]
    if uneven:
        pattern, held = uneven[0]
        listed = " and ".join(str(list(shape)) for shape in held[:3])
        message = f"{pattern} has different shapes in different layers, such as {listed}."
        yield finding("shapes-uneven", (name,), message)


def extreme_norm(name: str, norm: float, path: str) -> Iterator[Issue]:
    """A warning if `norm`, the largest delta of the adapter (in module `path`), is implausible."""
    if norm > EXTREME_NORM:
        message = (
            f"The delta of {name} in {path} has a Frobenius norm of {norm:.0f}, beyond "
            f"{EXTREME_NORM:.0f}; the sound adapters that were measured have less than 20."
        )
        yield finding("norm-extreme", (name,), message, path)
