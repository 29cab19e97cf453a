"""The command to run after a verdict: what would tell more where it is open, else what it advises.

`next_command` picks by `Action`, `_tell_more` by `Verdict.missing`. Words in capitals stand for
what the user supplies. A command that writes runs as it is: it makes the directory `DIR`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loraprobe.defaults import FEWEST_ITEMS, HOPELESS, PLAIN_TOKENS
from loraprobe.formatting import listing
from loraprobe.options import commands, flag_of, named_options, options_of, table
from loraprobe.records import (
    FORMS,
    LOAD_ADAPTER,
    NOTHING,
    SHRUNK,
    Command,
    EvaluationRecords,
    Verdict,
    adapter_name,
    example,
    references,
)
from loraprobe.verdict.programs import ask_chain, switch_by_task
from loraprobe.verdict.reasons import limit_of_tokens, most_cut

Flag = tuple[str, ...]  # a flag with its value, if it takes one
# What stands for a thing that does not exist yet.
NEW, TASK, FILL_BASE, OTHER = "NEW", "questions.jsonl", "BASE", "OTHER"
TO_FILL_IN = {
    NEW: "an adapter that you train on what you ask",
    TASK: "your file, a question with its answer a line",
    FILL_BASE: "the base model that they were trained on",
    OTHER: "another adapter of the same base",
}
MORE, HARDER = "MORE-", "HARDER-"  # before the name of a task: a file of further questions
UNTARGETED = "weights-untargeted"  # a finding
MERGE_AND_EVAL, NOTHING_MEASURED = Command("merge-and-eval"), EvaluationRecords()
RESUME, CHAIN, WRITE = ("--resume",), ("--system", "chain"), ("-o", "DIR")
PROBE = ("--probe", "auto")
# What the result of a command does not depend on: nothing is asked where a merge or a composition
# is written, and no question of a task where adapters are inspected. Any other command ignores what
# only a report shows more of.
IGNORED = {
    "merge": {"questions", "report"},
    "route": {"questions", "report"},
    "inspect": {"questions"},
}


@dataclass(frozen=True)
class CompositionSpec:
    """How the verdict's system is made: by a merge method or a router.

    spec: with its options; "" where that is the name of the system. fitted: to prompts or to
    questions. weighted: whether it uses weights.
    """

    kind: Literal["merge", "router"] = "merge"
    spec: str = ""
    fitted: bool = False
    weighted: bool = True


@dataclass(frozen=True)
class Conflict:
    """What keeps adapters from being composed.

    kind: "base" where the base given is not theirs, "untargeted" where the only fault is weights
    that peft ignores, "unlike" where no change of their files makes them fit, else "other".
    fitting: the references of adapters without a conflict among them. parents: the command that
    writes the base of an adapter that was trained on others, where the base lacks these.
    """

    kind: Literal["base", "untargeted", "unlike", "other"] = "other"
    fitting: tuple[str, ...] = ()
    parents: Command = NOTHING


@dataclass(frozen=True)
class Request:
    """What a command worked on, in the words of a command line.

    base: "auto" where the adapters name it themselves, "" where nobody does. bases: those that they
    name, FILL_BASE for a path. given: the options that were set. evaluation: the command that
    evaluates, with its adapters where these are others.
    """

    adapters: tuple[str, ...]
    base: str = "auto"
    bases: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    given: tuple[Flag, ...] = ()
    evaluation: Command = MERGE_AND_EVAL
    composition: CompositionSpec = CompositionSpec()
    conflict: Conflict = Conflict()

    def value_of(self, flag: str) -> str | None:
        """The value of an option that was set; None where it was not."""
        return next((option[1] for option in self.given if option[0] == flag), None)

    def without(self, *flags: str) -> Request:
        """The request as if some options were not set."""
        return replace(self, given=tuple(option for option in self.given if option[0] not in flags))


def next_command(
    verdict: Verdict, request: Request, measured: EvaluationRecords = NOTHING_MEASURED
) -> Command:
    """The command to run after a verdict on what was measured."""
    if "compression-lost" in verdict.codes:
        settled = verdict.composes and verdict.decision != "inconclusive"
        if not settled and verdict.missing != "rank":
            request = request.without("--rank")
    if _is_open(verdict):
        return _tell_more(verdict, request, measured)
    if verdict.composes:
        return _write(verdict, request)
    adapters, added = request.adapters, references()
    if any(row.kind in added and row.system == verdict.used for row in measured.scores):
        return _evaluate(request, RESUME, WRITE)
    match verdict.action.kind:
        case "fix":
            return _fix(request)
        case "use-single":
            single = verdict.action.adapter
            place = next((ref for ref in adapters if adapter_name(ref) == single), single)
            return Command("python", (place,), text=LOAD_ADAPTER)
        case "switch-adapters":
            return switch_by_task(adapters, verdict.by_task)
        case "chain" if measured.chain:
            tokens = int(request.value_of("--max-new-tokens") or PLAIN_TOKENS)
            return ask_chain(adapters, example(measured.chain), tokens)
        case "chain":
            return _evaluate(request, CHAIN)
        case "gather-evidence" if verdict.evidence == "weights":
            return _inspect(request, ("--base", request.base or FILL_BASE), PROBE)
        case "use-base" if verdict.missing == "harder-items":
            return _evaluate(request, tasks=_further_files(HARDER, request.tasks))
        case "use-base" | "train-target-adapter":
            return _evaluate(request, adapters=(*adapters, NEW))
        case "gather-evidence" if may_stop(verdict):
            return _evaluate(request, adapters=(*adapters, NEW))
    return _tell_more(verdict, request, measured)


def _is_open(verdict: Verdict) -> bool:
    """Whether what the questions leave open has to be known before anything else is done."""
    if verdict.missing in ("answers", "metric"):
        return True
    asked = verdict.evidence in ("base", "pilot", "evaluation")
    undecided = verdict.decision == "inconclusive" and not verdict.compositions_not_asked
    return asked and undecided and not may_stop(verdict)


def may_stop(verdict: Verdict) -> bool:
    """Whether an open verdict leaves so little hope of a gain that no more need be asked."""
    gain = verdict.gain
    if verdict.decision != "inconclusive" or gain is None or gain.probability is None:
        return False
    return gain.probability <= HOPELESS


def _tell_more(verdict: Verdict, request: Request, measured: EvaluationRecords) -> Command:
    """The command that gathers what the verdict misses."""
    # After --limit further questions are at hand.
    limited = request.value_of("--limit") is not None
    more = request.tasks if limited else _further_files(MORE, request.tasks)
    match verdict.missing:
        case "answers":
            return _look_at_replies(verdict, request, measured)
        case "metric":  # the gold answers choose one
            return _evaluate(request.without("--metric"))
        case "wording":
            return _evaluate(request, ("--metric", "contains"))
        case "time":
            return _evaluate(request, RESUME)
        case "rank" if request.value_of("--rank") is not None:
            return _evaluate(request.without("--rank"))
        case "rank":  # at auto the methods that are asked by default lose nothing
            return _evaluate(request.without("--method", "--system"))
        case "compositions" | "chain" if verdict.system == "chain":
            return _evaluate(request.without("--limit"), CHAIN, RESUME, tasks=more)
        case "compositions" | "controls":  # all of them are scored
            return _evaluate(request.without("--system"), RESUME)
        # Where only clusters are missing, the other questions of the same ones decide nothing.
        case "guard-items" if not limited:
            given = (
                (flag, *_further_files(MORE, values)) if flag == "--guard" else (flag, *values)
                for flag, *values in request.given
            )
            return _evaluate(replace(request, given=tuple(given)), RESUME)
    if verdict.missing == "items" or verdict.evidence == "evaluation":
        return _evaluate(request.without("--limit"), RESUME, tasks=more)
    resumed = [RESUME] if verdict.evidence in ("base", "pilot") else []
    return _evaluate(request, *resumed, tasks=request.tasks or (TASK,))


def _look_at_replies(verdict: Verdict, request: Request, measured: EvaluationRecords) -> Command:
    """The command that looks where nothing answers: an adapter with the weight with which it
    answers; by another metric, with more tokens, or at the questions as a model reads them."""
    single = (verdict.system or "").removeprefix(SHRUNK)
    shrunk = [ref for ref in request.adapters if adapter_name(ref) == single]
    if shrunk and single != verdict.system and request.evaluation == MERGE_AND_EVAL:
        return _shrink(request, shrunk[0])
    causes = {"said-otherwise": 0.0, "answers-cut": 0.0}  # the shares of the replies
    causes |= {why.code: why.value or 0.0 for why in verdict.reasons if why.code in causes}
    if causes["said-otherwise"] > causes["answers-cut"]:
        return _evaluate(request, ("--metric", "contains"))
    if causes["answers-cut"]:
        rows, given = measured.scores, request.value_of("--max-new-tokens")
        worst = most_cut([row for row in rows if row.part in FORMS and row.kind != "control"])
        limit = PLAIN_TOKENS
        if worst is not None:
            _, limit = limit_of_tokens(worst, rows, int(given) if given else None)
        return _evaluate(request, ("--max-new-tokens", str(limit)))
    return show_questions(request)


def _shrink(request: Request, adapter: str) -> Command:
    """The command that writes an adapter with the weight that it has in the shrunk control."""
    weight = f"{1 / len(request.adapters):.2g}"
    allowed = [option for option in _options_for(request, "merge") if option[0] == "--allow"]
    method = ("--method", "task_arithmetic")
    options = (*_base_option(request), method, *allowed, ("--weights", weight), WRITE)
    return Command("merge", (adapter,), options)


def show_questions(request: Request) -> Command:
    """The command that shows the questions as a model reads them."""
    base = request.base if request.base != "auto" else next(iter(request.bases), "")
    options = (("--base", base),) if base not in ("", FILL_BASE) else ()
    reading = _options_for(request.without("--limit"), "task sample")
    return Command("task sample", request.tasks, (*options, *reading))


def _fix(request: Request) -> Command:
    """The command after a structural conflict. The first of these rows that holds decides:

    - an adapter was trained on a base that holds other adapters: the command writes that base;
    - only the base is wrong: the request is repeated with the base that the adapters name;
    - only weights that peft ignores are wrong: the request is repeated and allows them;
    - some of the adapters fit together: these are inspected;
    - the adapters have several bases, or no change of their files makes them fit: the command finds
      other adapters of one base;
    - anything else: the adapters are inspected again, once their files are mended.
    """
    conflict, bases = request.conflict, request.bases
    if conflict.parents:
        return conflict.parents
    if conflict.kind == "base":
        base = bases[0] if len(bases) == 1 and bases[0] != request.base else FILL_BASE
        if request.tasks:
            return _evaluate(replace(request, base=base))
        return _inspect(request, ("--base", base))
    if conflict.kind == "untargeted":
        allow = ("--allow", UNTARGETED)
        if request.tasks:
            return _evaluate(request, allow)
        options = (*_base_option(request), *_options_for(request, "inspect"), allow)
        return Command("inspect", request.adapters, options)
    if 1 < len(conflict.fitting) < len(request.adapters):
        return Command("inspect", conflict.fitting)
    if len(bases) > 1 or conflict.kind == "unlike":
        others = adapters_of(next(iter(bases), FILL_BASE))
        return others or Command("inspect", (request.adapters[0], OTHER))
    return Command("inspect", request.adapters)


def adapters_of(base: str) -> Command:
    """The command that lists adapters of a base; NOTHING where no extension has one."""
    verb = next((name for name, spec in commands().items() if spec.lists_adapters), "")
    return Command(verb, (base,)) if verb else NOTHING


def _inspect(request: Request, *options: Flag) -> Command:
    """The inspection of the request with further options."""
    return Command("inspect", request.adapters, (*_options_for(request, "inspect"), *options))


def _write(verdict: Verdict, request: Request) -> Command:
    """The command that writes the composition of the verdict."""
    composition = request.composition
    # The same call decides the same by the kept answers, and learns the same.
    if composition.fitted:
        return _evaluate(request, RESUME, WRITE)
    by_router = composition.kind == "router"
    verb, flag = ("route", "--router") if by_router else ("merge", "--method")
    spec = (flag, composition.spec or verdict.system or "")
    others = _options_for(request if composition.weighted else request.without("--weights"), verb)
    return Command(verb, request.adapters, (*_base_option(request), spec, *others, WRITE))


def _evaluate(
    request: Request,
    *options: Flag,
    tasks: tuple[str, ...] | None = None,
    adapters: tuple[str, ...] = (),
) -> Command:
    """The evaluation of the request, or of other tasks or adapters.

    options: in place of the given ones of these names.
    """
    verb, tasks = request.evaluation.verb, request.tasks if tasks is None else tasks
    others = request.without(*(option[0] for option in options))
    given = [*_base_option(request), *(("--task", task) for task in tasks)]
    adapters = request.evaluation.adapters or adapters or request.adapters
    return Command(verb, adapters, (*given, *_options_for(others, verb), *options))


# ---- parts of commands ---------------------------------------------------------------------------


def _options_for(request: Request, verb: str) -> list[Flag]:
    """The options that were set, of those that a command takes unchanged and that matter to it.

    A limit that leaves too few items to decide anything is left out.
    """
    ignored, changed = IGNORED.get(verb, {"report"}), commands()[verb].changed
    names = {*named_options()}.intersection(options_of(verb)).difference(changed)
    flags = {flag_of(name) for name in names if table()[name].metadata["affects"] - ignored}
    if int(request.value_of("--limit") or FEWEST_ITEMS) < FEWEST_ITEMS:
        flags.discard("--limit")
    return [option for option in request.given if option[0] in flags]


def _base_option(request: Request) -> tuple[Flag, ...]:
    return () if request.base == "auto" else (("--base", request.base or FILL_BASE),)


def _further_files(start: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Names of further files beside the tasks; a data set of the Hub goes by its last part.

    A task of another source stays one, and a further file that was given is that file.
    """
    named = ((_source(task), task) for task in tasks)
    lasts = ((kind, task[len(kind) :].rpartition("/")[2]) for kind, task in named)
    return tuple(f"{kind}{start}{last.removeprefix(start)}" for kind, last in lasts)


