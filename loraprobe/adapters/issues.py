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
from collections.abc import Iterator

from loraprobe.adapters.config import (
    PEFT_DEFAULT,
    TRAINERS,
    Endings,
    unknown_keys,
    untargeted,
)
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.paths import layer_pattern
from loraprobe.adapters.types import Adapter
from loraprobe.defaults import EXTREME_NORM
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.patterns import PatternError
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

# Kind of extra -> the config key without which peft does not load it.
FLAGS = {"dora_magnitude": "use_dora", "lora_bias": "lora_bias"}
# Config key -> the kind of extra that the file then holds.
PROMISED = {
    **{flag: kind for kind, flag in FLAGS.items()},
    "trainable_token_indices": "token_delta",
    "modules_to_save": "modules_to_save",
}
SAME = {"unclear_tokens": "token_delta"}  # tensors that are there, and have an issue of their own


def config_issues(adapter: Adapter) -> Iterator[Issue]:
    """Unknown keys, a missing lora_alpha, an initialisation that changes the base, lost tensors."""
    names, raw = (adapter.name,), adapter.config
    unknown = unknown_keys(raw)
    if filled := [key for key in unknown if raw[key]]:
        yield finding(
            "unknown-config",
            names,
            f"The config sets {', '.join(filled)}, which loraprobe does not know and which may "
            "change what the adapter computes.",
        )
    if trainers := [f"{key} ({TRAINERS[key]})" for key in raw if key in TRAINERS]:
        yield finding(
            "trainer-config",
            names,
            "The config has keys of a trainer, which do not change what the adapter does: "
            f"{', '.join(trainers)}.",
        )
    yield from _initialisation(adapter)
    if empty := [key for key in unknown if not raw[key]]:
        yield finding(
            "unknown-config-empty",
            names,
            f"The config has unknown keys without a value: {', '.join(empty)}.",
        )
    if "lora_alpha" not in raw:
        yield finding(
            "missing-alpha",
            names,
            f"The config has no lora_alpha; peft then takes {PEFT_DEFAULT}, which need not be what "
            "the adapter was trained with.",
        )
    yield from _missing(adapter)
    held, saved = [n for n in adapter.whole if n.endswith(".weight")], raw.get("modules_to_save")
    asked = (saved,) if isinstance(saved, str) else tuple(map(str, saved or ()))
    # peft compares the ends of names as they are: "norm" names input_layernorm too.
    if loose := [name for name in held if not name.rpartition(".")[0].endswith(asked)]:
        yield finding(
            "shared-weights",
            names,
            f"The file holds {loose[0]}, which modules_to_save does not name: peft writes it over "
            "the base's weight, also where another layer shares that; here one layer changes.",
            loose[0].rpartition(".")[0],
        )
    if raw.get("ensure_weight_tying"):
        yield finding(
            "shared-weights",
            names,
            "The config sets ensure_weight_tying, which adapts layers that share a weight.",
        )


def _initialisation(adapter: Adapter) -> Iterator[Issue]:
    """An error for a value of init_lora_weights that may have changed the base."""
    names, init = (adapter.name,), adapter.config.get("init_lora_weights")
    if not isinstance(init, str) or not init or init.lower() in KEEPS_BASE:
        return
    value = f"init_lora_weights={reprlib.repr(init)}"
    method = next((m for start, m in CHANGES_BASE.items() if init.lower().startswith(start)), None)
    if method is None:
        yield finding(
            "init-unknown",
            names,
            f"{adapter.name} was initialised in a way that is not known ({value}), which may have "
            "changed the base weights; peft does not load it.",
        )
    else:
        yield finding(
            "init-changed-base",
            names,
            f"{adapter.name} was initialised by {method} ({value}), which changes the base "
            "weights, and was saved without conversion: it fits only that changed base.",
            cure=LOFTQ if method == "LoftQ" else None,
        )


