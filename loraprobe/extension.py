"""What an extension may add: commands, options of commands, Python functions, merge methods,
routers and other members of registries, parts of an audit, sources of tasks, systems, who asks the
base, what answers in its place, what a verdict tells, what is written of a result.

The module of an extension has an instance of a class derived from `Extension`, under the name
EXTENSION, and imports what is heavy in its methods. The core asks every extension and knows none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from loraprobe import wiring
from loraprobe.errors import UsageError
from loraprobe.formatting import listing
from loraprobe.options import AddedOptions, CommandSpec, Options

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter, Artifact
    from loraprobe.base import Base
    from loraprobe.errors import LoraprobeError
    from loraprobe.evaluation import System
    from loraprobe.records import (
        Audit,
        Command,
        EvaluationRecords,
        Issue,
        Kind,
        Progress,
        Reason,
        Sample,
        Verdict,
    )
    from loraprobe.scoring import ModelScorer, Scorer
    from loraprobe.session import Executor, Session
    from loraprobe.tasks import Task
    from loraprobe.tasks.splits import TaskSplit
    from loraprobe.verdict import Annotator, Evidence, Exclusion


Found = TypeVar("Found")
PRINTED = Path("-")  # where a form is written that is printed in place of the report
PASSES = 3  # of a text that a gradient is computed of: one forth, and one back of twice its time


@dataclass(frozen=True)
class Summary:
    """What an audit is about, as an extension tells it.

    headline: what the answer says first where there is no verdict. short: the same for --quiet.
    adapters: how many it is about beside those of the audit. brief: a terminal without --explain
    leaves out the adapters and the scores of the audit. fails: the exit code is 1 where nothing was
    measured.
    """

    headline: str = ""
    short: str = ""
    adapters: int = 0
    brief: bool = False
    fails: bool = False


class AuditPart:
    """What an extension adds to an audit and to its reports; one that adds nothing but its record.

    record: a frozen dataclass with a default for each field. The fields are keys of the JSON
        document; `audit.of_extension(record)` has their values, and `audit_of` takes the record
        among `added`.
    findings: the beginning of the codes of findings that `lines` tell.
    unfit: what a headline says of a file in which only these findings are errors.
    leading: the labels of lines that matter more to a reader than why a verdict is so.
    """

    record: type[Any]
    findings: ClassVar[str] = ""
    unfit: ClassVar[str] = ""
    leading: ClassVar[Collection[str]] = ()

    def summary(self, audit: Audit) -> Summary:
        """What the audit is about, where that is what the extension adds."""
        return Summary()

    def lines(self, audit: Audit) -> Iterable[tuple[str, str | Command]]:
        """Lines of the answer, each a label and what stands behind it; empty ones are left out.

        An answer has `MOST_ROWS` rows of sentences (`loraprobe.report.answer`), taken in the order
        of `BY_EFFECT`. A line of a label in `leading` comes before the reasons of the verdict, any
        other behind the first of each kind and before a second reason, other options and what is
        known elsewhere, so it takes the row of one of these where there are too many. What has no
        row stands under --explain and on pages. A command, and a sentence that is `AlwaysShown`
        (`loraprobe.report.parts`), always stands; give few.
        """
        return ()

    def commands(self, audit: Audit) -> Iterable[tuple[str, Command]]:
        """Commands of the answer behind the next one, each with its label."""
        return ()

    def sections(self, audit: Audit) -> Iterable[tuple[str, Any]]:
        """Sections of a report, each behind the name of that of the core before which it stands:
        "gains", "causes", "examples", "findings", "pairs", "modules", "adapters", "coverage",
        "reasons" or "provenance".

        `loraprobe.report.sections.section` makes one of its name, which is an id, its title, and
        pairs of the views that show parts and these parts: texts, and what `loraprobe.report.parts`
        has, as `tabulated` makes tables. `SHORT` is a terminal without --explain, `FULL` a page and
        a terminal with it, `MARKDOWN` a pull request, `EVERYWHERE` all but the first. A section
        without parts is left out.
        """
        return ()


@dataclass(frozen=True)
class Workload:
    """What an engine is going to be asked.

    adapters: are asked alone and composed. others: only enter merges, or, where at most `together`
    are composed, are the other ones of a library. tasks, guards: whose questions are asked. merges:
    whether all adapters are merged.
    """

    base: Base
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    guards: Sequence[Task] = ()
    others: Sequence[Adapter] = ()
    together: int | None = None
    merges: bool = False


class Backend(ABC):
    """What answers questions in place of transformers in this process: an `Engine` or a `Pool`.

    A run has one backend at most. flag: the option that names it.
    """

    flag: str

    @abstractmethod
    def chosen(self, options: Options) -> bool:
        """Whether the options ask for it."""

    def hint(self, session: Session, seconds: float) -> str:
        """A sentence beside the estimate of --dry-run that a run takes so long, "" for none."""
        return ""


class Engine(Backend):
    """A program that answers in place of transformers."""

    @abstractmethod
    def open(self, work: Workload, session: Session, local: ModelScorer) -> Scorer:
        """The scorer to ask, which is closed at the end of the run.

        It is of a class derived from `loraprobe.scoring.Scorer`, whose `__init__` takes what it has
        of the base from `local`, and which gives `with_composition`, `write_all` (a `Written` for
        each prompt), `loglikelihood` (a `Likelihood` for each pair) and `note`. A `Composition` has
        the name of the system that is asked, its adapters as `experts`, and its router.

        It sets `session.engine` to what answers, with its version: answers that are kept are told
        apart by that. local: the base by transformers, which is also there to be asked what the
        engine cannot run. Raises LoraprobeError, EngineError where what answers fails.
        """

    def refused(self, adapters: Sequence[Adapter]) -> dict[str, LoraprobeError]:
        """The adapters that it cannot run, by name, each with its error."""
        return {}


class Pool(Backend):
    """Processes, on this machine or others, that ask the base by transformers."""

    @abstractmethod
    def open(self, session: Session) -> AbstractContextManager[Executor]:
        """The processes, while the context lasts. Raises UsageError where they cannot be used."""


@dataclass(frozen=True)
class Result:
    """What a command found or made, before it is told.

    adapters: those that were given, as their files are. made: the merge, the composition, or the
    adapter that was rewritten. measured: what an evaluation measured. asked: whether the command
    asks the base. subtrahends: what was subtracted from the adapters. place: the directory in which
    a merge or a composition is written, if it is.
    """

    adapters: Sequence[Adapter]
    base: Base | None = None
    made: Artifact | Adapter | None = None
    verdict: Verdict | None = None
    measured: EvaluationRecords | None = None
    asked: bool = False
    subtrahends: Sequence[Adapter] = ()
    place: Path | None = None


@dataclass(frozen=True)
class Remarks:
    """What an extension tells of a result: findings about files, reasons that stand behind those of
    the verdict, records of its `AuditPart`, in which commands name adapters as the audit does, and
    the command that checks what is written, if it has one.
    """

    issues: Sequence[Issue] = ()
    reasons: Sequence[Reason] = ()
    added: Sequence[Any] = ()
    check: Command | None = None


@dataclass(frozen=True)
class CardPart:
    """A part of a model card: its title, Markdown, commands, and what its front matter says of it
    beside how the adapter was made."""

    title: str
    text: str
    commands: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Constraint(ABC):
    """What keeps systems from being used, such as where they are to run.

    It changes what is advised and no decision.
    """

    @abstractmethod
    def exclude(
        self, adapters: Sequence[Adapter], systems: Sequence[System], base: Base
    ) -> Mapping[str, Exclusion]:
        """The names of what cannot be used, with the reasons.

        adapters: those of the run, as their files are. systems: their merges and routers. A merge
        has its adapter where one was made; while questions are asked some have none yet.
        """


class TaskSource(ABC):
    """Where the tasks of some references of --task and --guard come from.

    A reference begins with a word and a colon, as "suite:", which the next command keeps before
    the name of another task, or it is a file that the core does not read. help: how one is written,
    for --help. asks: whether its items have an `Examiner`, so that there is nothing to learn
    weights from.
    """

    help: ClassVar[str] = ""
    asks: ClassVar[bool] = False

    @abstractmethod
    def claims(self, reference: str) -> bool:
        """Whether a reference is one of this source, by how it begins."""

    def reads(self, path: Path, options: Options) -> bool:
        """Whether it reads a file, which no source claims and the core would read otherwise."""
        return False

    @abstractmethod
    def open(self, reference: str, options: Options) -> Sequence[Task]:
        """The tasks of a reference, of each at most `options.limit` items.

        options: for this task (`AddedOptions.for_each`). Raises TaskError, or UsageError where
        another reference or option is the cure.
        """

    def hint(self, row: Mapping[str, Any], unknown: str) -> str:
        """The cure of a key that no item has, in a row of a file that the core reads; "" where this
        source knows none."""
        return ""


@dataclass(frozen=True)
class AddedSystems:
    """What a `SystemSource` made: systems, notes for the report, and records of its `AuditPart`."""

    systems: Sequence[System] = ()
    notes: Sequence[str] = ()
    records: Sequence[Any] = ()


@dataclass(frozen=True)
class SourceInputs:
    """What a `SystemSource` makes its systems of.

    scorer: the base in memory, by transformers. parts: what `set_apart` gave. composed: the
    compositions, none of which was asked yet. ask: what these systems score on the questions of the
    first round, beside base and adapters, as a decision would see it; their answers are kept, so
    that none is asked twice. place: the directory of what this run keeps, for what a run with
    `session.resume` goes on from. ends: by time.perf_counter, when they should be made.
    """

    scorer: ModelScorer
    base: Base
    parts: TaskSplit
    composed: Sequence[System]
    session: Session
    ask: Callable[[Sequence[System]], Evidence]
    place: Path
    ends: float = float("inf")


@dataclass(frozen=True)
class Measured:
    """What an extension measured: records of its `AuditPart`, and notes for the report."""

    records: Sequence[Any] = ()
    notes: Sequence[str] = ()


class SystemSource(ABC):
    """Systems of kinds of its own (`Extension.kinds`) that an extension adds to evaluations: those
    of `merge-and-eval`, and of the sets that `screen` proves.

    They may be made of items of the tasks, on which nothing is scored then. They are asked what all
    others are asked, in the same rounds, and the guards, and each is compared with all others. They
    change no decision; the one that has the `name` of its kind is advised where no composition is
    shown to gain and it is the best that was measured. Its `artifact`, if it has one, is written
    then. `AuditPart` and `Annotator` tell of them. The methods are called in this order. flag: the
    option that asks for them.
    """

    flag: ClassVar[str]

    @abstractmethod
    def set_apart(self, tasks: Sequence[Task], options: Options) -> TaskSplit:
        """The items of which systems are made, and the others.

        `loraprobe.tasks.splits.drawn` draws them in whole groups, by the seed, so that most are
        those from which weights and routers learn. Raises TaskError where the tasks have too few
        items, or items of which no system can be made, UsageError where an option stands in the
        way.
        """

    @abstractmethod
    def expected(self, parts: TaskSplit) -> Mapping[str, int]:
        """The names of its systems, each with how many texts are read at most to make it.

        A text that a gradient is computed of counts PASSES times. parts: what was set apart, and
        the items on which systems are scored, which nothing set apart.
        """

    def memory(self, scorer: ModelScorer, parts: TaskSplit) -> tuple[int, str]:
        """The bytes that making its systems takes beside the base, on the device of that, and a
        sentence about them, for --dry-run. Raises LoraprobeError for what cannot be made."""
        return 0, ""

    @abstractmethod
    def make(self, given: SourceInputs) -> AddedSystems:
        """Makes the systems; the scorer's model is as before afterwards.

        The `content` of a system decides whether answers that are kept are its own. What is left
        out where the time ends stands in a note. Raises LoraprobeError.
        """


class OutputFormat(ABC):
    """A format, other than that of --output, in which `merge` and `merge-and-eval` write what they
    made.

    It is made with the base, which is opened and hashed for it. Where it is written alone, no rank
    cuts it unless one is asked for. flag: the option that names its directory. name: as sentences
    call it, such as "a full model". load: the line of Python that loads it, {0} its directory.
    """

    flag: str
    name: str
    load: str

    @abstractmethod
    def place(self, options: Options) -> Path | None:
        """Its directory; None where the options do not ask for it."""

    @abstractmethod
    def takes(self, made: Any) -> bool:
        """Whether what was made has this format."""

    @abstractmethod
    def write(
        self, made: Any, place: Path, overwrite: bool, progress: Progress | None
    ) -> Sequence[str]:
        """Writes the directory, all or nothing; what was written, in sentences.

        Raises OutputError where it cannot be written.
        """

    @abstractmethod
    def check(self) -> None:
        """Raises UsageError where it cannot be written here, before anything is read."""


class ResultLog(ABC):
    """Files that a command writes of its result, such as pages or those of another tool, or a form
    of it that is printed in place of the report for terminals.

    flag: the option that asks for such a form.
    """

    flag: str = ""

    @abstractmethod
    def place(self, options: Options) -> Path | None:
        """Their file or directory, PRINTED for such a form; None where the options do not ask for
        it.

        A command begins only where it neither is, contains nor lies inside what the command reads.
        """

    @abstractmethod
    def write(self, audit: Audit, samples: Iterable[Sample], place: Path) -> None:
        """Writes them before the result is printed, or prints it.

        `loraprobe.report.sections.sections` gives the parts of a report. samples: every question
        with what each system answered, where a command has them. Raises OutputError where they
        cannot be written.
        """


class Extension:
    """An extension that adds nothing, from which others are derived; most add two or three things.

    What people call:

    options: a frozen dataclass of its options, which have a group of their own in help and
        documentation; `session.options.of_extension(options)` has their values.
    commands: the commands that it adds.
    functions: the Python functions that it adds to `loraprobe`, name -> dotted name.
    members: the noun of a registry, "merge method", "router", "diagnostic" or "coverage probe" ->
        the modules that define members which it adds, imported when that registry is used. A member
        is a class as in a file of the core's folder. A name that is taken is a UsageError.

    What a run uses where its options and references ask for it (`system_sources` and `kinds` too):

    task_sources: where tasks come from, beside files of our own form.
    backends: what can answer questions in place of transformers in this process.
    output_formats: the formats in which commands can write what they made.
    logs: the files that commands can write of a result, such as pages.

    What it tells of a run, by the methods below:

    codes: a file such as loraprobe/verdict/codes.toml, with the reasons that they give. Its table
        `findings` is one such as loraprobe/findings.toml, with codes of its own and with fields of
        the core's codes that it gives otherwise.
    other_types: a PEFT type other than LORA -> the cure, {place} in it the adapter and {base} its
        base.
    layouts: the dotted name of each `AdapterLayout` (`loraprobe.adapters.layouts`), in the order in
        which they bring adapters to the form of the base.
    foreign_weights: a file of weights that another library writes beside adapter_config.json -> the
        dotted name of what reads both as peft would have them, and the code of the finding that
        says so. It takes the directory and the prefix of peft's keys, gives an `AdapterConfig` and
        a `TensorFile` (`loraprobe.adapters.config`, `loraprobe.checkpoint`); raises AdapterError.
    """

    options: ClassVar[type[AddedOptions] | None] = None
    commands: ClassVar[Sequence[CommandSpec]] = ()
    functions: ClassVar[Mapping[str, str]] = {}
    members: ClassVar[Mapping[str, Sequence[str]]] = {}
    task_sources: ClassVar[Sequence[TaskSource]] = ()
    backends: ClassVar[Sequence[Backend]] = ()
    output_formats: ClassVar[Sequence[OutputFormat]] = ()
    logs: ClassVar[Sequence[ResultLog]] = ()
    codes: ClassVar[Path | None] = None
    other_types: ClassVar[Mapping[str, str]] = {}
    layouts: ClassVar[Sequence[str]] = ()
    foreign_weights: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def override(self, command: str, options: Options) -> Callable[..., None] | None:
        """The function that is called in place of a command's own, with those of the same arguments
        that it has; None where the options ask for nothing else.

        It is for an option with which a command does another thing, as `verify --served` does.
        Raises UsageError for options that go with such a function only.
        """
        return None

    def constraints(self, options: Options) -> Sequence[Constraint]:
        """What keeps systems from being used, such as servers; it changes what is advised."""
        return ()

    def system_sources(self, options: Options) -> Sequence[SystemSource]:
        """What makes systems that are evaluated beside all others."""
        return ()

    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of these systems, each a "reference"; audits that are read have them too."""
        return {}

    def annotators(self, options: Options) -> Sequence[Annotator]:
        """What tells something beside the decision of a verdict, such as a probability; it can only
        leave that open."""
        return ()

    def measure(
        self,
        scorer: ModelScorer,
        composed: Sequence[System],
        tasks: Sequence[Task],
        session: Session,
    ) -> Measured:
        """What is measured of the compositions of merge-and-eval after all questions were asked.

        scorer: the base in memory, by transformers, whose model is as before afterwards. tasks:
        those of the last round. No decision depends on it.
        """
        return Measured()

    def remarks(self, session: Session, result: Result) -> Remarks:
        """What is told of the result of `session.command`, beside its verdict.

        Raises UsageError for options that do not go with it.
        """
        return Remarks()

    def card_parts(self, adapter: Adapter, audit: Audit | None) -> Sequence[CardPart]:
        """What the model card of an adapter tells beside how it was made.

        audit: of the command that made it, None where it was only rewritten.
        """
        return ()

    def notebook(self, audit: Audit) -> str | None:
        """An audit as HTML, for notebooks; the first that is given is shown."""
        return None

    def audit_parts(self) -> Sequence[AuditPart]:
        """What it adds to audits: keys of the JSON document, lines and sections of reports."""
        return ()


