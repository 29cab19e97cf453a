"""Linear merges of what an adapter holds beside plain factors, which are exact.

**DoRA** changes a weight to W_i = diag(c_i) (W0 + s_i B_i A_i), c_i = m_i / rownorm(W0 + s_i B_i
A_i); a plain LoRA has c_i = 1. A linear combination of the changes is

    W = W0 + sum_i w_i (W_i - W0) = diag(c) W0 + L
    c = 1 + sum_i w_i (c_i - 1)            L = sum_i w_i s_i diag(c_i) B_i A_i

which is DoRA's form with direction W0 + diag(1/c) L and magnitudes c * rownorm(W0 + diag(1/c) L):
the rank is at most the sum of the ranks. Cutting L to a rank (Eckart and Young) is best for W.

Where c is 0, or nearly 0, nothing of W0's row is left in W, so DoRA has no such form: it is
refused.

**A full weight** (modules_to_save, a trained bias) replaces a parameter of the base, and **trained
token rows** (`trainable_token_indices`) replace some of its rows:

    W = W0 + sum_i w_i (W_i - W0)

An adapter that replaces nothing counts as W0. W0 is not needed where the weights sum to 1: of full
weights, those of all adapters, each of which has the parameter; of a token's row, those of the
adapters that trained it. Otherwise it is read from the base. For a parameter that the base does not
have (the head of a classifier) only the mean exists.

**The bias b_i of lora_B** adds w_i s_i b_i.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.adapters.types import TokenRows
from loraprobe.errors import BaseError, CompatibilityError, UnsupportedAdapter
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging._compress import MergedModule, compress_factors, rounding2
from loraprobe.merging._method import BaseTensors, MergeInputs
from loraprobe.records import Issue

SMALL_SCALE = 1e-6  # least size of a row's scale c, by which its update is divided
SUM_TOLERANCE = 1e-9  # weights that sum to 1 up to the rounding of their own sum
ROWS = "token-delta"
FOLD = "merge one of them into its base with peft first"


def merge_extras(inputs: MergeInputs) -> tuple[dict[str, Any], list[Issue]]:
    """What a linear merge holds beside factors and magnitudes, by the names of `adapter_of`.

    Also warnings for what was dropped. Raises UnsupportedAdapter, naming parameter and cure, where
    a merge would not be exact and its issue code is not allowed; CompatibilityError where shapes
    differ.
    """
    if not inputs.coefficients:
        return {}, []
    whole, dropped = _full_weights(inputs)
    rows, lost = _token_rows(inputs)
    return {"whole": whole, "offsets": _lora_biases(inputs), "token_rows": rows}, dropped + lost


def merge_dora(inputs: MergeInputs, path: str, updates: Sequence[LowRank]) -> MergedModule:
    """One module of a merged DoRA adapter: a direction, and the magnitudes [out] that belong to it.

    updates: those of the adapters, of rank 0 where one lacks the module. Raises CompatibilityError
    for a base of another shape.
    """
    from loraprobe.composition.dora import (  # a merge of LoRAs needs neither
        change_products,
        magnitude_ratio,
    )

    assert inputs.base is not None
    weight, info = inputs.base.weight(path), inputs.layout[path]
    if weight.shape != (info.out_features, info.in_features):
        raise CompatibilityError(
            f"Module {path} is {[info.out_features, info.in_features]} in the adapters and "
            f"{list(weight.shape)} in the base; give the base that they were trained on."
        )
    w = torch.tensor(inputs.coefficients, dtype=torch.float64)
    wide, ratios = _scaled(inputs, path, updates, weight)
    c, change = _sum_of_scaled(w, wide, ratios)
    if bool((c.abs() < SMALL_SCALE).any()):
        raise UnsupportedAdapter(
            f"The weights leave nothing of the base's weight in a row of {path}, which no DoRA "
            "adapter can say; take other weights, or merge the adapters into the base with peft."
        )
    kept = compress_factors(change, inputs.config.rank)
    direction = LowRank(kept.update.A, kept.update.B / c[:, None]).to(inputs.dtype)
    magnitudes = c * (1 / magnitude_ratio(direction, torch.ones(len(weight)), weight))
    read = direction.to(torch.float64)
    inner = change_products(wide, ratios, weight)
    return MergedModule(
        update=direction,
        inner=inner,
        norm2=float(w @ inner @ w),
        lost2=kept.lost2,
        gained2=0.0,
        rounded2=rounding2(kept.update, LowRank(read.A, read.B * c[:, None])),
        magnitudes=magnitudes.to(torch.promote_types(inputs.dtype, torch.float32)),
    )


def add_dora(inputs: MergeInputs, path: str, updates: Sequence[LowRank], weight: Tensor) -> Tensor:
    """diag(c) W0 + L of one module, from W0 [out, in], which is written over."""
    w = torch.tensor(inputs.coefficients, dtype=torch.float64)
    c, change = _sum_of_scaled(w, *_scaled(inputs, path, updates, weight))
    if inputs.config.rank is not None:
        change = compress_factors(change, inputs.config.rank).update
    change = change.to(weight.dtype)
    return weight.mul_(c.to(weight)[:, None]).addmm_(change.B, change.A)


def _scaled(
    inputs: MergeInputs, path: str, updates: Sequence[LowRank], weight: Tensor
) -> tuple[list[LowRank], Tensor]:
    """The updates of one module in float64 at scaling 1, and their c_i, [n, out]."""
    from loraprobe.composition.dora import magnitude_ratio

    held = [adapter.magnitudes.get(path) for adapter in inputs.adapters]
    wide = [update.to(torch.float64).folded() for update in updates]
    ones = torch.ones(len(weight), dtype=torch.float64)
    pairs = zip(wide, held, strict=True)
    return wide, torch.stack(
        [ones if m is None else magnitude_ratio(u, m, weight) for u, m in pairs]
    )


def _sum_of_scaled(w: Tensor, wide: Sequence[LowRank], ratios: Tensor) -> tuple[Tensor, LowRank]:
    """c [out] and L of sum_i w_i (W_i - W0)."""
    A = torch.cat([u.A for u in wide])
    B = torch.cat([u.B * (w[i] * ratios[i])[:, None] for i, u in enumerate(wide)], 1)
    return 1 + w @ (ratios - 1), LowRank(A, B)


def _full_weights(inputs: MergeInputs) -> tuple[dict[str, Tensor], list[Issue]]:
    """Name -> merged tensor in the sources' widest dtype, summed in float64; and warnings."""
    merged: dict[str, Tensor] = {}
    notes: list[Issue] = []
    sums_to_1 = abs(sum(inputs.coefficients) - 1) <= SUM_TOLERANCE
    for name in dict.fromkeys(name for adapter in inputs.adapters for name in adapter.whole):
        _check_alone(name, inputs.adapters)
        pairs = zip(inputs.adapters, inputs.coefficients, strict=True)
        held = [(adapter, weight) for adapter, weight in pairs if name in adapter.whole]
        tensors = [adapter.whole[name] for adapter, _ in held]
        for (other, _), tensor in zip(held, tensors, strict=True):
            if tensor.shape != tensors[0].shape:
                raise CompatibilityError(
                    f"{name} is {list(tensors[0].shape)} in {held[0][0].name} and "
                    f"{list(tensor.shape)} in {other.name}: their vocabularies, labels or bases "
                    "differ; merge adapters of one base and one set of labels."
                )
        is_mean = sums_to_1 and len(held) == len(inputs.adapters)
        start = None if is_mean else _in_base(name, tensors[0], inputs.base)
        if is_mean or start is not None:
            total = torch.zeros_like(tensors[0], dtype=torch.float64)
            if start is not None:
                total += start.to(torch.float64) * (1 - sum(weight for _, weight in held))
            for tensor, (_, weight) in zip(tensors, held, strict=True):
                total += weight * tensor.to(torch.float64)
            merged[name] = total.to(_widest(tensors))
            continue
        holders = tuple(adapter.name for adapter, _ in held)
        code = next(
            (e.code for e in held[0][0].extras if f"{e.module}.{e.key.rpartition('.')[2]}" == name),
            "modules-to-save",
        )
        if code not in inputs.config.allow:
            what = (
                "which the base does not have, so that only its mean exists: every adapter must "
                "have it and the weights must sum to 1; or add"
                if inputs.base is not None
                else "of which only the mean is known without the base (every adapter has it and "
                "the weights sum to 1); add --base=DIR or --base=auto, or"
            )
            raise UnsupportedAdapter(
                f"Adapter {listing(holders)} holds {code.replace('-', '_')} {name}, {what} "
                f"--allow={code} to drop it knowingly."
            )
        message = f"Allowed: {name} was dropped."
        notes.append(Issue("warning", code, holders, message, module=name.rpartition(".")[0]))
    return merged, notes


