"""`verify --served`: whether a running server applies adapters, also under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from loraprobe import hub
from loraprobe.adapters import local_name
from loraprobe.base import Base
from loraprobe.cli.running import Output
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extensions.serve import ServeOptions, recognising, under_load
from loraprobe.extensions.serve.client import Server, absent
from loraprobe.extensions.serve.recognising import Served
from loraprobe.extensions.serve.under_load import UnderLoad
from loraprobe.formatting import count, listing
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer
from loraprobe.pipeline.inputs import base_of
from loraprobe.pipeline.task_files import open_probe
from loraprobe.records import Command
from loraprobe.report.parts import Answer, Line
from loraprobe.report.terminal import print_answer
from loraprobe.session import Ref, Session
from loraprobe.tasks import ProbePrompts


def verify_served(
    options: Options,
    output: Output,
    directory: str | None,
    sources: list[str] | None,
    base: str | None,
) -> None:
    """Asks a server what it serves; in place of `verify` of a directory."""
    own = options.of_extension(ServeOptions)
    assert own.served is not None
    if own.adapters:
        if directory is not None or own.model is not None:
            what = directory if directory is not None else "--model"
            raise UsageError(
                f"--adapters names what the server has, and {what} does as well; give it as "
                "--adapters=NAME=REF alone."
            )
        raise typer.Exit(_verify_names(options, output, base))
    if own.load is not None:
        raise UsageError("--load asks several names in turn; give them by --adapters=A,B.")
    if directory is None:
        raise UsageError("--served takes the adapter DIR, or names by --adapters=A,B; give one.")
    with output.progress() as progress:
        server = Server(own.served, "--served", recognising.TIMEOUT)
        names = [own.model] if own.model else None
        refs, session = [directory, *(sources or ())], Session(options, progress)
        (answer,) = ask_server(server, names, refs, base, own.prompts, session)
    _tell(output, {"served": answer}, answer.serves, [served_answer(answer, directory)])
    raise typer.Exit(EXIT_CODES.get(answer.serves, 1))


def _tell(output: Output, fields: Mapping[str, Any], short: str, answers: Sequence[Answer]) -> None:
    def show() -> None:
        for answer in answers:
            print_answer(Console(highlight=False), answer)

    output.tell("verify", fields, short, show)


def _verify_names(options: Options, output: Output, base: str | None) -> int:
    """Verifies what the server has under several names, then under load; the exit code."""
    own = options.of_extension(ServeOptions)
    assert own.served is not None
    server = Server(own.served, "--served", recognising.TIMEOUT)
    if own.load is not None:
        under_load.check_host(server.address, own.load, own.seconds, own.yes)
    given = names_of(own.adapters, server)
    if own.load is None and not any(given.values()):
        raise UsageError(
            "--adapters names no file to compare with; give NAME=REF, or --load=N to tell whether "
            "each name answers for itself under load."
        )
    if own.load is not None and len(given) < 2:
        raise UsageError("--load tells names apart; give two or more, the base among them.")
    with output.progress() as progress:
        session = Session(options, progress)
        refs = {name: f"{name}={ref}" for name, ref in given.items() if ref}
        answers = list[Served]()
        if refs:
            answers = ask_server(server, [*refs], [*refs.values()], base, own.prompts, session)
        codes = [EXIT_CODES.get(one.serves, 1) for one in answers]
        code = 1 if 1 in codes else max(codes, default=0)  # what is false goes before what is open
        told = [served_answer(one, given[one.model] or "") for one in answers]
        serves = ",".join(one.serves for one in answers)
        fields: dict[str, Any] = {"served": answers, "under_load": None}
        if own.load is None or code:  # what is false alone needs no load
            _tell(output, fields, serves, told)
            return code
        found = under_load.ask_under_load(
            server, list(given), prompts_of(own.prompts), own.load, own.seconds, session.tell
        )
    if isinstance(found, tuple):
        one, other = found
        raise UsageError(
            f"{server.address} answers {one} and {other} alike, so nobody can tell which of them "
            "answered: two names for one adapter, or one that is not applied; leave one out, give "
            "prompts that tell them apart by --probe=FILE, or verify each by --adapters=NAME=REF."
        )
    fields["under_load"] = found
    _tell(output, fields, found.serves, [*told, load_answer(found)])
    return {"right": 0, "unclear": 3}.get(found.serves, 1)


def names_of(adapters: Sequence[str], server: Server) -> dict[str, str]:
    """The names of --adapters -> the reference of each, "" without one.

    What is no name of the server is a reference, which implies the name. Raises UsageError for a
    name that the server does not have, or that is given twice.
    """
    texts = [one.strip() for text in adapters for one in text.split(",") if one.strip()]
    models = server.models()
    held, found = [one.id for one in models], dict[str, str]()
    sglang = any(one.owned_by == "sglang" for one in models)
    for text in texts:
        name, _, ref = (text, "", "") if text in held else text.partition("=")
        if text not in held and not ref:
            name, ref = local_name(text), text
        if name not in held and not (sglang and ":" in name):
            raise UsageError(
                f"{absent(server.address, [name], models)}; load it, or give the server's names as "
                "--adapters=NAME or NAME=REF."
            )
        if name in found:
            raise UsageError(f"--adapters names {name} twice; name each model once.")
        found[name] = ref
    places = [ref for ref in found.values() if ref]
    if double := next((ref for ref in places if places.count(ref) > 1), None):
        pair = listing(name for name, ref in found.items() if ref == double)
        raise UsageError(f"{pair} are two names for one adapter, {double}; leave one out.")
    return found


def prompts_of(probe: Ref | None) -> Sequence[str]:
    """The prompts of a file; of "auto" and None those of `recognising`."""
    opened = open_probe(probe, [])  # "auto": the server's own prompts
    return list(opened.answers) if isinstance(opened, ProbePrompts) else recognising.PLAIN


def ask_server(
    server: Server,
    names: Sequence[str] | None,
    adapters: Sequence[Ref],
    base: Base | Ref | None,
    probe: Ref | None,
    session: Session,
) -> list[Served]:
    """Compares a server with the base and with adapters, run here, on a few dozen texts.

    names: under which the server has the first of the adapters, one each; None: the only model that
    it has, for the first one. All other adapters are what it may serve in place of one. probe: a
    file of prompts; "auto" and None: those of `recognising`. Raises ServerError where the server
    does not answer or gives no log-probabilities, UsageError for a full model.
    """
    try:
        given = hub.load_all(adapters)
    except LoraprobeError:
        if hub.base_directory(str(adapters[0])) is None:
            raise
        cure = "verify its directory without --served"
        cure = cure if Path(str(adapters[0])).is_dir() else f"download it, and {cure}"
        what = f"--served compares an adapter with its base, and {adapters[0]} is a full model"
        raise UsageError(f"{what}; {cure}.") from None
    prompts, found, opened = prompts_of(probe), list[Served](), None
    for name, adapter in zip(names or [server.only_model()], given, strict=False):
        own = base_of(base or "auto", [adapter])
        if opened is None or own.path != opened.path:  # several adapters of one base load it once
            opened, (scorer, _) = own, open_scorer(own, session.options.dtype, session)
        others = [one for one in given if one is not adapter]
        with session.stage("ask the server"):
            found.append(recognising.compare_served(server, name, adapter, others, scorer, prompts))
    return found


EXIT_CODES = {"adapter": 0, "unclear": 3}  # 1: it serves something else
DECISIONS = {"adapter": "verified", "unclear": "inconclusive"}
HEADLINES = {
    "adapter": "APPLIED: the server runs this adapter under the name {model}.",
    "base": "NOT APPLIED: under the name {model} the server answers as the base alone.",
    "scaled": "SCALED: under the name {model} the server runs this adapter times {scale:.2f}.",
    "another": "ANOTHER ADAPTER: {model} is neither this adapter nor the base as they run here.",
    "given": "ANOTHER ADAPTER: under the name {model} the server runs {other}.",
    "unclear": "CANNOT TELL whether the server runs this adapter under the name {model}.",
}
WHY = {
    "another": "a file that the server misreads, another base or adapter, or a quantised base",
    "scaled": "the server reads lora_alpha or the rank otherwise (rsLoRA, patterns), or weighs it",
    "unclear": "adapter and base hardly differ after these texts",
    "noisy": "the noise is too large for so small a difference",
    "no base": "the server is close to one of them, and its noise is unknown",
}
PROMPTS_FIX = "give prompts of what it was trained on: --probe FILE, one a line"
FIXES = {
    "base": "start the server with the adapter, and ask for it by its own name (--model); vLLM "
    "also applies nothing where its --lora-target-modules name none of the adapter's modules",
    "unclear": PROMPTS_FIX,
    "noisy": PROMPTS_FIX,
    "given": "ask for this adapter by its own name (--model)",
    "no base": "serve the base under a name as well, or give more prompts: --probe FILE",
}


def served_answer(served: Served, directory: str) -> Answer:
    """Whether a server applies an adapter, by which figures, and what to do if it does not."""
    kind = "given" if served.other else served.serves
    headline = HEADLINES[kind].format(model=served.model, scale=served.scale, other=served.other)
    figures = (
        f"log-probabilities of the next token after {count(served.prompts, 'text')}: "
        f"{served.to_adapter:.3f} from the adapter here, {served.to_base:.3f} from the base; these "
        f"two are {served.between:.3f} apart"
    )
    noise = "unknown: the server lists no other model that is the base"
    if served.floor is not None:
        noise = f"the server's base is {served.floor:.3f} from the base here"
    wrong = f"{served.error_rate:.1%} of" if served.error_rate else "none of"
    lines: list[Line] = [
        ("measured", figures),
        ("noise", f"{noise}; wrong with such noise: {wrong} {recognising.DRAWS:,} draws"),
    ]
    if kind == "unclear" and served.between >= recognising.TELLS:
        kind = "noisy" if served.floor is not None else "no base"
    lines += [("why", WHY[kind])] if kind in WHY else []
    lines += [("fix", FIXES[kind])] if kind in FIXES else []
    if served.serves in ("base", "another", "scaled"):
        lines.append(("next", Command("inspect", (directory,), (("--serve", "all"),))))
    return Answer(DECISIONS.get(served.serves, "not verified"), headline, tuple(lines))


LOAD_HEADLINES = {
    "right": "RIGHT UNDER LOAD: every answer is by the name that was asked.",
    "unclear": "CANNOT TELL whether answers under load are by the names that were asked.",
    "mixed": "MIXED UP: {wrong} of {told} answers are not by the name that was asked.",
}


def load_answer(found: UnderLoad) -> Answer:
    """Whether a server answers under load by the adapters that were asked, and how fast."""
    wrong, came = found.mixed + found.strange, found.requests - sum(found.errors.values())
    told = came - found.undecided
    mixed = [f"{n} of {one.name} by {k}" for one in found.names for k, n in one.mixed.items()]
    if found.strange:
        mixed.append(f"{found.strange} by none of the names that were given")
    lines: list[Line] = [
        (
            "measured",
            f"{found.requests:,} requests in {found.seconds:.0f} s, {found.load} at once: "
            f"{count(came, 'answer')}, {count(sum(found.errors.values()), 'error')}",
        ),
        ("mixed up", f"{listing(mixed) or 'none'}; at most {found.at_most:.2%} at 95 %"),
    ]
    if found.undecided:
        lines.append(("open", f"{count(found.undecided, 'answer')} may be by several names"))
    if found.errors:
        lines.append(("errors", listing(f"{what} ({n:,})" for what, n in found.errors.items())))
    for one in found.names:
        if one.median is not None and one.p95 is not None and one.longest is not None:
            lines.append(
                (
                    "latency",
                    f"{one.name}: {one.median:.3f} s median, {one.p95:.3f} s at 95 %, "
                    f"{one.longest:.3f} s the longest, of {count(one.requests, 'request')}",
                )
            )
    same = f"the same name differs by {found.noise:.3f} from one time to the next"
    lines.append(("noise", f"{same}, in log-probabilities; {count(found.prompts, 'prompt')} used"))
    if found.serves == "mixed":
        lines.append(("fix", LOAD_FIX))
    if found.serves == "unclear":
        lines.append(("fix", "take a longer --seconds, or prompts that differ more: --probe FILE"))
    decision = {"right": "verified", "unclear": "inconclusive"}.get(found.serves, "not verified")
    headline = LOAD_HEADLINES[found.serves].format(wrong=f"{wrong:,}", told=f"{told:,}")
    return Answer(decision, headline, tuple(lines))


LOAD_FIX = (
    "load all adapters before requests come, in one place more than there are (vLLM: --max-loras; "
    "before 0.33 its last place answered for the base on a CPU), or take another version of the "
    "server, and repeat this"
)
