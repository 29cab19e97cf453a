"""The command to run after a verdict, ready to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraprobe.defaults import HARNESS, PLAIN_TOKENS
from loraprobe.formatting import listing
from loraprobe.records import ChainHop, LibraryAdapter, Verdict, example

TASK = "questions.jsonl"  # stands for a task file that is still to be written
MORE, HARDER = "MORE-", "HARDER-"  # before the name of a task: a file of further questions
NEW, BASE = "NEW", "BASE"
PROGRAM = "# base, tokenizer: the loaded base model and its tokenizer\n"  # how a program begins
ALONE = "base"  # the name of the base where it answers a hop


@dataclass(frozen=True)
class Request:
    """What a command worked on, in the words of a command line.

    `base` is "auto" where the adapters name it themselves, "" where nobody does; `bases` are those
    that they name. `asked` are the options by which the tasks are read, asked and judged. `kind` is
    the kind of the verdict's system, "merge" or "router"; `learned` says that this router was
    fitted to prompts. `options` are those that change a composition, `kept` the others that
    `--resume` needs to use the kept answers. `fitting` are adapters without a conflict among them;
    `unlike` says that no change of their files makes the others fit. `library` names all adapters
    of a library, where the next command is about it. `chain` says who answers the hops of a chain
    that was measured, with answers of at most `most_tokens` tokens.
    """

    adapters: tuple[str, ...]
    base: str = "auto"
    bases: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    kind: str = "merge"
    learned: bool = False
    options: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    fitting: tuple[str, ...] = ()
    unlike: bool = False
    library: tuple[str, ...] = ()
    chain: tuple[ChainHop, ...] = ()
    most_tokens: int = PLAIN_TOKENS


def next_command(verdict: Verdict, request: Request, limited: bool = False) -> str:
    """The command for the verdict's action.

    limited: --limit left items out, so that more of them are at hand.
    """
    head, _, single = verdict.action.partition(":")
    codes = {reason.code for reason in verdict.reasons}
    if "answers-normalised" in codes:
        return _evaluate(_without_metric(request))
    open_ = verdict.decision == "inconclusive" and not verdict.answers_without_composing
    if open_ and verdict.evidence in ("base", "pilot", "evaluation"):
        return _further(verdict, request, limited)
    if verdict.composes:
        return _save(verdict, request)
    if head == "use-single":
        return f"PeftModel.from_pretrained(base, {_place(single, request)})"
    if head == "switch-adapters":
        return f"model.set_adapter({_name(request.adapters[0])!r})"
    if head == "fix" and 1 < len(request.fitting) < len(request.adapters):
        return _command("inspect", *request.fitting)
    if head == "fix" and (len(request.bases) > 1 or request.unlike):
        return _command("find", *(request.bases[:1] or (BASE,)))  # adapters of one base
    if head == "fix":
        return _command("inspect", *request.adapters)
    if head == "gather-evidence" and verdict.evidence == "weights":
        base = request.base or BASE
        return _command("inspect", *request.adapters, "--base", base, "--probe", "auto")
    if head == "chain":
        return _hop_after_hop(request) or _evaluate(request, "--system", "chain")
    if head == "use-base" and codes & {"base-suffices", "nothing-to-gain"}:
        return _evaluate(request, tasks=_renamed(HARDER, request.tasks))
    if head in ("train-target-adapter", "use-base"):
        return _evaluate(request, adapters=(*request.adapters, NEW))
    return _further(verdict, request, limited)


def _without_metric(request: Request) -> Request:
    """The request with no `--metric`, so that the gold answers choose."""
    words, kept = iter(request.asked), list[str]()
    for word in words:  # some of them are flags without a value
        if word == "--metric":
            next(words)
        else:
            kept.append(word)
    return replace(request, asked=tuple(kept))


def _further(verdict: Verdict, request: Request, limited: bool) -> str:
    """The evaluation that tells more."""
    if any(reason.code == "compositions-not-asked" for reason in verdict.reasons):
        if verdict.system is None:  # nobody answers alone
            return _evaluate(request)
        return _evaluate(request, "--system", "chain", tasks=_renamed(MORE, request.tasks))
    reworded = any(reason.code == "mostly-said-otherwise" for reason in verdict.reasons)
    if verdict.action == "gather-evidence" and verdict.decision == "unlikely" and reworded:
        return _evaluate(_without_metric(request), "--metric", "contains")
    if any(r.code == "controls-not-run" and r.severity == "decisive" for r in verdict.reasons):
        return _evaluate(request)  # without --system, so that controls are scored
    # Where only clusters are missing, the other questions of the same ones decide nothing.
    few = any(r.code == "few-items" and r.severity == "decisive" for r in verdict.reasons)
    if (few or verdict.evidence == "evaluation") and not limited:  # the same with other questions
        return _evaluate(request, tasks=_renamed(MORE, request.tasks))
    asked = verdict.evidence in ("base", "pilot")  # the answers of a part of the items are kept
    resumed = (*request.kept, "--resume") if asked else ()
    return _evaluate(request, *resumed, tasks=request.tasks or (TASK,))


def _save(verdict: Verdict, request: Request) -> str:
    system = verdict.system or ""
    if request.learned:  # only an evaluation has the questions from which it learns
        return _evaluate(request, "--router", system, "-o", "DIR")
    flag, name = ("--router", "route") if request.kind == "router" else ("--method", "merge")
    words = (*request.adapters, *_base(request), flag, system, *request.options)
    return _command(name, *words, "-o", "DIR")


def _hop_after_hop(request: Request) -> str:
    """A program that asks the hops of the example of a measured chain; "" without one.

    It writes and reads an answer as the evaluation does: greedily, and of the text the first line
    that is not blank, without punctuation at its end.
    """
    hops = example(request.chain)
    if not hops:
        return ""
    names = [name for name in dict.fromkeys(hop.adapter for hop in hops) if name != ALONE]
    known = {name: repr(name.replace(".", "_")) for name in names}  # peft takes no dot
    loaded = ["from peft import PeftModel"] if names else ["model = base"]
    for at, name in enumerate(names):
        call = "model.load_adapter(" if at else "model = PeftModel.from_pretrained(base, "
        loaded.append(f"{call}{_place(name, request, known[name])})")
    turns = "[{'role': 'user', 'content': prompt}], add_generation_prompt=True, return_dict=True"
    encode = f"tokenizer.apply_chat_template({turns}" if hops[0].chat else "tokenizer(prompt"
    greedy = f"max_new_tokens={request.most_tokens}, do_sample=False, repetition_penalty=1.0"
    lines = [
        *loaded,
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
            lines += ["with model.disable_adapter():", f"    {asked}"] if names else [asked]
    return PROGRAM + "\n".join(lines)


def _place(name: str, request: Request, *named: str) -> str:
    """What loads an adapter as arguments of peft: its place, `named`, and its part of the Hub."""
    places = {_name(one): one.partition("=")[2] or one for one in request.adapters}
    place, _, folder = places.get(name, name).partition(":")
    repository, _, revision = place.partition("@")
    if "/" not in repository:  # a local directory, by its last part
        return ", ".join([repr(places.get(name, name)), *named])
    parts = {"revision": revision, "subfolder": folder}
    return ", ".join(
        [repr(repository), *named, *(f"{key}={part!r}" for key, part in parts.items() if part)]
    )


def _evaluate(
    request: Request,
    *options: str,
    tasks: tuple[str, ...] | None = None,
    adapters: tuple[str, ...] = (),
) -> str:
    """The evaluation of the request, or of other tasks or adapters."""
    tasks = request.tasks if tasks is None else tasks
    asked = (word for task in tasks for word in ("--task", task))
    named = (*(request.library or adapters or request.adapters), *_base(request), *asked)
    name = "screen" if request.library else "merge-and-eval"
    return _command(name, *named, *request.asked, *request.options, *options)


def _renamed(start: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Names of further files beside the tasks; a data set of the Hub goes by its last part.

    A task of lm-evaluation-harness stays one.
    """
    named = ((HARNESS if task.startswith(HARNESS) else "", task) for task in tasks)
    return tuple(kind + start + task[len(kind) :].rpartition("/")[2] for kind, task in named)


