"""Cuts the parts of a run into shares of about equal weight."""

from __future__ import annotations

from collections.abc import Sequence


def share_of(weights: Sequence[float], shard: tuple[int, int]) -> list[int]:
    """The indices of the parts of shard (number, of how many), numbers from 1.

    weights: of each part. A share is a run of parts, so that a system is put into the model by as
    few shards as possible. Every part belongs to exactly one shard; a shard may be empty.
    """
    number, of = shard
    total, before, found = sum(weights), 0.0, []
    for index, weight in enumerate(weights):
        middle = (before + weight / 2) / total if total else 0.0
        before += weight
        if min(int(middle * of), of - 1) == number - 1:
            found.append(index)
    return found
