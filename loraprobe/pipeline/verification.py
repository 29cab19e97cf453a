"""`verify`: whether a merged directory is what its card says, made again from its sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapter import Adapter, read_adapter
from loraprobe.errors import LoraprobeError
from loraprobe.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.pipeline.provenance import read_provenance
from loraprobe.records import Check, Verification

# Relative distance of two merges of the same sources beyond rounding to the written dtype: other
# libraries of linear algebra add numbers in another order.
TOLERANCE = 1e-5


def verify(directory: str | Path) -> Verification:
    """Every promise of the card, one check each; later ones are left out where they cannot be made.

    The directory is read, its sources are had again by commit and compared by sha256, the merge is
    repeated and its deltas compared in factors, and peft loads the directory onto a skeleton.
    Raises AdapterError where the directory has no provenance or cannot be read at all.
    """
    place = Path(directory)
    told = read_provenance(place)
    adapter = read_adapter(place)
    checks = [_readable(adapter), *_in_peft(place, adapter)]
    sources, found = _sources(told)
    checks += found
    if all(check.passed for check in found):
        checks.append(_repeated(told, sources, adapter))
    return Verification(str(directory), tuple(checks))


def _readable(adapter: Adapter) -> Check:
    errors = [issue.message for issue in adapter.issues if issue.severity == "error"]
    count = sum(2 for _ in adapter.modules) + len(adapter.extras)
    if errors:
        return Check("files", False, errors[0])
    return Check("files", True, f"{count} tensors, every one accounted for.")


def _in_peft(place: Path, adapter: Adapter) -> list[Check]:
    from loraprobe.pipeline.peft_skeleton import problems_in_peft

    try:
        problems = problems_in_peft(place, adapter)
    except Exception as error:  # whatever peft raises is what its user would see
        problems = [f"peft does not load it: {str(error).splitlines()[0][:200]}"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        return [Check("peft", False, f"{problems[0]}{more}.")]
    return [Check("peft", True, "peft loads it, all keys matched.")]


def _sources(told: Mapping[str, Any]) -> tuple[list[Adapter], list[Check]]:
    """The sources again, each with a check of its hash."""
    from loraprobe import hub

    sources, checks = [], []
    for source in told["sources"]:
        name, wanted = str(source.get("name")), source.get("sha256")
        label = f"source {name}"
        try:
            adapter = hub.load(pinned(source)).renamed(name)
        except LoraprobeError as error:
            checks.append(Check(label, False, f"{error}{_where_from(source)}"))
            continue
        same = adapter.sha256 == wanted
        message = f"{source.get('reference')}: sha256 {adapter.sha256[:12]}..."
        if not same:
            message += f", but the merge was made of {str(wanted)[:12]}...; the source changed."
        checks.append(Check(label, same, message))
        sources.append(adapter)
    return sources, checks


def _where_from(source: Mapping[str, Any]) -> str:
    """What else may be wrong with a directory that is not there."""
    reference = Path(str(source.get("reference")))
    if source.get("commit") or reference.is_absolute():
        return ""
    return (
        " The card names it as the merge was asked for it: if that was a directory, run verify "
        "where the merge was run."
    )


def pinned(source: Mapping[str, Any]) -> str:
    """A source's reference at the commit it was taken from."""
    reference, commit = str(source.get("reference")), source.get("commit")
    if not commit:
        return reference
    repo, colon, folder = reference.partition(":")
    return f"{repo.partition('@')[0]}@{commit}{colon}{folder}"


def _repeated(told: Mapping[str, Any], sources: Sequence[Adapter], adapter: Adapter) -> Check:
    """The merge made again, and how far the directory's deltas are from it."""
    try:
        again = repeat(told, sources)
    except LoraprobeError as error:
        return Check("merge", False, f"The merge cannot be repeated: {error}")
    return compare(adapter, again)


def repeat(told: Mapping[str, Any], sources: Sequence[Adapter]) -> Adapter:
    """The merge that a provenance describes."""
    from loraprobe.merging import Merged
    from loraprobe.pipeline.commands import merge

    weights = told.get("weights")
    base = told.get("base") or None
    options = Options(
        methods=(str(told["method"]),),
        weights=tuple(map(float, weights)) if weights else None,
        space=told.get("space"),
        rank=told.get("rank", "auto"),
        dtype=str(told.get("dtype", "auto")),
        seed=int(told.get("seed", 0)),
        allow=tuple(told.get("allow") or ()),
        balance=told.get("balance", "none"),
        subtract=tuple(told.get("subtract") or ()),
    )
    made = merge(sources, base=pinned(base) if base else None, options=options).made
    assert isinstance(made, Merged)
    return made.adapter


def compare(found: Adapter, wanted: Adapter) -> Check:
    """||dW_found - dW_wanted||_F / ||dW_wanted||_F over all modules and tensors, from factors."""
    if set(found.modules) != set(wanted.modules):
        odd = sorted(set(found.modules) ^ set(wanted.modules))
        return Check("merge", False, f"The merge made again differs in its modules: {odd[0]}.")
    gap = total = 0.0
    for path, update in wanted.modules.items():
        there = found.modules[path]
        if (there.in_features, there.out_features) != (update.in_features, update.out_features):
            return Check("merge", False, f"The merge made again has another shape in {path}.")
        one, other = (u.to(dtype=torch.float64) for u in (there, update))
        gap += float(difference(one, other).norm()) ** 2
        total += float(other.norm()) ** 2
    for kind in ("magnitudes", "whole", "offsets"):
        ours, theirs = getattr(found, kind), getattr(wanted, kind)
        if set(ours) != set(theirs):
            odd = sorted(set(ours) ^ set(theirs))
            return Check("merge", False, f"The merge made again differs in its {kind}: {odd[0]}.")
        for name, tensor in theirs.items():
            gap += float((ours[name].double() - tensor.double()).square().sum())
            total += float(tensor.double().square().sum())
    distance = math.sqrt(gap / total) if total else math.inf
    allowed = TOLERANCE + 4 * torch.finfo(found.dtype).eps
    said = f"the deltas differ by {distance:.1e} of their norm (allowed {allowed:.1e})"
    if not distance <= allowed:
        return Check("merge", False, f"Made again, {said}: this is another adapter.")
    return Check("merge", True, f"Made again from its sources: {said}.")


def difference(one: LowRank, other: LowRank) -> LowRank:
    """one - other, in factors side by side."""
    a, b = one.folded(), other.folded()
    return LowRank(torch.cat([a.A, b.A]), torch.cat([a.B, -b.B], 1))
