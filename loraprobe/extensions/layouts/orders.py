"""Stacked experts in the order of inputs and outputs of older versions of peft.

Peft 0.17.0 to 0.18.1 exchanged inputs and outputs of modules without `is_transposed`, 0.19.0 those
of all modules (`loraprobe.adapters.experts`). The shapes of the base show it, unless the matrices
are square; then a user says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from loraprobe.adapters.experts import (
    ORDER,
    ORDERED_BY,
    TODAY,
    order_issue,
    targeted,
    version_of,
)
from loraprobe.adapters.layouts import AdapterLayout, BaseForm
from loraprobe.adapters.types import Adapter, Modules
from loraprobe.errors import UsageError
from loraprobe.extensions.layouts import LayoutOptions
from loraprobe.findings import finding
from loraprobe.formatting import count
from loraprobe.lora.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.records import Issue

Order = Literal["new", "old"]  # A reads the inputs of an expert, or its outputs
CHANGED = 0, 19, 0  # the version of peft with an order of its own


class ExpertOrder(AdapterLayout):
    """Brings stacked experts to today's order."""

    def align(
        self, adapters: Sequence[Adapter], base: BaseForm, options: Options | None
    ) -> tuple[Sequence[Adapter], Sequence[Issue]]:
        order = "none" if options is None else options.of_extension(LayoutOptions).expert_layout
        if order == "none" and not any(adapter.stacks for adapter in adapters):
            return adapters, ()
        model = base.model()
        known = [with_known_order(model, adapter) for adapter in adapters]
        if order != "none":
            known = [with_named_order(model, adapter, order) for adapter in known]
        return known, ()


def with_known_order(model: nn.Module | None, adapter: Adapter) -> Adapter:
    """The adapter in today's order and without a finding about it, where a model shows its order.

    Stacks in the other order are exchanged, which moves numbers and rounds none; a note says so.
    """
    orders = {} if model is None else _orders(model, adapter)
    if not orders or None in orders.values():
        return adapter
    kept = [issue for issue in adapter.issues if issue.code != ORDER]
    older = [stack for stack, is_todays in orders.items() if not is_todays]
    return exchanged(replace(adapter, issues=tuple(kept)), older, "the shapes of the base show")


def with_named_order(model: nn.Module | None, adapter: Adapter, order: Order) -> Adapter:
    """The adapter in today's order, where a user says which one its undecided stacks have.

    Raises UsageError where nothing is undecided: no expert is stacked, or a model or the version of
    peft shows the order.
    """
    if model is None:
        orders = dict.fromkeys(adapter.stacks, None if order_issue(adapter) else True)
    else:
        orders = _orders(model, adapter)
    undecided = [stack for stack, is_todays in orders.items() if is_todays is None]
    if adapter.stacks and not orders:  # they do not fit the base, which its check tells
        return adapter
    if not undecided:
        why = "the order is known" if adapter.stacks else "none are stacked"
        raise UsageError(
            f"--expert-layout says how stacked experts are stored that nothing else decides; of "
            f"{adapter.name} {why}, so leave it out."
        )
    older = [stack for stack, is_todays in orders.items() if is_todays is False]
    older += undecided if order == "old" else []
    kept = [issue for issue in adapter.issues if issue.code != ORDER]
    config = {**adapter.config, "peft_version": ORDERED_BY}
    known = replace(adapter, issues=tuple(kept), config=config)
    return exchanged(known, older, f"--expert-layout={order} says")


def exchanged(adapter: Adapter, stacks: Sequence[str], because: str) -> Adapter:
    """The adapter with A and B of each expert of some stacks exchanged: (B A)^T = A^T B^T."""
    if not stacks:
        return adapter
    older = {path for stack in stacks for path in adapter.stacks[stack]}
    infos = {
        path: replace(info, in_features=info.out_features, out_features=info.in_features)
        if path in older
        else info
        for path, info in adapter.layout.items()
    }

    def read(path: str) -> LowRank:
        update = adapter.modules[path]
        if path not in older:
            return update
        return LowRank(update.B.mT.contiguous(), update.A.mT.contiguous(), update.scaling)

    message = (
        f"{adapter.name} has {count(len(stacks), 'stack')} of experts in the order of peft before "
        f"0.19.1, as {because}; their inputs and outputs were exchanged, which is exact."
    )
    note = finding("experts-exchanged", (adapter.name,), message, stacks[0])
    return replace(adapter, modules=Modules(infos, read), issues=(*adapter.issues, note))


def _orders(model: nn.Module, adapter: Adapter) -> dict[str, bool | None]:
    """Stack -> whether it is in today's order by the shapes of a model; None where that is open.

    One peft stored all of a model's parameters alike, but for those of modules with
    `is_transposed`. So a stack that is not square decides for the square ones of its kind. {} where
    a stack fits in neither order.
    """
    version = version_of(adapter)
    alike: dict[bool, list[str]] = {False: [], True: []}
    shown: dict[bool, set[bool]] = {False: set(), True: set()}
    orders: dict[str, bool | None] = {}
    for stack, shape, target in targeted(model, adapter):
        if target is None or sorted(target.shape) != sorted(shape) or target.shape[0] != shape[0]:
            return {}
        if target.parameter.dim() != 3:
            if target.shape != shape:
                return {}
            orders[stack] = True
            continue
        alike[target.transposed].append(stack)
        if shape[1] != shape[2]:
            shown[target.transposed].add(target.shape == shape)
    for transposed, stacks in alike.items():
        found = shown[transposed]
        if len(found) > 1:
            return {}
        if not found and version is not None:
            always = version >= TODAY or (transposed and version < CHANGED)
            found = {True} if always else set()
        orders |= dict.fromkeys(stacks, found.pop() if found else None)
    return orders