def _token_rows(inputs: MergeInputs) -> tuple[dict[str, TokenRows], list[Issue]]:
    """Module -> merged rows, in the sources' widest dtype; and a warning for what was dropped."""
    holders = [adapter for adapter in inputs.adapters if adapter.token_rows]
    _check_tying(holders)
    merged: dict[str, TokenRows] = {}
    notes: list[Issue] = []
    for path in dict.fromkeys(path for adapter in holders for path in adapter.token_rows):
        _check_alone(f"{path}.weight", inputs.adapters)
        made = _sum_of_rows(path, inputs)
        if made is not None:
            merged[path] = made
            continue
        names = tuple(adapter.name for adapter in holders if path in adapter.token_rows)
        if ROWS not in inputs.config.allow:
            raise UnsupportedAdapter(
                f"Adapter {listing(names)} holds trained rows of {path} (token_delta) that mix "
                "with the base's, since the weights of the adapters that trained a token do not "
                f"sum to 1; add --base=DIR or --base=auto, or --allow={ROWS} to drop them "
                "knowingly."
            )
        notes.append(Issue("warning", ROWS, names, f"Allowed: the rows of {path} were dropped."))
    return merged, notes


def _sum_of_rows(path: str, inputs: MergeInputs) -> TokenRows | None:
    """The merged rows, summed in float64; None if rows of the base are needed and absent.

    Raises CompatibilityError for rows that do not fit each other or the base.
    """
    pairs = zip(inputs.adapters, inputs.coefficients, strict=True)
    held = [(a.name, a.token_rows[path], weight) for a, weight in pairs if path in a.token_rows]
    names, tables = [name for name, _, _ in held], [rows.values for _, rows, _ in held]
    widths = {table.shape[1] for table in tables}
    if len(widths) > 1:
        raise CompatibilityError(
            f"The rows of {path} have {listing(sorted(map(str, widths)))} entries in "
            f"{listing(names)}: their bases differ; merge adapters of one base."
        )
    tokens = sorted({token for _, rows, _ in held for token in rows.tokens})
    place = {token: number for number, token in enumerate(tokens)}
    total = torch.zeros(len(tokens), widths.pop(), dtype=torch.float64)
    kept = torch.ones(len(tokens), dtype=torch.float64)  # the share of the base's own row
    for (_, rows, weight), table in zip(held, tables, strict=True):
        index = [place[token] for token in rows.tokens]
        total[index] += weight * table.to(torch.float64)
        kept[index] -= weight
    mixed = [n for n, share in enumerate(kept.tolist()) if abs(share) > SUM_TOLERANCE]
    if mixed:
        if inputs.base is None:
            return None
        try:
            table = inputs.base.parameter(f"{path}.weight")
        except BaseError as error:
            raise CompatibilityError(str(error)) from error
        if tokens[mixed[-1]] >= len(table):
            raise CompatibilityError(
                f"Token {tokens[mixed[-1]]} of {path} was trained, and the base has {len(table)} "
                "rows there; resize the base's embedding as in the adapter's training."
            )
        if table.shape[1] != total.shape[1]:
            raise CompatibilityError(
                f"The rows of {path} have {total.shape[1]} entries in {listing(names)} and "
                f"{table.shape[1]} in the base; give the base that they were trained on."
            )
        start = table[[tokens[n] for n in mixed]]
        total[mixed] += kept[mixed, None] * start.to(torch.float64)
    return TokenRows(tuple(tokens), functools.partial(total.to, _widest(tables)))


