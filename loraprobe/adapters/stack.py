"""Adapters on adapters: B was trained on a base with A merged into it.

A is then a part of the base of B: it keeps gate 1 in every system that holds B, whatever the gates
or the method are, and is there once, however many adapters stand on it. `Adapter.below` lists such
adapters, the lowest first.

    base + A + sum_i g_i dW_i          every system that holds B

The sum needs changes that add up. A weight that B replaces or scales as a whole (modules_to_save,
token rows, DoRA) does not add to what A changes in it, so that such a pair is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from loraprobe.adapters.names import layer_pattern, relation, unquantised
from loraprobe.adapters.types import Adapter
from loraprobe.errors import CompatibilityError, UnsupportedAdapter


def below(adapters: Iterable[Adapter]) -> list[Adapter]:
    """The adapters below these, each once, the lowest first."""
    return _each_once(lower for adapter in adapters for lower in adapter.below)


def _each_once(adapters: Iterable[Adapter]) -> list[Adapter]:
    found: list[Adapter] = []
    for one in adapters:
        if not any(same(one, other) for other in found):
            found.append(one)
    return found


def with_below(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters and, after them, those below that are none of them."""
    lower = (one for one in below(adapters) if not any(same(one, other) for other in adapters))
    return [*adapters, *lower]


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters have the same weights and scalings, whatever their names are."""
    return one is other or (one.layout == other.layout and one.sha256 == other.sha256)


def changed_together(
    adapters: Sequence[Adapter], change: Callable[[list[Adapter]], list[Adapter]]
) -> list[Adapter]:
    """The adapters after a change of them and of those below, in one call.

    change: returns as many adapters as it gets, in their order.
    """
    every = with_below(adapters)
    made = change(every)
    changed = list(zip(every, made, strict=True))

    def changed_one(one: Adapter) -> Adapter:
        new = next(new for old, new in changed if same(old, one))
        return replace(new, below=()) if new.below else new

    return [
        replace(new, below=tuple(map(changed_one, old.below))) if old.below else new
        for old, new in zip(adapters, made, strict=False)
    ]


def stacked_on(adapter: Adapter, lower: Sequence[Adapter]) -> Adapter:
    """An adapter that was trained on the base with others in it. lower: these, the lowest first.

    Raises CompatibilityError for adapters of different bases and for one that stands on itself,
    UnsupportedAdapter for changes that do not add up.
    """
    parts = (one for held in lower for one in (*held.below, held))
    under = [replace(one, below=()) for one in _each_once(parts)]
    for at, one in enumerate([*under, adapter]):
        for other in under[:at]:
            _check_pair(one, other)
    base = next((one for one in under if one.base_model), None)
    if base is not None and base.base_model != adapter.base_model:
        own = {"base_model_name_or_path": base.base_model, "revision": base.config.get("revision")}
        config = {**adapter.config, **own}
        adapter = replace(adapter, base_model=base.base_model, config=config)
    return replace(adapter, below=tuple(under))


def _check_pair(upper: Adapter, lower: Adapter) -> None:
    """Raises an error for an adapter that cannot stand on another."""
    names = f"{upper.name} cannot stand on {lower.name}"
    if same(upper, lower):
        raise CompatibilityError(
            f"{names}: they are the same adapter; name what it was trained on, or REF,on=base."
        )
    ours, theirs = upper.base_model or "", lower.base_model or ""
    # The config of an adapter may name the one below it as its base.
    source = lower.source
    names_lower = (source.reference, source.reference.partition("@")[0], str(source.path))
    known = ours and theirs and ours not in names_lower
    if known and relation(ours, theirs) == "different" and unquantised(ours) != unquantised(theirs):
        raise CompatibilityError(
            f"{names}: {lower.name} was trained on {theirs} and {upper.name} on {ours}; name an "
            "adapter of its base."
        )
    of_kind = {layer_pattern(path): info.shape for path, info in lower.layout.items()}
    for path, info in upper.layout.items():
        same_path = lower.layout.get(path)  # else a module of the same kind in another layer
        shape = same_path.shape if same_path else of_kind.get(layer_pattern(path), info.shape)
        if shape != info.shape:
            raise CompatibilityError(
                f"{names}: module {path} is {list(info.shape)} in {upper.name} and {list(shape)} "
                f"in {lower.name}, so they belong to different bases."
            )
    owners = [name.rpartition(".")[0] for name in upper.whole]
    for path in (*upper.magnitudes, *owners, *upper.token_rows):
        if path in lower.touched:
            raise UnsupportedAdapter(
                f"{names}: it replaces or scales the weight of {path}, which {lower.name} changes "
                f"too, and these do not add up; merge {lower.name} into the base with peft and "
                "give that as --base, with REF,on=base."
            )
