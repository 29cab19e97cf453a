"""How token routers share their gates among the adapters on the prompts of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprobe.extension import AuditPart, Extension, Measured

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.scoring import ModelScorer
    from loraprobe.session import Session
    from loraprobe.tasks import Task


class GatesOfRouters(Extension):
    """Measures the gates of the routers of an evaluation."""

    def measure(
        self,
        scorer: ModelScorer,
        composed: Sequence[System],
        tasks: Sequence[Task],
        session: Session,
    ) -> Measured:
        from loraprobe.extensions.gates.records import Gates
        from loraprobe.extensions.gates.statistics import gate_statistics

        with session.stage("gates"):
            rows, note = gate_statistics(scorer, composed, tasks, session.options.seed)
        return Measured([Gates(rows)] if rows else (), [note])

    def audit_parts(self) -> Sequence[AuditPart]:
        from loraprobe.extensions.gates.part import GatesPart

        return (GatesPart(),)


EXTENSION = GatesOfRouters()