def _lora_biases(inputs: MergeInputs) -> dict[str, Tensor]:
    """Path -> bias of B, sum_i w_i s_i b_i [out], at scaling 1; {} where no adapter has any.

    An adapter's config declares biases for all modules or for none, so modules without one get
    zeros. Raises UnsupportedAdapter where peft has no such adapter: with DoRA, and in embeddings.
    """
    holders = [adapter for adapter in inputs.adapters if adapter.offsets]
    if not holders:
        return {}
    dora = [adapter.name for adapter in inputs.adapters if adapter.magnitudes]
    embeddings = [path for path, info in inputs.layout.items() if info.kind == "embedding"]
    if dora or embeddings:
        what = f"DoRA ({listing(dora)})" if dora else f"the embedding {embeddings[0]}"
        raise UnsupportedAdapter(
            f"Adapter {holders[0].name} has biases of B (lora_bias), which peft does not take "
            f"together with {what}; leave one of them out, or merge it into the base with peft "
            "first."
        )
    offsets = {}
    for path, info in inputs.layout.items():
        total = torch.zeros(info.out_features, dtype=torch.float64)
        for adapter, weight in zip(inputs.adapters, inputs.coefficients, strict=True):
            if path in adapter.offsets:
                scaling = adapter.layout[path].scaling
                total += weight * scaling * adapter.offsets[path].to(torch.float64)
        offsets[path] = total.to(torch.float32)
    return offsets


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _in_base(name: str, like: Tensor, base: BaseTensors | None) -> Tensor | None:
    """The base's tensor; None without a base, or where the base has no such parameter."""
    if base is None:
        return None
    try:
        found = base.parameter(name)
    except BaseError:
        return None
    if found.shape != like.shape:
        raise CompatibilityError(
            f"{name} is {list(like.shape)} in the adapters and {list(found.shape)} in the base; "
            "the vocabulary was resized in training, or the base is another one."
        )
    return found


