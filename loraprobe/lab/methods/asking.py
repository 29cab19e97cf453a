"""Asks everyone a case's questions, and keeps the answers as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe.adapter import Adapter
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import Ledger, System, run_systems
from loraprobe.evaluation.questions import questions
from loraprobe.lab.methods.cases import FORM, Case
from loraprobe.lab.methods.entrants import Entrant
from loraprobe.lab.reproduce.measure import answer_parts
from loraprobe.lab.train import ProgressCallback
from loraprobe.lab.world import World
from loraprobe.records import ItemResult
from loraprobe.tasks import Task

NEW_TOKENS = 48


@dataclass(frozen=True)
class Answers:
    """What was answered in one case.

    `results` name base, singles by their role, and everyone by their label; all in the form of
    the case's question. `errors`: label -> relative error of the merge's compression; `refused`:
    label -> why it could not be built.
    """

    case: Case
    results: tuple[ItemResult, ...] = field(repr=False)
    errors: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def answer(
    world: World,
    cases: Sequence[Case],
    everyone: Sequence[Entrant],
    directory: Path,
    *,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> list[Answers]:
    """Every case of one world on one copy of its base; what the ledgers hold is not asked again.

    Results lie in `directory`, a file for each case, whose name holds the digest of what they
    depend on: the world's files and `limit`.
    """
    import torch

    from loraprobe.base import open_base, pick_device
    from loraprobe.scoring import Scorer

    loaded = open_base(world.base or world.base_name).load(
        device=pick_device("cpu"), dtype=torch.float32
    )
    scorer = Scorer(loaded.model, loaded.tokenizer, max_new_tokens=NEW_TOKENS)
    identity = {"files": world.manifest["files"], "limit": limit, "base": world.base_name}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    found = []
    for case in cases:
        path = directory / f"{case.name}-{digest}.jsonl"
        ledger = Ledger(path, resume=True, fingerprint={"world": digest, "case": case.name})
        found.append(_Asking(scorer, case, case.tasks(limit), ledger).all(everyone, progress))
    return found


@dataclass(frozen=True)
class _Asking:
    """One case, the model in memory, and what is known so far."""

    scorer: Any
    case: Case
    tasks: Sequence[Task]
    ledger: Ledger

    def all(self, everyone: Sequence[Entrant], progress: ProgressCallback | None) -> Answers:
        from loraprobe.hub import load_all

        adapters = load_all([f"{n}={path}" for n, path in self.case.scenario.adapters.items()])
        errors: dict[str, float] = {}
        refused: dict[str, str] = {}
        for system in _baselines(adapters):
            self._ask(system, {"target", FORM[self.case.question]})
        for at, entrant in enumerate(everyone, 1):
            if entrant.family != "chain" or self.tasks[0].has_hops:
                try:
                    system = entrant.system(adapters)
                    self._ask(system, {FORM[self.case.question]})
                except LoraprobeError as error:
                    refused[entrant.label] = str(error)
                else:
                    if system.compression_error is not None:
                        errors[entrant.label] = system.compression_error
            if progress is not None:
                progress(f"ask {self.case.name}", at, len(everyone))
        asked = {entrant.label for entrant in everyone} - set(refused)
        return Answers(self.case, tuple(self._named(asked)), errors, refused)

    def _ask(self, system: System, parts: set[str]) -> None:
        if system.kind == "chain":
            run_systems(self.scorer, [system], self.tasks, self.ledger, max_new_tokens=NEW_TOKENS)
        elif self._open(system.name, parts):
            answer_parts(self.scorer, system, self.tasks, parts, self.ledger)

    def _open(self, name: str, parts: set[str]) -> bool:
        return any(
            self.ledger.get(name, q.task, q.part, q.item.id) is None
            for q in questions(self.tasks)
            if q.part in parts
        )

    def _named(self, asked: set[str]) -> Iterator[ItemResult]:
        """The results in the form of the question, singles under their roles.

        A chain needs no worked steps, but counts under the form in which the others are asked.
        """
        form, roles = FORM[self.case.question], self.case.roles
        for row in self.ledger:
            if row.system == "chain":
                if row.part == "target" and "chain" in asked:
                    yield replace(row, part=form)
            elif row.system in roles:
                yield replace(row, system=roles[row.system])
            elif row.system == "base" or row.system in asked:
                yield row


def _baselines(adapters: Sequence[Adapter]) -> list[System]:
    from loraprobe.audit.systems import single

    return [System("base", "base"), *(System(a.name, "adapter", single(a)) for a in adapters)]
