"""The command to run after a verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe.defaults import HOPELESS, PLAIN_TOKENS
from loraprobe.formatting import listing
from loraprobe.options import commands, flag_of, named_options, options_of, table
from loraprobe.records import (
    LOAD_ADAPTER,
    NOTHING,
    SHRUNK,
    ChainHop,
    Command,
    Verdict,
    adapter_name,
    example,
)

Flag = tuple[str, ...]  # a flag with its value, if it takes one
TASK = "questions.jsonl"  # stands for a task file that is still to be written
MORE, HARDER = "MORE-", "HARDER-"  # before the name of a task: a file of further questions
UNTARGETED = "weights-untargeted"  # a finding
NEW, BASE, OTHER = "NEW", "BASE", "OTHER"
RESUME, CHAIN = ("--resume",), ("--system", "chain")
# What the result of a command does not depend on: nothing is asked where a merge or a composition
# is written, and no question of a task where adapters are inspected. Any other command ignores what
# only a report shows more of.
IGNORED = {
    "merge": {"questions", "report"},
    "route": {"questions", "report"},
    "inspect": {"questions"},
}


@dataclass(frozen=True)
class Request:
    """What a command worked on, in the words of a command line.

    `base` is "auto" where the adapters name it themselves, "" where nobody does; `bases` are those
    that they name, BASE for a path. `given` are the options that were set. `kind` is the kind of
    the verdict's system, "merge" or "router", and `spec` its spec where that is not its name;
    `learned` says that this system was fitted to prompts or to questions, `weighted` that it uses
    weights. `fitting` are adapters without a conflict among them; `unlike` says that no change of
    their files makes the others fit, `wrong_base` that the base given is not theirs, `untargeted`
    that they hold weights that peft ignores, and nothing else is wrong. `again` is the command that
    evaluates in place of merge-and-eval, with its adapters.
    `parents` writes the base of an adapter that was trained on others, where the base lacks these.
    `chain` says who answers the hops of a chain that was measured, with answers of at most
    `most_tokens` tokens; `longer` is a limit to try where answers were cut.
    """

    adapters: tuple[str, ...]
    base: str = "auto"
    bases: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    given: tuple[Flag, ...] = ()
    kind: str = "merge"
    spec: str = ""
    learned: bool = False
    fitting: tuple[str, ...] = ()
    unlike: bool = False
    wrong_base: bool = False
    untargeted: bool = False
    again: Command = NOTHING
    parents: Command = NOTHING
    chain: tuple[ChainHop, ...] = ()
    most_tokens: int = PLAIN_TOKENS
    longer: int = PLAIN_TOKENS
    weighted: bool = True


def next_command(verdict: Verdict, request: Request, limited: bool = False) -> Command:
    """The command for the verdict's action.

    limited: --limit left items out, so that more of them are at hand.
    """
    head, single = verdict.action.kind, verdict.action.adapter
    kept = verdict.missing == "rank" or (verdict.composes and verdict.decision != "inconclusive")
    if not kept and any(one.code == "compression-lost" for one in verdict.reasons):
        given = tuple(one for one in request.given if one[0] != "--rank")
        request = replace(request, given=given)
    if verdict.missing == "answers":
        return _look(verdict, request)
    if verdict.missing == "metric":  # the gold answers choose one
        return _evaluate(request, without=["--metric"])
    is_open = verdict.decision == "inconclusive" and not verdict.compositions_not_asked
    stop = may_stop(verdict)
    if is_open and not stop and verdict.evidence in ("base", "pilot", "evaluation"):
        return _further(verdict, request, limited)
    if verdict.composes:
        return _save(verdict, request)
    if head == "use-single":
        named = (one for one in request.adapters if adapter_name(one) == single)
        return Command("python", (next(named, single),), text=LOAD_ADAPTER)
    if head == "switch-adapters":
        return _switch(request, verdict.by_task)
    if head == "fix":
        return _fix(request)
    if head == "gather-evidence" and verdict.evidence == "weights":
        probe = ("--base", request.base or BASE), ("--probe", "auto")
        return Command("inspect", request.adapters, (*_taken(request, "inspect"), *probe))
    if head == "chain" and request.chain:  # the hops of an example
        return _ask(request, example(request.chain))
    if head == "chain":
        return _evaluate(request, CHAIN)
    if head == "use-base" and verdict.missing == "harder-items":
        return _evaluate(request, tasks=_renamed(HARDER, request.tasks))
    if head in ("train-target-adapter", "use-base") or (stop and head == "gather-evidence"):
        return _evaluate(request, adapters=(*request.adapters, NEW))
    return _further(verdict, request, limited)


def may_stop(verdict: Verdict) -> bool:
    """Whether an open verdict leaves so little hope of a gain that no more need be asked."""
    gain = verdict.gain
    if verdict.decision != "inconclusive" or gain is None or gain.probability is None:
        return False
    return gain.probability <= HOPELESS


def _look(verdict: Verdict, request: Request) -> Command:
    """The command that looks where nothing answers: an adapter with the weight with which it
    answers; by another metric, with more tokens, or at the questions as a model reads them."""
    single = (verdict.system or "").removeprefix(SHRUNK)
    shrunk = [one for one in request.adapters if adapter_name(one) == single]
    if shrunk and single != verdict.system and not request.again:
        return _weakened(request, shrunk[0])
    causes = {"said-otherwise": 0.0, "answers-cut": 0.0}  # the shares of the replies
    causes |= {one.code: one.value or 0.0 for one in verdict.reasons if one.code in causes}
    if causes["said-otherwise"] > causes["answers-cut"]:
        return _evaluate(request, ("--metric", "contains"))
    if causes["answers-cut"]:
        return _evaluate(request, ("--max-new-tokens", str(request.longer)))
    return questions_shown(request)


def _weakened(request: Request, adapter: str) -> Command:
    """The command that writes an adapter with the weight that it has in the shrunk control."""
    weight = f"{1 / len(request.adapters):.2g}"
    taken = [one for one in _taken(request, "merge") if one[0] == "--allow"]
    options = (*_base(request), ("--method", "task_arithmetic"), *taken, ("--weights", weight))
    return Command("merge", (adapter,), (*options, ("-o", "DIR")))


def questions_shown(request: Request) -> Command:
    """The command that shows the questions as a model reads them."""
    base = request.base if request.base != "auto" else next(iter(request.bases), "")
    given = (("--base", base),) if base not in ("", BASE) else ()
    shown = tuple(one for one in request.given if one[0] in ("--fields", "--metric"))
    return Command("task sample", request.tasks, (*given, *shown))


def _ask(request: Request, hops: Sequence[ChainHop]) -> Command:
    """A program that asks the hops of one question.

    It writes and reads an answer as the evaluation does: greedily, and of the text the first line
    that is not blank, without punctuation at its end.
    """
    loads, known, places = _loads(request, [hop.adapter for hop in hops])
    turns = "[{'role': 'user', 'content': prompt}], add_generation_prompt=True, return_dict=True"
    encode = f"tokenizer.apply_chat_template({turns}" if hops[0].chat else "tokenizer(prompt"
    greedy = f"max_new_tokens={request.most_tokens}, do_sample=False, repetition_penalty=1.0"
    lines = [
        "def ask(prompt):",
        f"    ids = {encode}, return_tensors='pt').to(model.device)",
        f"    out = model.generate(**ids, {greedy})[0]",
        "    text = tokenizer.decode(out[ids['input_ids'].shape[1]:], skip_special_tokens=True)",
        "    line = text.strip().split('\\n')[0]",
        "    return line.rstrip(' .!?,;') or line",
    ]
    for hop in hops:
        earlier = [k for k in range(1, hop.hop) if f"{{{k}}}" in hop.prompt]
        filled = "".join(f".replace('{{{k}}}', answer{k})" for k in earlier)
        asked = f"answer{hop.hop} = ask({hop.prompt!r}{filled})"
        if hop.adapter in known:
            lines += [f"model.set_adapter({known[hop.adapter]})", asked]
        else:
            lines += ["with model.disable_adapter():", f"    {asked}"] if known else [asked]
    return _program(
        ["# base, tokenizer: the loaded base model and its tokenizer", *loads], lines, places
    )


def _loads(
    request: Request, systems: Sequence[str]
) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """Lines that load the adapters among systems, their names there, and their places."""
    names = [name for name in dict.fromkeys(systems) if name != "base"]
    references = {adapter_name(one): one for one in request.adapters}
    known = {name: repr(name.replace(".", "_")) for name in names}  # peft takes no dot
    loads = ["from peft import PeftModel" if names else "model = base"]
    for at, name in enumerate(names):
        call = "model.load_adapter(" if at else "model = PeftModel.from_pretrained(base, "
        loads.append(f"{call}{{{at}}}, adapter_name={known[name]})")
    return loads, known, tuple(references.get(name, name) for name in names)


def _program(loads: Sequence[str], lines: Sequence[str], places: tuple[str, ...]) -> Command:
    """Lines of Python, of which `loads` have the places of adapters."""
    program = "\n".join(lines)
    if places:
        program = program.replace("{", "{{").replace("}", "}}")
    return Command("python", places, text="\n".join([*loads, program]))


def _switch(request: Request, by_task: Mapping[str, str]) -> Command:
    """Lines that load the best adapter of each task, and that put each to use."""
    loads, known, places = _loads(request, [*by_task.values()])
    lines = []
    for task, system in by_task.items():
        use = f"model.set_adapter({known[system]})" if system in known else ""
        lines.append(f"{use or 'with model.disable_adapter(): ...'}  # for {task!a}")
    return _program(["# base: the loaded base model", *loads], lines, places)


def _taken(request: Request, verb: str) -> list[Flag]:
    """The options that were set, of those that a command takes unchanged and that matter to it."""
    ignored, changed = IGNORED.get(verb, {"report"}), commands()[verb].changed
    names = {*named_options()}.intersection(options_of(verb)).difference(changed)
    flags = {flag_of(name) for name in names if table()[name].metadata["affects"] - ignored}
    return [one for one in request.given if one[0] in flags]


def _with_more_of_guards(request: Request) -> Request:
    """The request with further files of the guards."""
    given = (
        (one[0], *_renamed(MORE, one[1:])) if one[0] == "--guard" else one for one in request.given
    )
    return replace(request, given=tuple(given))


def _fix(request: Request) -> Command:
    """The base on which an adapter was trained, where that holds others; the same with another base
    or with what peft ignores, where that is all that is wrong; else those adapters that fit
    together, else others of one base, else what mends their files.
    """
    if request.parents:
        return request.parents
    fitting, more = request.fitting, len(request.adapters) > len(request.fitting)
    if request.wrong_base:
        named = [one for one in request.bases if one != request.base]
        base = named[0] if len(request.bases) == 1 and named else BASE
        if request.tasks:
            return _evaluate(replace(request, base=base))
        return Command("inspect", request.adapters, (*_taken(request, "inspect"), ("--base", base)))
    if request.untargeted:  # which peft ignores
        allow = "--allow", UNTARGETED
        if request.tasks:
            return _evaluate(request, allow)
        taken = (*_base(request), *_taken(request, "inspect"), allow)
        return Command("inspect", request.adapters, taken)
    if len(fitting) > 1 and more:
        return Command("inspect", fitting)
    if len(request.bases) > 1 or request.unlike:
        base = next(iter(request.bases), BASE)
        return adapters_of(base) or Command("inspect", (request.adapters[0], OTHER))
    return Command("inspect", request.adapters)


def adapters_of(base: str) -> Command:
    """The command that lists adapters of a base; NOTHING where no extension has one."""
    verb = next((name for name, spec in commands().items() if spec.lists_adapters), "")
    return Command(verb, (base,)) if verb else NOTHING


def _further(verdict: Verdict, request: Request, limited: bool) -> Command:
    """The evaluation that tells more."""
    more = request.tasks if limited else _renamed(MORE, request.tasks)
    if verdict.missing in ("compositions", "chain") and verdict.system == "chain":
        return _evaluate(request, CHAIN, RESUME, tasks=more, without=["--limit"])
    if verdict.missing in ("compositions", "controls"):  # all of them are scored
        return _evaluate(request, RESUME, without=["--system"])
    if verdict.missing == "wording":
        return _evaluate(request, ("--metric", "contains"))
    if verdict.missing == "rank":  # at auto the methods that are asked by default lose nothing
        given = any(one[0] == "--rank" for one in request.given)
        return _evaluate(request, without=["--rank"] if given else ["--method", "--system"])
    if verdict.missing == "time":
        return _evaluate(request, RESUME)
    # Where only clusters are missing, the other questions of the same ones decide nothing.
    if not limited and verdict.missing == "guard-items":
        return _evaluate(_with_more_of_guards(request), RESUME)
    if verdict.missing == "items" or verdict.evidence == "evaluation":
        return _evaluate(request, RESUME, tasks=more, without=["--limit"])
    resumed = [RESUME] if verdict.evidence in ("base", "pilot") else []
    return _evaluate(request, *resumed, tasks=request.tasks or (TASK,))


def _save(verdict: Verdict, request: Request) -> Command:
    """The command that writes the composition of the verdict."""
    system, target = request.spec or verdict.system or "", ("-o", "DIR")
    if request.learned:  # the same call decides the same by the kept answers, and learns the same
        return _evaluate(request, RESUME, target)
    flag, verb = ("--router", "route") if request.kind == "router" else ("--method", "merge")
    taken = [one for one in _taken(request, verb) if one[0] != "--weights" or request.weighted]
    return Command(verb, request.adapters, (*_base(request), (flag, system), *taken, target))


def _evaluate(
    request: Request,
    *options: Flag,
    tasks: tuple[str, ...] | None = None,
    adapters: tuple[str, ...] = (),
    without: Sequence[str] = (),
) -> Command:
    """The evaluation of the request, or of other tasks or adapters.

    options: in place of the given ones of these names. without: names of options to leave out.
    """
    tasks = request.tasks if tasks is None else tasks
    verb, left_out = request.again.verb or "merge-and-eval", {*without}
    left_out |= {one[0] for one in options}
    given = [*_base(request), *(("--task", task) for task in tasks)]
    given += [one for one in _taken(request, verb) if one[0] not in left_out]
    adapters = request.again.adapters or adapters or request.adapters
    return Command(verb, adapters, (*given, *options))


def _renamed(start: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Names of further files beside the tasks; a data set of the Hub goes by its last part.

    A task of another source stays one, and a further file that was given is that file.
    """
    named = ((_source(task), task) for task in tasks)
    lasts = ((kind, task[len(kind) :].rpartition("/")[2]) for kind, task in named)
    return tuple(f"{kind}{start}{last.removeprefix(start)}" for kind, last in lasts)