def _source(word: str) -> str:
    """How the reference of a task begins that is no file and no data set, as "suite:"."""
    source = re.match(r"\w{2,}:(?!//)", word)
    return source[0] if source else ""


# ---- beside the next command ---------------------------------------------------------------------


def on_questions(request: Request) -> Command:
    """The evaluation of the request on its tasks, on a task file where it has none."""
    return _evaluate(request, tasks=request.tasks or (TASK,))


def instead_of_probing(command: Command) -> Command:
    """From `inspect A B --probe auto` the command that decides on a task file, else no command."""
    if command.verb != "inspect" or PROBE not in command.options:
        return NOTHING
    request = Request(command.adapters, given=command.options)
    return on_questions(replace(request, base=request.value_of("--base") or "auto"))


def to_fill_in(command: Command) -> str:
    """What a command names that has to exist before it runs, in words; "" if everything does."""
    words = command.words
    harder = [word for word in words if word.removeprefix(_source(word)).startswith(HARDER)]
    if harder:
        noun = "task" if _source(harder[0]) else "file"
        noun = f"a {noun}" if len(harder) == 1 else f"{noun}s"
        return f"{listing(harder)}: {noun} of harder questions"
    if more := [word for word in words if word.removeprefix(_source(word)).startswith(MORE)]:
        first = more[0].replace(MORE, "", 1)
        return f"{more[0]}: the questions of {first} and more of the same kind; none is asked twice"
    return next((f"{word}: {what}" for word, what in TO_FILL_IN.items() if word in words), "")
