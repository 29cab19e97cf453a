"""What a task allows a verdict to tell, before any model is asked (`loraprobe task check`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from loraprobe.defaults import (
    ALPHA,
    DEFAULT_METHODS,
    DEFAULT_ROUTERS,
    FEWEST_ITEMS,
    LOSS,
    PLAIN_TOKENS,
)
from loraprobe.formatting import count
from loraprobe.records import QUESTION, ItemPart, TaskSummary
from loraprobe.records.measurements import items_needed
from loraprobe.tasks.items import Task

GAINS = (0.1, 0.15, 0.2, 0.3, 0.5)
LOST = 0.1  # the share of answers that a composition loses, in the worse case that is counted
MARK = "####"  # before the gold answer of a worked text, as in gsm8k
SYSTEMS = len(DEFAULT_METHODS + DEFAULT_ROUTERS)  # that contend by default
_CRITICAL = NormalDist().inv_cdf(1 - ALPHA / 2 / SYSTEMS)


@dataclass(frozen=True)
class Needed:
    """Questions that a true gain needs to be decided with a probability of at least 0.8.

    `none_lost`: where the composition keeps every right answer of the best single adapter;
    `some_lost`: where it loses LOST of them all. None where more than 5,000 are needed.
    """

    gain: float
    none_lost: int | None
    some_lost: int | None


@dataclass(frozen=True)
class TaskCheck:
    """What one task allows a verdict to tell.

    `parts` counts the items that have a part, `metrics` those of one. `findings` are sentences by
    their codes.
    """

    task: TaskSummary
    clusters: int
    parts: Mapping[ItemPart, int]
    metrics: Mapping[str, int]
    needed: tuple[Needed, ...]
    smallest_gain: float | None
    findings: Mapping[str, str]


def check_task(task: Task, margin: float) -> TaskCheck:
    """Counts what a task holds, whose items have their metrics, and finds what limits it."""
    clusters = len({item.cluster for item in task.items})
    metrics = Counter(item.judge for item in task.items)
    parts = {QUESTION: len(task.items)}
    for part in task.parts[1:]:
        parts[part] = sum(
            len(item.hops) >= part.hop if part.hop else item.cot_prompt is not None
            for item in task.items
        )
    binary = LOSS not in metrics
    gains = [gain for gain in GAINS if gain > margin] if binary else []
    steps = (k / 100 for k in range(math.floor(margin * 100) + 1, 100)) if binary else iter(())
    enough = (g for g in steps if 0 < (questions_needed(g, margin) or 0) <= clusters)
    return TaskCheck(
        task.summary(),
        clusters=clusters,
        parts=parts,
        metrics=metrics,
        needed=tuple(
            Needed(gain, questions_needed(gain, margin), questions_needed(gain, margin, LOST))
            for gain in gains
        ),
        smallest_gain=next(enough, None),
        findings=_findings(task, clusters),
    )


def questions_needed(gain: float, margin: float, lost: float = 0.0) -> int | None:
    """How many questions show a true gain above the margin, at least FEWEST_ITEMS.

    The composition wins gain + lost of all questions from the best single adapter and loses `lost`,
    so that one paired difference has the variance gain + 2 lost - gain^2. The critical value is
    that of the best of SYSTEMS compositions (Bonferroni). None if 5,000 are not enough.
    """
    spread = math.sqrt(max(gain + 2 * lost - gain * gain, 0.0))
    if not spread:
        return FEWEST_ITEMS
    needed = items_needed(1, gain - margin, spread, _CRITICAL)
    return None if needed is None else max(needed, FEWEST_ITEMS)


def _findings(task: Task, clusters: int) -> dict[str, str]:
    """What limits a task and what to do about it, by its code."""
    findings: dict[str, str] = {}
    if clusters < FEWEST_ITEMS:
        what = "question" if clusters == len(task.items) else "independent question"
        few = f"{count(clusters, what)}: below {FEWEST_ITEMS} nothing is ever called likely."
        findings["few-questions"] = f"{few} Add questions."
    golds = [item.answers[0].strip() for item in task.items if item.judge == "exact_match"]
    worked = sum(MARK in gold for gold in golds)
    long = sum("\n" in gold or len(gold.split()) > PLAIN_TOKENS for gold in golds)
    if worked:
        findings["worked-answers"] = (
            f"{count(worked, 'gold answer')} with worked steps before {MARK}. Add --fields "
            f"after={MARK}."
        )
    elif long:
        findings["long-answers"] = (
            f"{count(long, 'gold answer')} of several lines or of more than {PLAIN_TOKENS} words, "
            f"where exact_match reads the first line of a reply of {PLAIN_TOKENS} tokens. Name "
            "what stands before the answer by --fields after=TEXT, or take --metric strict and "
            "--max-new-tokens."
        )
    if golds and task.why:
        other = "strict" if task.needs == "exact_match" else task.needs
        judged = f"They are judged by exact_match, and {task.why}."
        findings["normalised-answers"] = f"{judged} Take --metric {other}."
    if task.repeated:
        findings["repeated-questions"] = (
            f"{count(task.repeated, 'repetition')} of a question in {len(task.items):,} items: "
            "copies count as one question. Ask something else in their place."
        )
    if task.examiner is not None:
        return findings
    if not task.has_cot:
        findings["no-steps"] = (
            "No question is asked step by step, a form in which more compositions succeed. Add "
            "cot_prompt."
        )
    if not task.has_hops:
        findings["no-hops"] = (
            "Without the single hops no verdict tells why a composition fails. Add hops, if the "
            "questions have steps."
        )
    return findings
