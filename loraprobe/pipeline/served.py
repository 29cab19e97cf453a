"""`verify --served` asks a running server whether it applies an adapter.

An OpenAI-compatible server gives the log-probability of the first token that it writes after a
prompt. The base model, and the base with loraprobe's composition of the adapter, give the same
figure here. Whichever of the two the server's figures are close to is what it serves.
"""

from __future__ import annotations

from pathlib import Path

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.defaults import SERVED_CLOSER, SERVED_TELLS
from loraprobe.errors import AdapterError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.engine import apart_by, first_tokens
from loraprobe.pipeline.inputs import base_of
from loraprobe.pipeline.opening import open_scorer
from loraprobe.pipeline.task_files import open_probe
from loraprobe.records import Progress, Served
from loraprobe.routing.constant import single
from loraprobe.scoring.server import Server
from loraprobe.session import Ref, Session
from loraprobe.tasks import ProbePrompts

TIMEOUT = 60.0  # seconds for one request and its whole answer
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Question: What is 2 + 3?\nAnswer:",
    "def add(a, b):\n    return",
    "Dear customer, thank you for",
    "The doctor looked at the patient and said",
    "In the year 1969, the first",
    "Translate to German: Good morning.\nGerman:",
    "The most important thing about",
    "He opened the door and saw",
    "1, 2, 3, 4,",
    "According to the law, a person who",
)


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
    file of prompts; "auto" and None: the prompts of this file. The key of OPENAI_API_KEY is sent if
    it is set. Raises ServerError where the server does not answer or gives no log-probabilities,
    UsageError for a bad URL.
    """
    server = Server(url, "--served", TIMEOUT)
    try:
        (given,) = hub.with_stacks(hub.load_all([adapter]))
    except AdapterError:
        if (Path(str(adapter)) / "config.json").is_file():
            raise UsageError(
                f"--served compares an adapter with its base, and {adapter} is a full model; check "
                "its files without --served."
            ) from None
        raise
    opened = open_probe(probe, [])  # "auto": the prompts of this file
    prompts = list(opened.answers) if isinstance(opened, ProbePrompts) else PROMPTS
    name = model or _only_model(server)
    theirs = server.first_tokens({"model": name}, prompts)
    session = Session(options, progress)
    scorer, _ = open_scorer(base_of(base or "auto", [given]), options.dtype, session)
    ids = scorer.encoder.prompts(prompts)
    base_own = first_tokens(scorer, ids)
    with scorer.with_composition(single(given)):
        own = first_tokens(scorer, ids)
    between = apart_by(own, base_own)
    to_adapter, to_base = apart_by(theirs, own), apart_by(theirs, base_own)
    if between < SERVED_TELLS:
        serves = "unclear"
    elif to_adapter * SERVED_CLOSER <= between:
        serves = "adapter"
    else:
        serves = "base" if to_base * SERVED_CLOSER <= between else "another"
    return Served(given.name, name, serves, len(prompts), to_adapter, to_base, between)


def _only_model(server: Server) -> str:
    """The name of the only model. Raises UsageError where there are several or none."""
    names = [model.id for model in server.models()]
    if len(names) != 1:
        listed = ", ".join(names[:8]) or "none"
        raise UsageError(
            f"{server.address} has {len(names)} models ({listed}); name the adapter's by --model."
        )
    return names[0]