def _check_alone(name: str, adapters: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter for a weight that adapters change in two ways."""
    path, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return
    whole = [adapter.name for adapter in adapters if name in adapter.whole]
    factors = [adapter.name for adapter in adapters if path in adapter.layout]
    rows = [adapter.name for adapter in adapters if path in adapter.token_rows]
    for one, ones, other, others in (
        ("is replaced whole", whole, "has factors", factors),
        ("has trained token rows", rows, "factors", factors),
        ("has trained token rows", rows, "a whole weight", whole),
    ):
        if ones and others:
            raise UnsupportedAdapter(
                f"{path} {one} in {listing(ones)} and {other} in {listing(others)}, which one "
                f"adapter cannot hold; {FOLD}."
            )


def _check_tying(holders: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter where peft's treatment of a tied head would depend on the base.

    peft ties the head's rows to the embedding's unless the config names both with other tokens, and
    writes equal tokens of both only for a base that ties nothing.
    """
    modules = {path for adapter in holders for path in adapter.token_rows}
    lists = [[rows.tokens for rows in adapter.token_rows.values()] for adapter in holders]
    untied = any(len(given) > 1 and len(set(given)) == 1 for given in lists)
    differing = [a.name for a, given in zip(holders, lists, strict=True) if len(set(given)) > 1]
    if differing or (len(modules) > 1 and not untied):
        names = differing or [adapter.name for adapter in holders]
        raise UnsupportedAdapter(
            f"Adapter {listing(names)} holds trained rows (token_delta) of "
            f"{listing(sorted(modules))} for different tokens, which peft ties or not by the base; "
            f"{FOLD}."
        )