def _base(request: Request) -> tuple[str, ...]:
    return () if request.base == "auto" else ("--base", request.base or BASE)


def _command(*words: str) -> str:
    return shlex.join(["loraprobe", *words])


def library_words(rows: Sequence[LibraryAdapter], arguments: Sequence[str]) -> list[str]:
    """What can be used of a library as a command line names it: by files, "-" or references.

    arguments: the words of the command line, as they may be published.
    """
    usable = [row for row in rows if row.state == "usable"]
    known = {text for row in usable for text in (row.reference, f"{row.name}={row.reference}")}
    given = [word for word in arguments if word in known or word == "-" or word.startswith("@")]
    return given or [row.reference for row in usable]


def _name(reference: str) -> str:
    return reference.partition("=")[0] if "=" in reference else reference.rpartition("/")[2]


def words_of(command: str) -> list[str]:
    """The words of a command of loraprobe; none of another text, such as a line of Python."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        return []
    return words if words[:1] == ["loraprobe"] else []


def merge_and_eval_command(command: str) -> str:
    """From `loraprobe inspect A B ... --probe auto` the command that decides on a task file."""
    words = words_of(command)
    if words[:2] != ["loraprobe", "inspect"] or words[-2:] != ["--probe", "auto"]:
        return ""
    kept = words[2:-2]
    if kept[-2:] == ["--base", "auto"]:
        kept = kept[:-2]
    return _command("merge-and-eval", *kept, "--task", TASK)


def to_fill_in(command: str) -> str:
    """What a command names that does not exist yet, in words; "" if everything does."""
    words = words_of(command)
    further = {MORE: "more questions of the same kind", HARDER: "harder questions"}
    for start, what in further.items():
        named = [word for word in words if word.removeprefix(HARNESS).startswith(start)]
        if named:
            noun = "task" if named[0].startswith(HARNESS) else "file"
            return f"{listing(named)}: {'a ' + noun if len(named) == 1 else noun + 's'} of {what}"
    ahead = {
        NEW: "an adapter that you train on what you ask",
        TASK: "your file, a question with its answer a line",
        BASE: "the base model that they were trained on",
    }
    return next((f"{word}: {what}" for word, what in ahead.items() if word in words), "")