def remarks_of(session: Session, result: Result) -> Remarks:
    """What all extensions tell of a result; of commands that check it the first."""
    remarks = [one.remarks(session, result) for one in installed()]
    issues = tuple(issue for one in remarks for issue in one.issues)
    reasons = tuple(reason for one in remarks for reason in one.reasons)
    added = tuple(record for one in remarks for record in one.added)
    return Remarks(issues, reasons, added, next((one.check for one in remarks if one.check), None))


def audit_parts() -> list[AuditPart]:
    """What the extensions of this installation add to audits."""
    return [part for one in installed() for part in one.audit_parts()]


def finding_owner(code: str) -> AuditPart | None:
    """The part whose lines tell findings of a code; None for those of the core."""
    parts = (part for part in audit_parts() if part.findings)
    return next((part for part in parts if code.startswith(part.findings)), None)


def summaries(audit: Audit) -> list[Summary]:
    """What the audit is about, as each part tells it."""
    return [part.summary(audit) for part in audit_parts()]


def commands_behind(audit: Audit) -> list[tuple[str, Command]]:
    """The commands of extensions behind the next one, each with its label."""
    return [line for part in audit_parts() for line in part.commands(audit)]


def system_sources(options: Options) -> list[SystemSource]:
    """What makes the systems that the options ask extensions for."""
    return [source for one in installed() for source in one.system_sources(options)]