def _missing(adapter: Adapter) -> Iterator[Issue]:
    """Errors for absent tensors that the config requires: all of a kind, or some modules'."""
    names, raw, extras = (adapter.name,), adapter.config, adapter.extras
    kinds = {SAME.get(extra.kind, extra.kind) for extra in extras}
    if absent := [key for key, kind in PROMISED.items() if raw.get(key) and kind not in kinds]:
        yield finding(
            "missing-tensors",
            names,
            f"The config sets {' and '.join(absent)}, but the file has no tensors for it.",
        )
    for kind, flag in FLAGS.items():
        held = {extra.module for extra in extras if extra.kind == kind}
        lost = [path for path in adapter.layout if path not in held]
        if held and lost:
            yield finding(
                "missing-tensors",
                names,
                f"The config sets {flag}, but the file lacks its tensor for "
                f"{count(len(lost), 'module')}, {lost[0]} first.",
                lost[0],
            )


def incompleteness(adapter: Adapter) -> Iterator[Issue]:
    """Targets without weights, weights without targets, and layers that differ."""
    names = (adapter.name,)
    yield from _unused_targets(adapter)
    yield from _layers(adapter)
    try:
        beyond = untargeted(without_experts(adapter.layout), adapter.config)
    except PatternError as error:
        yield finding(
            "targets-unreadable",
            names,
            f"The config's targets cannot be read as peft reads them: {error}.",
        )
        return
    if beyond:
        yield finding(
            "weights-untargeted",
            names,
            f"The file holds weights for {count(len(beyond), 'module')} that the config does not "
            f"target or excludes, {beyond[0]} first: peft leaves them out, and a merge or a router "
            "would apply them.",
            beyond[0],
        )


def _unused_targets(adapter: Adapter) -> Iterator[Issue]:
    """A warning for names in target_modules that fit nothing in the file."""
    held = [*adapter.layout, *(extra.module for extra in adapter.extras if extra.module)]
    targets = adapter.config.get("target_modules")
    if not isinstance(targets, (list, tuple)) or not held:
        return  # a regular expression, "all-linear" or nothing does not list the modules
    listed = Endings(targets)
    matched = {name for path in held for name in listed.of(path)}
    if lost := [str(target) for target in targets if str(target) not in matched]:
        yield finding(
            "targets-without-weights",
            (adapter.name,),
            f"The config targets {listing(lost[:4])}{' and more' if lost[4:] else ''}, for which "
            "the file holds no weights: where the base has such modules they stay untouched.",
        )


def _layers(adapter: Adapter) -> Iterator[Issue]:
    """A warning for modules that some layers lack, a note for shapes that differ between layers.

    A parent, such as `self_attn`, should have the same children in every layer that has it. In
    nearly all models a module has one shape in all layers.
    """
    children: dict[str, dict[str, set[str]]] = {}
    shapes: dict[str, set[tuple[int, int]]] = {}
    for path, info in adapter.layout.items():
        parent, _, child = path.rpartition(".")
        children.setdefault(layer_pattern(parent), {}).setdefault(parent, set()).add(child)
        shapes.setdefault(layer_pattern(path), set()).add(info.shape)
    lost = []
    for parents in children.values():
        everywhere = set().union(*parents.values())
        lost += [f"{p}.{c}" for p, own in parents.items() for c in sorted(everywhere - own)]
    if lost:
        yield finding(
            "layers-uneven",
            (adapter.name,),
            f"{len(lost)} {'module lacks' if len(lost) == 1 else 'modules lack'} weights that "
            f"other layers have, {lost[0]} first.",
            lost[0],
        )
    for pattern, held in shapes.items():
        if len(held) > 1:
            listed = " and ".join(str(list(shape)) for shape in sorted(held)[:3])
            yield finding(
                "shapes-uneven",
                (adapter.name,),
                f"{pattern} has different shapes in different layers, such as {listed}.",
            )
            return


def extreme_norm(name: str, norm: float, path: str) -> Iterator[Issue]:
    """A warning if `norm`, the largest delta of the adapter (in module `path`), is implausible."""
    if norm > EXTREME_NORM:
        yield finding(
            "norm-extreme",
            (name,),
            f"The delta of {name} in {path} has a Frobenius norm of {norm:.0f}, beyond "
            f"{EXTREME_NORM:.0f}; the sound adapters that were measured have less than 20.",
            path,
        )
