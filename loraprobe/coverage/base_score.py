"""How well the base does by itself, where a task has no hops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import BASE, CoverageProbe, Request, Study, mean
from loraprobe.coverage._statistics import share_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class BaseScore(CoverageProbe):
    """Share of a task's items that the base answers right without any adapter.

    `baseline` is chance among the choices, or what always giving the commonest answer scores.
    Only for tasks without hops; `hop_accuracy` says more where there are hops.
    """

    formula: ClassVar[str] = "mean_i [base is right on i]"
    paper: ClassVar[str] = "-"

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        target, right = study.parts[0], study.right(BASE, study.parts[0])
        if study.task.has_hops or not right:
            return
        asked = [question for question in target.questions if question.item in right]
        hits = [right[question.item] for question in asked]
        ci = share_interval(hits, [question.cluster for question in asked])
        yield Coverage(
            "base_score", study.task.name, mean(hits), len(hits), ci95=ci, baseline=target.guess()
        )
