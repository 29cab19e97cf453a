"""Asks everyone a case's questions, and keeps the answers as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapter import Adapter
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import Ledger, System, run_systems
from loraprobe.evaluation.questions import questions
from loraprobe.records import ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task
from loraprobe_lab.methods.cases import FORM, Case
from loraprobe_lab.methods.entrants import Entrant
from loraprobe_lab.reproduce.measure import answer_parts
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World, write_text

if TYPE_CHECKING:
    from loraprobe.composition import Router
    from loraprobe.pipeline.systems import SystemBuilder

NEW_TOKENS = 48


@dataclass(frozen=True)
class Answers:
    """What was answered in one case.

    `results` name base, singles by their role, and everyone by their label; all in the form of
    the case's question. `lost`: label -> what a merge would lose at the default rank; `refused`:
    label -> why it could not be built.
    """

    case: Case
    results: tuple[ItemResult, ...] = field(repr=False)
    lost: Mapping[str, float] = field(default_factory=dict)
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
        asking = _Asking(scorer, case, case.tasks(limit), ledger, case.prompts(limit))
        found.append(asking.all(everyone, progress))
    return found


@dataclass(frozen=True)
class _Asking:
    """One case, the model in memory, and what is known so far."""

    scorer: Any
    case: Case
    tasks: Sequence[Task]
    ledger: Ledger
    prompts: Mapping[str, Sequence[str]]
    learned: dict[str, Any] = field(default_factory=dict)  # by routers that need prompts

    def all(self, everyone: Sequence[Entrant], progress: ProgressCallback | None) -> Answers:
        from loraprobe.hub import load_all

        adapters = load_all([f"{n}={path}" for n, path in self.case.scenario.adapters.items()])
        lost = Kept(self.ledger.path)
        refused: dict[str, str] = {}
        form = FORM[self.case.question]
        for system in _baselines(adapters):
            self._ask(system, {"target", form})
        for at, entrant in enumerate(everyone, 1):
            if entrant.family != "chain" or self.tasks[0].has_hops:
                try:
                    self._take_part(entrant, adapters, form, lost)
                except LoraprobeError as error:
                    refused[entrant.label] = str(error)
            if progress is not None:
                progress(f"ask {self.case.name}", at, len(everyone))
        asked = {entrant.label for entrant in everyone} - set(refused)
        return Answers(self.case, tuple(self._named(asked)), dict(lost.found), refused)

    def _take_part(
        self, entrant: Entrant, adapters: Sequence[Adapter], form: str, lost: Kept
    ) -> None:
        """Built and asked, unless its answers are there; a merge's loss is measured with it."""
        merges = entrant.family == "merge"
        if not (self._open(entrant.label, {form}) or (merges and entrant.label not in lost.found)):
            return
        system = self._system(entrant, adapters)
        if merges:
            lost.keep(entrant.label, lost_at_default_rank(system, adapters))
        self._ask(system, {form})

    def _system(self, entrant: Entrant, adapters: Sequence[Adapter]) -> System:
        """Built, and shown what each adapter is for where it has to learn that from prompts."""
        builder = entrant.builder(adapters)
        if entrant.family == "router" and ROUTERS.make(entrant.spec).needs_prompts:
            router = self._fitted(builder, entrant.spec)
            builder = replace(builder, routers={entrant.spec: router})
        return entrant.system(builder)

    def _fitted(self, builder: SystemBuilder, spec: str) -> Router:
        """The router after prompts that are not asked, or where there are none after those that
        the adapters write themselves. Every router of a case learns from the same ones."""
        from loraprobe.pipeline.router_fitting import fit_routers, fitted_to

        router = ROUTERS.make(spec)
        if self.learned:
            return router.with_state(self.learned)
        prepared = builder.prepared
        if self.prompts:
            router = fitted_to(router, self.scorer, prepared.adapters, self.prompts)
        else:
            fitted, _ = fit_routers(
                builder.trained, prepared, builder.options, self.scorer, self.tasks
            )
            router = fitted[spec]
        self.learned.update(router.state())
        return router

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


class Kept:
    """Figures by name in a file beside a ledger, so that what was measured is not made again."""

    def __init__(self, ledger: Path | None) -> None:
        self._path = None if ledger is None else ledger.with_suffix(".lost.json")
        there = self._path is not None and self._path.is_file()
        self.found: dict[str, float] = {}
        if there and self._path is not None:
            self.found = json.loads(self._path.read_text(encoding="utf-8"))

    def keep(self, name: str, figure: float) -> None:
        self.found[name] = figure
        if self._path is not None:
            write_text(self._path, json.dumps(self.found, indent=0) + "\n")


def lost_at_default_rank(system: System, adapters: Sequence[Adapter]) -> float:
    """||dW - dW_k||_F / ||dW||_F of a whole merge if every module were cut to the default rank k,
    the sum of its sources' ranks: the singular values beyond (Eckart and Young)."""
    import torch

    assert system.composition is not None
    (merged,) = system.composition.experts
    whole = beyond = 0.0
    for path, update in merged.modules.items():
        rank = sum(a.modules[path].rank for a in adapters if path in a.modules)
        squares = update.to(dtype=torch.float64).svd()[1] ** 2
        whole += float(squares.sum())
        beyond += float(squares[rank:].sum())
    return (beyond / whole) ** 0.5


def _baselines(adapters: Sequence[Adapter]) -> list[System]:
    from loraprobe.pipeline.systems import single

    return [System("base", "base"), *(System(a.name, "adapter", single(a)) for a in adapters)]
