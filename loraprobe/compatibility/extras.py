"""Issues about the tensors of an adapter that are not plain factors, by extras.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loraprobe.adapters import Adapter, Extra, copied_weight, same_weight
from loraprobe.adapters.experts import stacks
from loraprobe.base import Base
from loraprobe.errors import AdapterError, BaseError
from loraprobe.findings import finding
from loraprobe.formatting import count
from loraprobe.records import Issue, Severity

KINDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def extra_issues(
    adapters: Sequence[Adapter], base: Base | None, *, composing: bool
) -> Iterator[Issue]:
    """One issue per adapter and kind of extra; an error if a composition would drop it."""
    for adapter in adapters:
        if found := stacks(adapter.layout):
            yield _experts(adapter, found)
        by_kind: dict[str, list[Extra]] = {}
        for extra in adapter.extras:
            by_kind.setdefault(extra.kind, []).append(extra)
        for kind, extras in by_kind.items():
            if kind == "base_copy":
                for extra in extras:
                    yield _base_copy(adapter, extra, base)
            else:
                yield _of_kind(adapter, kind, extras, "error" if composing else "warning")


def _experts(adapter: Adapter, found: Mapping[str, Sequence[str]]) -> Issue:
    """A note about parameters, whose experts are modules of their own here."""
    first, paths = next(iter(found.items()))
    message = (
        f"{adapter.name} changes {count(len(found), 'parameter')} (target_parameters), {first} "
        f"with {count(len(paths), 'expert')} first. Each expert counts as a module here. Merges "
        "and compositions with constant gates keep them; token routers do not."
    )
    return finding("target-parameter", (adapter.name,), message, paths[0])


def _of_kind(adapter: Adapter, kind: str, extras: Sequence[Extra], severity: Severity) -> Issue:
    """A note for a kind that merges and compositions keep, else an issue of this severity."""
    if kept := KINDS["kept"].get(kind):
        what, cure, severity = kept["what"], "", "note"
        consequence = KINDS.get(kept["figures"], kept["figures"])
    else:
        dropped = KINDS["dropped"].get(kind, KINDS["dropped"]["unknown"])
        what, cure = dropped["what"], dropped["cure"]
        consequence = "a composition of factors would drop them"
    tensors = f"{count(len(extras), 'tensor')}, {extras[0].key} first"
    message = f"{adapter.name} holds {what} ({tensors}); {consequence}."
    return Issue(severity, extras[0].code, (adapter.name,), message, cure, extras[0].module)


def _base_copy(adapter: Adapter, extra: Extra, base: Base | None) -> Issue:
    """An issue about a copy of a base weight, which peft saves for targeted embeddings."""
    names, copy = (adapter.name,), f"{adapter.name} carries a copy of the base's {extra.module}"
    same = None if base is None else _is_of_base(adapter, extra, base)
    if same:
        message = f"{copy}, the same as the base's."
        return finding("base-copy", names, message, extra.module, severity="note", cure="")
    if same is None:
        message = (
            f"{copy}, which compositions leave out; that is right unless the vocabulary was "
            "resized in training."
        )
        cure = "Give --base to have them compared."
        return finding("base-copy", names, message, extra.module, severity="warning", cure=cure)
    message = (
        f"{copy} that differs from the base given here: the vocabulary was resized, or the base is "
        "another."
    )
    return finding("base-copy", names, message, extra.module)


def _is_of_base(adapter: Adapter, extra: Extra, base: Base) -> bool | None:
    """Whether a copy equals the base's weight up to its dtype's rounding; None if unreadable."""
    if adapter.weights_file is None or extra.module is None:
        return None
    try:
        weight, copy = base.weight(extra.module), copied_weight(adapter, extra)
    except (AdapterError, BaseError):
        return None
    return same_weight(copy, weight if copy.shape == weight.shape else weight.mT)
