"""Coverage probes: measure what the base and each adapter alone know about a task.

The registry lists the probes in the files of this folder. `cover` runs all probes on tasks.
`probe_without_task` compares base and adapters without a task, on prompts from a file or from
`generated_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.defaults import PROBED_ITEMS
from loraprobe.probes._probe import CoverageProbe, ProbeContext, likelihoods
from loraprobe.probes._taskless import generated_prompts, probe_without_task
from loraprobe.records import Coverage, ItemResult, Progress
from loraprobe.registry import Registry

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.scoring import ModelScorer
    from loraprobe.tasks import Task

PROBES: Registry[CoverageProbe] = Registry("loraprobe.probes", CoverageProbe, "coverage probe")  # type: ignore[type-abstract]
READ_BY_VERDICT = ("hop_accuracy", "name_swap")


def cover(
    scorer: ModelScorer,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    *,
    results: Sequence[ItemResult] = (),
    probes: Sequence[str] | None = None,
    items: int = PROBED_ITEMS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Coverage, ...]:
    """The rows of all probes (or of `probes`) on every task, in the order of the tasks.

    results: per-item results of the base and of single adapters from evaluation; systems without
    results have no row. items: the most that a probe asks of each part. The continuations that all
    probes request are scored in one pass. Equal seeds give equal figures. Tasks with an `Examiner`
    have no rows. Raises TaskError if a prompt does not fit into the base's context.
    """
    chosen = [PROBES.make(probe) for probe in (PROBES.names() if probes is None else probes)]
    names = tuple(adapter.name for adapter in adapters)
    contexts = [
        ProbeContext(task, names, results, scorer.tokenizer, items, seed)
        for task in tasks
        if task.examiner is None
    ]
    requests = [r for probe in chosen for context in contexts for r in probe.requests(context)]
    likely = likelihoods(scorer, requests, progress)
    return tuple(
        row for context in contexts for probe in chosen for row in probe.rows(context, likely)
    )