def _source(word: str) -> str:
    """How the reference of a task begins that is no file and no data set, as "suite:"."""
    found = re.match(r"\w{2,}:(?!//)", word)
    return found[0] if found else ""


def _base(request: Request) -> tuple[Flag, ...]:
    return () if request.base == "auto" else (("--base", request.base or BASE),)


def on_questions(command: Command) -> Command:
    """From `inspect A B --probe auto` the command that decides on a task file, else no command."""
    if command.verb != "inspect" or ("--probe", "auto") not in command.options:
        return NOTHING
    left_out = (("--probe", "auto"), ("--base", "auto"))
    kept = tuple(one for one in command.options if one not in left_out)
    return Command("merge-and-eval", command.adapters, (*kept, ("--task", TASK)))


def to_fill_in(command: Command) -> str:
    """What a command names that does not exist yet, in words; "" if everything does."""
    words = command.words
    harder = [word for word in words if word.removeprefix(_source(word)).startswith(HARDER)]
    if harder:
        noun = "task" if _source(harder[0]) else "file"
        noun = f"a {noun}" if len(harder) == 1 else f"{noun}s"
        return f"{listing(harder)}: {noun} of harder questions"
    if more := [word for word in words if word.removeprefix(_source(word)).startswith(MORE)]:
        first = more[0].replace(MORE, "", 1)
        return f"{more[0]}: the questions of {first} and more of the same kind; none is asked twice"
    ahead = {
        NEW: "an adapter that you train on what you ask",
        TASK: "your file, a question with its answer a line",
        BASE: "the base model that they were trained on",
        OTHER: "another adapter of the same base",
    }
    return next((f"{word}: {what}" for word, what in ahead.items() if word in words), "")
