"""The stages that run a model: coverage, systems, statistics, verdict, recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from loraprobe.adapter import Adapter
from loraprobe.audit.fitting import fit_routers
from loraprobe.audit.gates import gate_statistics
from loraprobe.audit.licences import declared, with_licences
from loraprobe.audit.opening import open_scorer
from loraprobe.audit.run import open_ledger
from loraprobe.audit.search import Memory, Split, find_weights, note, split
from loraprobe.audit.settings import Progress, Settings
from loraprobe.audit.story import Story
from loraprobe.audit.systems import Workshop, single
from loraprobe.audit.transforms import general_of
from loraprobe.base import Base
from loraprobe.evaluation import System
from loraprobe.records import Audit, Compatibility, EvidenceLevel, ItemResult, Score, Verdict

if TYPE_CHECKING:
    from loraprobe.audit.saved import Routed
    from loraprobe.evaluation import Ledger
    from loraprobe.merging import Merged
    from loraprobe.tasks import Probe, Task


@dataclass(frozen=True)
class Outcome:
    """An audit, and the adapter or composition that it recommends where there is one to save."""

    audit: Audit
    settings: Settings
    recommended: Merged | Routed | None = None
    why_not_saved: str = ""


def merge_and_eval(
    adapters: Sequence[Adapter],
    *,
    base: Base,
    tasks: Sequence[Task],
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> Outcome:
    """Compatibility, diagnostics, coverage, every system on every task, verdict.

    Raises LoraprobeError where base, adapters or tasks cannot be used at all; adapters that do
    not fit together end the story early with the verdict `incompatible`.
    """
    story = Story("merge-and-eval", adapters, settings, base, progress)
    Workshop(adapters, settings).check()
    if settings.weights == "search":
        split(tasks, settings)  # too few items are told before anything is loaded
    if not story.look("route").compatible:
        conclude(story, "weights", tasks)
        return Outcome(story.audit(), settings, None, "the adapters do not fit together.")
    from loraprobe.audit.recommending import recommend
    from loraprobe.merging import Merged

    bench = Bench(story, base, general_of(story.adapters, settings, "route", base))
    bench.prepare(tasks)
    bench.run_baselines()
    bench.cover_tasks()
    bench.run_compositions()
    verdict = conclude(story, "evaluation", tasks)
    bench.ledger.close()
    recommended, why = recommend(bench, verdict)
    if recommended is not None:
        if isinstance(recommended, Merged):
            recommended, asked = with_licences(recommended, adapters, base)
        else:
            licences, asked = declared(adapters, base)
            recommended = replace(recommended, licences=licences)
        known = story.found["compatibility"].issues
        story.found["compatibility"] = Compatibility((*known, *asked))
    return Outcome(story.audit(), settings, recommended, why)


def conclude(story: Story, level: EvidenceLevel, tasks: Sequence[Task]) -> Verdict:
    """The verdict on everything found so far; kept in the story."""
    from loraprobe.verdict import Evidence, judge, read_calibration

    names = {field.name for field in fields(Evidence)} & {field.name for field in fields(Audit)}
    evidence = {name: value for name, value in story.found.items() if name in names}
    settings = story.settings
    verdict = judge(
        Evidence(
            **evidence,
            tasks=len(tasks),
            level=level,
            margin=settings.needed_gain,
            retention=settings.retention,
            prior=settings.prior,
            balanced=settings.balance == "norm",
        ),
        read_calibration(settings.calibration) if settings.calibration else None,
    )
    story.found["verdict"] = verdict
    return verdict


class Bench:
    """One loaded base and everything that is measured on it."""

    ledger: Ledger

    def __init__(self, story: Story, base: Base, general: Sequence[Adapter] = ()) -> None:
        self.story, self.base, self.settings = story, base, story.settings
        self.adapters = story.adapters
        self.tasks: Sequence[Task] = ()
        self.parted: Split | None = None
        self.systems: list[System] = []
        self.results: list[ItemResult] = []
        self.workshop = Workshop(self.adapters, self.settings, general, base)
        self.scorer = open_scorer(story, base, self.settings.dtype)

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Takes the tasks, sets apart what a search needs, settles the template, opens ledger."""
        from loraprobe.evaluation import choose_template

        self.parted = split(tasks, self.settings) if self.settings.weights == "search" else None
        whole, tasks = tasks, self.parted.left if self.parted else tasks
        self.tasks = tasks
        self.story.notes.extend(task_notes(tasks, self.settings))
        singles = [single(adapter) for adapter in self.adapters]
        if self.settings.chat_template == "auto":
            with self.story.stage("template"):
                chosen, note = choose_template(
                    self.scorer, singles, tasks, metric=self.settings.metric
                )
            self.scorer = self.scorer.with_template(chosen)
            if note:
                self.story.notes.append(note)
        if hasattr(self, "ledger"):  # prepared before: what was kept goes on
            self.ledger.close()
        self.ledger, noted = open_ledger(
            [*self.adapters, *self.workshop.general],
            self.base,
            whole,
            self.settings,
            self.story,
            self.scorer.chat_template,
        )
        if noted:
            self.story.notes.append(noted)
        with self.story.stage("fit"):
            self.story.notes.extend(fit_routers(self.workshop, self.scorer, tasks))

    def run(self, systems: Sequence[System]) -> None:
        """Evaluates systems on all tasks; what the ledger already holds is not run again."""
        from loraprobe.evaluation import run_systems

        with self.story.stage("evaluate"):
            self.results = run_systems(
                self.scorer,
                [*self.systems, *systems],
                self.tasks,
                self.ledger,
                metric=self.settings.metric,
                max_new_tokens=self.settings.max_new_tokens,
                progress=self.story.progress,
            )
        self.systems += systems

    def run_baselines(self) -> None:
        """The base and each adapter alone."""
        self.run(self.workshop.baselines())

    def cover_tasks(self) -> None:
        """What base and single adapters know, and what compositions would gain if effects added."""
        from loraprobe.probes import cover, forecast

        seed, progress = self.settings.seed, self.story.progress
        with self.story.stage("cover"):
            rows = cover(
                self.scorer,
                self.adapters,
                self.tasks,
                results=self.results,
                seed=seed,
                progress=progress,
            )
        self.story.found["coverage"] = (*self.story.found.get("coverage", ()), *rows)
        with self.story.stage("forecast"):
            self.story.found["forecasts"] = forecast(
                self.scorer,
                self.adapters,
                self.tasks,
                self.workshop.forecastable(),
                results=self.results,
                metric=self.settings.metric,
                max_new_tokens=self.settings.max_new_tokens,
                seed=seed,
                progress=progress,
            )

    def search_weights(self) -> None:
        """`--weights search`, on items that no system is ever scored on."""
        if self.parted is None:
            return
        kept = None if self.ledger.path is None else self.ledger.path.with_name("search.jsonl")
        with self.story.stage("search"):
            found = find_weights(
                self.scorer, self.workshop.prepared.adapters, self.parted, self.settings,
                memory=Memory(kept, self.settings.resume), progress=self.story.progress,
            )  # fmt: skip
        self.workshop.searched = tuple(found.weights.values())
        self.story.found["search"] = found
        self.story.notes.append(note(found))

    def run_compositions(self) -> None:
        """Merges, routers, chain; then the controls that the best of them has to beat."""
        has_hops = any(task.has_hops for task in self.tasks)
        with self.story.stage("compose"):
            prepared = self.workshop.prepared
            self.story.found["transformations"] = prepared.steps
            self.story.notes.extend(prepared.notes)
            if prepared.steps:
                self.story.notes.append("Single adapters were evaluated as they are.")
        self.search_weights()
        with self.story.stage("compose"):
            compositions = self.workshop.compositions(has_hops)
        self.story.notes.extend(self.workshop.notes())
        for system in compositions:
            if system.composition is not None:
                self.story.notes.extend(system.composition.notes())
        self.run(compositions)
        self.watch_gates(compositions)
        with self.story.stage("compose"):
            controls = self._controls(compositions)
        if controls:
            self.run(controls)
        self.tell_statistics()

    def watch_gates(self, systems: Sequence[System]) -> None:
        """How token routers share their gates on the tasks' prompts."""
        with self.story.stage("gates"):
            rows, note = gate_statistics(self.scorer, systems, self.tasks, self.settings.seed)
        self.story.found["gates"] = rows
        if note:
            self.story.notes.append(note)

    def _controls(self, compositions: Sequence[System]) -> list[System]:
        """The controls of the best single adapter and the best composition so far."""
        scores = self._scores()
        best_single = _best([s for s in scores if s.kind == "adapter"])
        best = _best([s for s in scores if s.kind in ("merge", "router")])
        if best_single is None:
            return []
        chosen = next((s for s in compositions if s.name == best), None)
        return self.workshop.controls(best_single, chosen)

    def _scores(self) -> tuple[Score, ...]:
        from loraprobe.evaluation import score

        return score(self.results, self.systems)

    def tell_statistics(self) -> None:
        """Scores with intervals, paired comparisons, gains, attribution, retention."""
        from loraprobe import evaluation

        margin = self.settings.needed_gain
        results, systems, seed = self.results, self.systems, self.settings.seed
        with self.story.stage("statistics"):
            self.story.found.update(
                evaluation=self._scores(),
                comparisons=evaluation.compare(results, systems, seed=seed),
                gains=evaluation.gains(results, systems, margin=margin, seed=seed),
                attribution=evaluation.attribute(results, systems, self.tasks),
            )
        self.story.notes.extend(evaluation.chain_notes(systems, self.tasks))

    def cover(
        self, tasks: Sequence[Task], probe: Probe | str | None, cards: Mapping[str, str | None]
    ) -> EvidenceLevel:
        """`inspect`'s share: single adapters on the tasks, coverage, probes; the level reached."""
        from loraprobe.probes import generated_prompts, probe_without_task

        level: EvidenceLevel = "probes"
        if tasks:
            self.prepare(tasks)
            self.run_baselines()
            self.cover_tasks()
            self.story.found["evaluation"] = self._scores()
            level = "base"
        if probe is not None:
            with self.story.stage("probe"):
                if isinstance(probe, str):
                    probe = generated_prompts(
                        self.scorer, self.adapters, cards, single=single, seed=self.settings.seed
                    )
                rows = probe_without_task(
                    self.scorer, self.adapters, probe, single=single, seed=self.settings.seed
                )
            self.story.found["coverage"] = (*self.story.found.get("coverage", ()), *rows)
        return level


def task_notes(tasks: Sequence[Task], settings: Settings) -> list[str]:
    """What has to be known of the tasks to read the figures."""
    notes = []
    if settings.metric == "answer_loss":
        notes.append("Differences of losses are signed so that a lower loss is a gain.")
    for task in tasks:
        if len(task.items) > 1 and len({item.cluster for item in task.items}) == 1:
            notes.append(
                f"All {len(task.items)} items of task {task.name} share one group, so they count "
                "as one observation and decide nothing: add items of other groups."
            )
    return notes


def _best(scores: Sequence[Score]) -> str | None:
    """The system with the best macro mean over the tasks, on whichever part suits it best.

    Names break ties, so that the order in which adapters are given does not matter.
    """
    totals: dict[tuple[str, str], list[float]] = {}
    for row in scores:
        if row.part in ("target", "cot"):
            sign = -1.0 if row.metric == "answer_loss" else 1.0
            totals.setdefault((row.system, row.part), []).append(sign * row.value)
    if not totals:
        return None
    return min(totals, key=lambda key: (-sum(totals[key]) / len(totals[key]), key))[0]
