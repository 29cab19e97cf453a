"""Pretraining coverage: what the base, and each adapter alone, know of what is to be composed.

One file a probe; the listing of this folder is the registry. `cover` runs all probes on tasks,
`probe_strangers` asks adapters without a task, with prompts from a file or from
`generated_prompts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.coverage._contract import CoverageProbe, Request, Study
from loraprobe.coverage._prompts import generated_prompts
from loraprobe.coverage._strangers import probe_strangers
from loraprobe.records import Coverage, ItemResult
from loraprobe.registry import Registry

if TYPE_CHECKING:
    from loraprobe.adapter import Adapter
    from loraprobe.composition import Router
    from loraprobe.tasks import Task

PROBES = Registry("loraprobe.coverage", CoverageProbe, "coverage probe")

__all__ = [
    "PROBES",
    "CoverageProbe",
    "Request",
    "Study",
    "cover",
    "generated_prompts",
    "probe_strangers",
]


def cover(
    scorer: Any,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    *,
    single: Callable[[Any], Any],
    results: Sequence[ItemResult] | None = None,
    probes: Sequence[str | CoverageProbe] | None = None,
    router: Router | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Coverage, ...]:
    """The figures of all probes (or of `probes`) on every task, task by task.

    single(adapter) is the composition of that adapter alone. results: per-item results of the
    base and of single adapters, as evaluation has them; what is missing is measured here. All
    continuations that probes want of the base are scored in one pass. No probe puts two adapters
    into the model at once, or lets one see the other's states. router: the token router whose
    gates are looked at, on hidden states of the unmodified base; None for none. max_new_tokens:
    the most tokens of an answer, where fewer than a probe would give. Equal seeds give equal
    figures. Raises TaskError where a prompt does not fit into the base's context.
    """
    from loraprobe.coverage._covering import cover_tasks

    chosen = [PROBES.make(probe) for probe in (PROBES.names() if probes is None else probes)]
    return cover_tasks(chosen, scorer, adapters, tasks, single, results, router, max_new_tokens,
                       seed, progress)  # fmt: skip
