"""What a worker of --executor does: it opens the inputs of the run itself, and computes parts.

A worker is told names and settings only. It checks that it reads the same inputs and computes on
the same kind of device. It opens base and tasks once, and each adapter of a library when it is
asked. The process that asks keeps what an adapter answers alone and its hidden states as if it had
asked itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.compatibility import aligned
from loraprobe.diagnostics import BatchStatistics, Plan
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.ledger import changes
from loraprobe.evaluation.questions import Question, TokenLimits, questions
from loraprobe.execution import open_pool
from loraprobe.library.stored import weights_hash
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import Look, looks_of, read_states, system_alone
from loraprobe.pipeline.evaluator import Evaluator, open_scorer
from loraprobe.pipeline.examination import planned
from loraprobe.pipeline.inputs import Adapters, Given, Inputs, base_of, open_inputs, open_tasks
from loraprobe.pipeline.results import weights_identity
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shard_files import check_inputs
from loraprobe.pipeline.systems import SystemBuilder
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.pipeline.transforms import Prepared, prepare, prepare_inputs
from loraprobe.pipeline.units import AskedAlone, KeptStatistics, ModuleBatch, Questions, Units
from loraprobe.records import ItemResult
from loraprobe.scoring.states import States

Places = Mapping[str, tuple[int, str]]  # name -> place in the library, and hash of its weights
Answered = tuple[list[ItemResult], States | None] | None  # None: it cannot be asked


@dataclass(frozen=True)
class Job:
    """The references and options of a run. fingerprint: what its inputs must be.

    places: of a library, whose adapters are opened one by one; None where all are opened together.
    """

    adapters: tuple[str, ...]
    base: str | None
    tasks: tuple[str, ...]
    options: Options
    fingerprint: Any
    places: Places | None = None

    def open(self) -> OpenedJob:
        """Opens the inputs. Raises UsageError where they are not those of the run."""
        options = self.options
        if self.places is None:
            inputs = open_inputs(self.adapters, base=self.base, tasks=self.tasks, options=options)
        else:
            base = base_of(self.base or "", (), code=options.trust_remote_code)
            inputs = Inputs((), (), base, open_tasks(self.tasks, options))
        found = weights_identity(inputs.adapters, inputs.base, options)
        if differs := changes(self.fingerprint, found):
            raise UsageError(
                f"A worker reads other inputs than this process ({'; '.join(differs[:3])}): give "
                "paths that every machine shares, or references with a commit."
            )
        return OpenedJob(self, inputs, Session("worker", options))


@dataclass
class OpenedJob:
    """Computes parts in a worker, whose base is loaded with the first question.

    built: the last system. looks: at the items that choose, with and without chat template.
    """

    job: Job
    inputs: Inputs
    session: Session
    plans: dict[bool, Plan] = field(default_factory=dict)
    built: tuple[Any, System] | None = None
    looks: dict[bool, list[Look]] = field(default_factory=dict)

    def __call__(self, part: ModuleBatch | Questions | AskedAlone) -> Any:
        if isinstance(part, ModuleBatch):
            return self._statistics(part)
        scorer = self._scorer(part)
        if isinstance(part, Questions):
            asked = [self._known[key] for key in part.keys]
            with scorer.with_composition(self._system(part).composition):
                limits = TokenLimits.of(self.job.options.max_new_tokens)
                return ask(scorer, asked, part.system.key, limits)
        look = part.look if isinstance(part.look, Look) else self._looks(scorer)[part.look - 1]
        return self._alone(part.name, look, scorer)

    def _statistics(self, part: ModuleBatch) -> BatchStatistics:
        if part.compatible not in self.plans:
            base = self.inputs.base if part.compatible else None
            adapters, options = self.inputs.adapters, self.job.options
            self.plans[part.compatible] = planned(adapters, base, options, part.compatible)
        (found,) = self.plans[part.compatible].observe([part.paths])
        return found

    @cached_property
    def _loaded_base(self) -> Any:
        assert self.inputs.base is not None
        return open_scorer(self.inputs.base, self.job.options.dtype, self.session)[0]

    def _scorer(self, part: Questions | AskedAlone) -> Any:
        """The scorer in the run's form of prompts. Raises UsageError on another kind of device."""
        scorer, setup = self._loaded_base, part.setup  # which says where it computes
        own, wanted = self.session.kind_of_device, (setup.device, setup.dtype)
        if own != wanted:
            raise UsageError(
                f"A worker computes on {' in '.join(own)} and this process on "
                f"{' in '.join(wanted)}: start it on a machine like the workers', or give --device "
                "and --dtype."
            )
        return scorer.with_template(setup.chat_template)

    @cached_property
    def _known(self) -> Mapping[tuple[str, str, str], Question]:
        return {q.key: q for q in questions(self.inputs.tasks, self.job.options.metric)}

    def _system(self, part: Questions) -> System:
        if self.built is None or self.built[0] != part.system:
            adapters, prepared = self._experts(part.system.members)
            setup, base = part.setup, self.inputs.base
            builder = SystemBuilder(
                adapters, prepared, self.job.options, base, setup.searched, setup.routers
            )
            system = part.system
            self.built = system, builder.named(system.spec or system.name, system.of)
        return self.built[1]

    def _experts(self, members: Sequence[str]) -> tuple[Sequence[Adapter], Prepared]:
        """The adapters of a system as they were trained, and as they are merged and routed."""
        if self.job.places is None:
            return self.inputs.adapters, self._prepared
        base = self.inputs.base
        adapters = aligned([self._loaded(name) for name in members], base)
        if len(adapters) < 2:  # base and single adapters are asked as they are
            return adapters, Prepared(tuple(adapters))
        return adapters, prepare(adapters, self.job.options, (), base)

    @cached_property
    def _prepared(self) -> Prepared:
        return prepare_inputs(self.inputs, "route", self.session)

    def _looks(self, scorer: Any) -> list[Look]:
        """The looks at the items that choose, in the scorer's form of prompts."""
        chat, options = scorer.chat_template, self.job.options
        if chat not in self.looks:
            parts = split_for_screening(self.inputs.tasks, options)
            self.looks[chat] = looks_of(scorer, parts.apart, options)
        return self.looks[chat]

    def _loaded(self, name: str) -> Adapter:
        """An adapter of a library. Raises UsageError for other weights than the run has."""
        assert self.job.places is not None
        place, sha256 = self.job.places[name]
        ((_, _, found),) = hub.load_each(self.job.adapters, [place])
        if isinstance(found, LoraprobeError):
            raise found
        if weights_hash(found) != sha256:
            raise UsageError(
                f"A worker reads another {name} than this process: give paths that every machine "
                "shares, or references with a commit."
            )
        return found

    def _alone(self, name: str, look: Look, scorer: Any) -> Answered:
        """Asks an adapter of a library, whose answers and hidden states are returned."""
        opened = None if name == BASE else partial(self._loaded, name)
        try:
            system = system_alone(name, opened, self.inputs.base)
        except UsageError:
            raise
        except LoraprobeError:
            return None
        evaluator, states = Evaluator(self.inputs, self.session, scorer, Ledger(), look.tasks), None
        try:
            if look.reading is not None:
                states, answers = read_states(evaluator, system, look.reading)
                evaluator.ledger.append(answers)
            evaluator.run([system])
        except LoraprobeError:
            return None  # the process that started this one finds the reason again
        return list(evaluator.ledger), states


