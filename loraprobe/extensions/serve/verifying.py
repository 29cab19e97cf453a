"""`verify --served`: whether a running server applies an adapter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.cli.running import Output
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extensions.serve import ServeOptions, acceptance
from loraprobe.extensions.serve.acceptance import Served
from loraprobe.extensions.serve.client import Server
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
    if sources:
        raise UsageError(f"--served takes one adapter, and {sources[0]} was given too.")
    assert own.served is not None
    with output.progress() as progress:
        answer = ask_server(
            directory,
            own.served,
            model=own.model,
            base=base,
            probe=own.prompts,
            options=options,
            progress=progress,
        )
    show = partial(print_answer, Console(highlight=False), served_answer(answer, directory))
    output.tell("verify", {"served": answer}, answer.serves, show)
    raise typer.Exit({"adapter": 0, "unclear": 3}.get(answer.serves, 1))


def ask_server(
    adapter: Ref,
    url: str,
    *,
    model: str | None = None,
    base: Base | Ref | None = None,
    probe: Ref | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Served:
    """Compares a server with the base and with an adapter, run here, on a few prompts.

    model: the name under which the server has the adapter; None: the only one that it has. probe: a
    file of prompts; "auto" and None: those of `acceptance`. The key of OPENAI_API_KEY is
    sent if it is set. Raises ServerError where the server does not answer or gives no
    log-probabilities, UsageError for a bad URL and for a full model.
    """
    server = Server(url, "--served", acceptance.TIMEOUT)
    try:
        (given,) = hub.load_all([adapter])
    except LoraprobeError:
        if hub.base_directory(str(adapter)) is None:
            raise
        cure = "verify its directory without --served"
        cure = cure if Path(str(adapter)).is_dir() else f"download it, and {cure}"
        raise UsageError(
            f"--served compares an adapter with its base, and {adapter} is a full model; {cure}."
        ) from None
    opened = open_probe(probe, [])  # "auto": the server's own prompts
    prompts = list(opened.answers) if isinstance(opened, ProbePrompts) else acceptance.PLAIN
    name, session = model or server.only_model(), Session(options, progress)
    scorer, _ = open_scorer(base_of(base or "auto", [given]), options.dtype, session)
    return acceptance.compare_served(server, name, given, scorer, prompts)


HEADLINES = {
    "adapter": "APPLIED: the server runs this adapter under the name {model}.",
    "base": "NOT APPLIED: under the name {model} the server answers as the base alone.",
    "another": "DIFFERENT: {model} is neither this adapter nor the base as they run here.",
    "unclear": "UNCLEAR: this adapter hardly changes the answers to these prompts.",
}
WHY = {"another": "a file that the server misreads, another base or adapter, or a quantised base"}
FIXES = {
    "base": "start the server with the adapter, and ask for it by its own name (--model)",
    "unclear": "give prompts of what it was trained on: --probe FILE, one a line",
}


def served_answer(served: Served, directory: str) -> Answer:
    """Whether a server applies an adapter, by which figures, and what to do if it does not."""
    figures = (
        f"log-probabilities of the first token after {count(served.prompts, 'prompt')}: "
        f"{served.to_adapter:.3f} from the adapter here, {served.to_base:.3f} from the base; these "
        f"two are {served.between:.3f} apart"
    )
    lines: list[Line] = [("measured", figures)]
    lines += [("why", WHY[served.serves])] if served.serves in WHY else []
    lines += [("fix", FIXES[served.serves])] if served.serves in FIXES else []
    if served.serves in ("base", "another"):
        lines.append(("next", Command("inspect", (directory,), (("--serve", "all"),))))
    decision = {"adapter": "verified", "unclear": "inconclusive"}.get(served.serves, "not verified")
    return Answer(decision, HEADLINES[served.serves].format(model=served.model), tuple(lines))
