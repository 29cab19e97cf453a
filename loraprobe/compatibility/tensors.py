"""Checks that need the tensors: NaN, zero deltas, equal adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import Adapter, extreme_norm, natural
from loraprobe.findings import finding
from loraprobe.formatting import count
from loraprobe.lora.grams import GramMatrices, gram_matrices
from loraprobe.lora.lowrank import same_update
from loraprobe.records import Issue


class TensorChecks:
    """Collects statistics of the tensors, one batch of modules at a time.

    `take` observes the batches of `diagnostics.diagnose`, which reads the factors anyway.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters, n = adapters, len(adapters)
        self.not_finite: list[list[str]] = [[] for _ in range(n)]
        self.without_effect: list[list[str]] = [[] for _ in range(n)]
        self.inner: Float64[Tensor, "n n"] = torch.zeros(n, n, dtype=torch.float64)
        self.largest = [(0.0, "")] * n  # norm of a module's delta, its path

    def take(self, joint: GramMatrices) -> None:
        """Adds one batch of modules."""
        self.inner += joint.inner.sum(0)
        zero = joint.present & joint.finite & (joint.square == 0)
        squares, places = joint.square.max(0)
        for i, (square, place) in enumerate(zip(squares.tolist(), places.tolist(), strict=True)):
            self.largest[i] = max(self.largest[i], (square**0.5, joint.paths[place]))
        for m, path in enumerate(joint.paths):
            for i in range(len(self.adapters)):
                if not joint.finite[m, i]:
                    self.not_finite[i].append(path)
                elif zero[m, i]:
                    self.without_effect[i].append(path)

    def read(self) -> TensorChecks:
        """Reads all factors once and takes every batch."""
        paths = sorted({path for a in self.adapters for path in a.layout}, key=natural)
        for joint in gram_matrices([a.modules for a in self.adapters], paths):
            self.take(joint)
        return self

    def same(self, i: int, j: int) -> bool:
        """Whether adapters i and j have the same deltas, even if their factors differ.

        False for adapters that hold more than factors, which is not compared.
        """
        if any(self.not_finite[k] or self.adapters[k].has_more_than_factors for k in (i, j)):
            return False
        return same_update(self.inner, i, j)


def content_issues(contents: TensorChecks) -> Iterator[Issue]:
    """Issues about NaN, zero deltas, extreme norms and equal adapters."""
    adapters = contents.adapters
    for i, adapter in enumerate(adapters):
        bad, empty = contents.not_finite[i], contents.without_effect[i]
        if bad:
            message = (
                f"{adapter.name} holds NaN or infinite values in {count(len(bad), 'module')}, "
                f"{bad[0]} first."
            )
            yield finding("not-finite", (adapter.name,), message, bad[0])
        if empty and len(empty) == len(adapter.layout) and not adapter.has_more_than_factors:
            message = f"{adapter.name} has no effect: the delta of every module is zero."
            yield finding("no-effect", (adapter.name,), message)
        yield from extreme_norm(adapter.name, *contents.largest[i])
        if empty and len(empty) < len(adapter.layout):
            message = (
                f"{adapter.name} changes nothing in {len(empty)} of its {len(adapter.layout)} "
                f"modules, {empty[0]} first."
            )
            yield finding("modules-without-effect", (adapter.name,), message, empty[0])
    for i, adapter in enumerate(adapters):
        for j in range(i + 1, len(adapters)):
            if contents.same(i, j):
                other = adapters[j].name
                message = (
                    f"{adapter.name} and {other} are the same update, so composing them can only "
                    "scale it."
                )
                yield finding("duplicate", (adapter.name, other), message)
