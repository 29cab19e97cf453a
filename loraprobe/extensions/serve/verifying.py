"""`verify --served`: whether a running server applies an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.cli.running import Output
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extensions.serve import ServeOptions, recognising
from loraprobe.extensions.serve.client import Server
from loraprobe.extensions.serve.recognising import Served
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer
from loraprobe.pipeline.inputs import base_of
from loraprobe.pipeline.task_files import open_probe
from loraprobe.records import Command, Progress
from loraprobe.report.parts import Answer, Line
from loraprobe.report.terminal import print_answer
from loraprobe.session import Ref, Session
from loraprobe.tasks import ProbePrompts


def verify_served(
    options: Options, output: Output, directory: str, sources: list[str] | None, base: str | None
) -> None:
    """Asks a server what it serves; in place of `verify` of a directory."""
    own = options.of_extension(ServeOptions)
    assert own.served is not None
    with output.progress() as progress:
        answer = ask_server(
            directory,
            own.served,
            others=sources or (),
            model=own.model,
            base=base,
            probe=own.prompts,
            options=options,
            progress=progress,
        )
    show = partial(print_answer, Console(highlight=False), served_answer(answer, directory))
    output.tell("verify", {"served": answer}, answer.serves, show)
    raise typer.Exit(EXIT_CODES.get(answer.serves, 1))


def ask_server(
    adapter: Ref,
    url: str,
    *,
    others: Sequence[Ref] = (),
    model: str | None = None,
    base: Base | Ref | None = None,
    probe: Ref | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Served:
    """Compares a server with the base and with an adapter, run here, on a few dozen texts.

    others: adapters that it may serve in place of this one. model: the name under which the server
    has the adapter; None: the only one that it has. probe: a file of prompts; "auto" and None:
    those of `recognising`. The key of OPENAI_API_KEY is sent if it is set. Raises ServerError where
    the server does not answer or gives no log-probabilities, UsageError for a bad URL and for a
    full model.
    """
    server = Server(url, "--served", recognising.TIMEOUT)
    try:
        given, *candidates = hub.load_all([adapter, *others])
    except LoraprobeError:
        if hub.base_directory(str(adapter)) is None:
            raise
        cure = "verify its directory without --served"
        cure = cure if Path(str(adapter)).is_dir() else f"download it, and {cure}"
        raise UsageError(
            f"--served compares an adapter with its base, and {adapter} is a full model; {cure}."
        ) from None
    opened = open_probe(probe, [])  # "auto": the server's own prompts
    prompts = list(opened.answers) if isinstance(opened, ProbePrompts) else recognising.PLAIN
    name, session = model or server.only_model(), Session(options, progress)
    scorer, _ = open_scorer(base_of(base or "auto", [given]), options.dtype, session)
    with session.stage("ask the server"):
        return recognising.compare_served(server, name, given, candidates, scorer, prompts)


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
}
FIXES = {
    "base": "start the server with the adapter, and ask for it by its own name (--model); vLLM "
    "also applies nothing where its --lora-target-modules name none of the adapter's modules",
    "unclear": "give prompts of what it was trained on: --probe FILE, one a line",
    "given": "ask for this adapter by its own name (--model)",
    "noisy": "serve the base under a name as well, or give more prompts: --probe FILE",
}


def served_answer(served: Served, directory: str) -> Answer:
    """Whether a server applies an adapter, by which figures, and what to do if it does not."""
    kind = "given" if served.other else served.serves
    figures = (
        f"log-probabilities of the next token after {count(served.prompts, 'text')}: "
        f"{served.to_adapter:.3f} from the adapter here, {served.to_base:.3f} from the base; these "
        f"two are {served.between:.3f} apart"
    )
    no_base = served.floor is None
    noise = "unknown: the server lists no other model that is the base"
    if served.floor is not None:
        noise = f"the server's base is {served.floor:.3f} from the base here"
    wrong = f"{served.error_rate:.1%}" if served.error_rate else f"none of {recognising.DRAWS:,}"
    lines: list[Line] = [
        ("measured", figures),
        ("noise", f"{noise}; wrong with such noise: {wrong} of draws"),
    ]
    why = WHY.get(kind, "")
    if kind == "unclear":
        why = "the noise is too large for so small a difference"
        why = "the server is close to one of them, and its noise is unknown" if no_base else why
        small = served.between < recognising.TELLS
        why = "adapter and base hardly differ after these texts" if small else why
        kind = "noisy" if no_base and not small else kind
    lines += [("why", why)] if why else []
    lines += [("fix", FIXES[kind])] if kind in FIXES else []
    if served.serves in ("base", "another", "scaled"):
        lines.append(("next", Command("inspect", (directory,), (("--serve", "all"),))))
    decision = DECISIONS.get(served.serves, "not verified")
    headline = HEADLINES["unclear" if served.serves == "unclear" else kind].format(
        model=served.model, scale=served.scale, other=served.other
    )
    return Answer(decision, headline, tuple(lines))