def open_units(
    adapters: Adapters, inputs: Inputs, places: Places | None = None, **given: Unpack[Given]
) -> Units:
    """How the parts of a run are computed.

    places: of a library. Raises UsageError for open objects with --executor, which no other process
    can open, and for shards of other inputs.
    """
    options, base = given.get("options", Options()), given.get("base")
    if options.executor is None and not options.joined:
        return Units()
    identity = weights_identity(inputs.adapters, inputs.base, options)
    kept = None
    if options.joined and places is None:
        check_inputs(options.joined, identity)
        kept = KeptStatistics(options.joined, identity)
    if options.executor is None:
        return Units(None, kept)
    tasks: Any = given.get("tasks", ())
    several = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
    opened = [*adapters, *several, *([] if base is None else [base]), *options.subtract]
    if not all(isinstance(one, (str, Path)) for one in opened):
        raise UsageError(
            "--executor opens adapters, base and tasks in every process: give references and "
            "paths, not open objects."
        )
    alone = replace(
        options, executor=None, shard=None, joined=(), state=None, resume=False, started=None
    )
    references, texts = tuple(map(str, adapters)), tuple(map(str, several))
    job = Job(
        references, None if base is None else str(base), texts, alone, identity, places=places
    )
    return Units(open_pool(options.executor, job, options.threads, stateless=not several), kept)
