"""Runs all probes on all tasks; requests of several probes are scored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprobe.probes._names import MadeUpNames, words_of
from loraprobe.probes._probe import CoverageProbe, ProbeContext, Request
from loraprobe.records import Coverage, ItemResult, Progress
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter


def cover_tasks(
    probes: Sequence[CoverageProbe],
    scorer: Any,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    results: Sequence[ItemResult],
    seed: int,
    progress: Progress | None,
) -> tuple[Coverage, ...]:
    """See `loraprobe.probes.cover`."""
    contexts = [_context(scorer, adapters, task, results, seed) for task in tasks]
    requests = [r for probe in probes for context in contexts for r in probe.requests(context)]
    likely = ask(scorer, requests, progress)
    return tuple(
        row for context in contexts for probe in probes for row in probe.rows(context, likely)
    )


def ask(
    scorer: Any, requests: Sequence[Request], progress: Progress | None = None
) -> dict[Request, Any]:
    """A Likelihood of the base for each distinct request: one call of the scorer for each form."""
    likely: dict[Request, Any] = {}
    distinct = list(dict.fromkeys(requests))
    for raw in (False, True):
        asked = [r for r in distinct if (r.raw and bool(scorer.chat_template)) == raw]
        if not asked:
            continue
        plain = scorer.with_template(False) if raw else scorer
        with plain.with_composition(None):
            found = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, found, strict=True))
        if progress is not None:
            progress("cover", len(likely), len(distinct))
    return likely


def _context(
    scorer: Any, adapters: Sequence[Adapter], task: Task, results: Sequence[ItemResult], seed: int
) -> ProbeContext:
    texts = [
        text
        for item in task.items
        for text in (item.prompt, *item.answers, *(hop.prompt for hop in item.hops))
    ]
    names = MadeUpNames(scorer.tokenizer, seed, words_of(texts))
    own = tuple(row for row in results if row.task == task.name)
    return ProbeContext(task, tuple(adapter.name for adapter in adapters), own, names, seed)