def output_formats_of(options: Options) -> list[tuple[Path, OutputFormat]]:
    """The directories of other formats that the options ask for, each with its format."""
    formats = [format_ for one in installed() for format_ in one.output_formats]
    return [(place, one) for one in formats if (place := one.place(options)) is not None]


def logs_of(options: Options) -> list[tuple[Path, ResultLog]]:
    """Where the options ask for files of a result, each with what writes them."""
    logs = [log for one in installed() for log in one.logs]
    return [(place, one) for one in logs if (place := one.place(options)) is not None]


def backend_of(options: Options) -> Backend | None:
    """What answers questions in place of transformers in this process; None where nothing does.

    Raises UsageError for several.
    """
    chosen = [backend for one in installed() for backend in one.backends if backend.chosen(options)]
    flags = listing(backend.flag for backend in chosen)
    return _only(chosen, f"{flags} each say what answers the questions; give one of them.")


def engine_of(options: Options) -> Engine | None:
    """The engine that answers the questions; None where transformers does."""
    backend = backend_of(options)
    return backend if isinstance(backend, Engine) else None


def task_source_of(reference: str, options: Options) -> TaskSource | None:
    """The source that claims the reference of a task, or reads that file; None where the core does.

    Raises UsageError where several do.
    """
    sources = task_sources()
    claiming = [one for one in sources if one.claims(reference)]
    claiming = claiming or [one for one in sources if one.reads(Path(reference), options)]
    modules = listing(type(one).__module__ for one in claiming)
    return _only(claiming, f"{modules} each read the task {reference}; uninstall one of them.")


def task_sources() -> list[TaskSource]:
    """The sources of tasks that extensions add."""
    return [source for one in installed() for source in one.task_sources]


def override_of(command: str, options: Options) -> Callable[..., None] | None:
    """The function that an extension has in place of a command's own; None where none has.

    Raises UsageError where several have one.
    """
    functions = [one.override(command, options) for one in installed()]
    chosen = [function for function in functions if function is not None]
    modules = listing(function.__module__ for function in chosen)
    return _only(chosen, f"{modules} each change {command} by its options; give those of one.")


def _only(found: Sequence[Found], several: str) -> Found | None:
    """The only one; None where there is none. Raises UsageError with a sentence for several."""
    if len(found) > 1:
        raise UsageError(several)
    return found[0] if found else None


def installed() -> tuple[Extension, ...]:
    """The extensions of this installation."""
    return wiring.extensions()
