"""Servers of adapters, such as vLLM: what they can run, and one that answers the questions.

serving     what servers can run of a file and of a run, and the commands that serve it
remarks     what of that is told at the end of a command, `part` in its audit and its answer
engine      `--engine`: opens or starts a server as the scorer of an evaluation
scorer      ServedScorer, which has the interface of `scoring.Scorer`
acceptance  whether a server computes what transformers compute here
recognising what a server serves under a name
under_load  whose adapter answers, of thousands of requests
verifying   `verify --served`
proxying    `loraprobe proxy`, a front that names the adapter of each request
router_file router.json as the front reads it
client      requests over HTTP
supervisor  ends a server that a run started, however the run ends
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extension import (
    AuditPart,
    CardPart,
    Constraint,
    Engine,
    Extension,
    Remarks,
    Result,
    Workload,
)
from loraprobe.options import (
    AddedOptions,
    CommandSpec,
    Options,
    flag_of,
    option,
    options_of,
    table,
)

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.base import Base
    from loraprobe.evaluation import System
    from loraprobe.records import Audit
    from loraprobe.scoring import ModelScorer, Scorer
    from loraprobe.session import Session
    from loraprobe.verdict import Exclusion

HERE = "transformers"
SERVE = "serve-"  # how the codes of its findings begin
ON_CARD = (
    "`BASE.gguf` is the base as llama.cpp converts it; the paths are those of this card's "
    "directory."
)
LONG = 600.0  # seconds of a run on a GPU from which vLLM is named


@dataclass(frozen=True)
class ServeOptions(AddedOptions):
    """Which server answers, and which are to run what is advised."""

    title: ClassVar[str] = "Servers"
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "verify": ("device", "dtype", "trust_remote_code")
    }

    serve: tuple[str, ...] = option(
        (),
        "SERVER",
        "Servers: vllm, sglang, llama.cpp, ollama, peft, or all; with commas, or repeated. inspect "
        "tells what they would refuse or misread in the file, and exits 1 if one would; other "
        "commands advise what they can run, with the commands that serve it.",
        affects={"verdict"},
        commands=("inspect", "merge", "merge-and-eval", "screen", "demo"),
    )

    engine: str = option(
        HERE,
        "ENGINE",
        "What answers the questions: transformers; the URL of an OpenAI-compatible server that "
        "loads adapters while it runs (vLLM, SGLang) or has yours by name; or vllm, which starts "
        "one.",
        affects={"questions"},
        typed=True,
        commands=("inspect", "merge-and-eval", "screen"),
    )

    served: str | None = option(
        None,
        "URL",
        "Ask this OpenAI-compatible server whether it applies the adapter DIR (a key comes from "
        "OPENAI_API_KEY): its log-probabilities are compared with those of the base and of the "
        "adapter, run here.",
        affects={"questions"},
        typed=True,
        commands=("verify",),
    )
    model: str | None = option(
        None,
        "NAME",
        "The adapter's name on that server, if it has several models.",
        affects={"questions"},
        commands=("verify",),
    )
    prompts: str | None = option(
        None,
        "auto|FILE",
        "auto, or a file with a question or entity a line (an answer after a tab).",
        "--probe",
        affects={"questions"},
        commands=("verify",),
    )

    adapters: tuple[str, ...] = option(
        (),
        "NAME[=REF]",
        "Names that --served has, its base among them if you like, with commas or repeated; of "
        "those with a REF each is verified as DIR would be.",
        affects={"questions"},
        typed=True,
        commands=("verify",),
    )
    load: int | None = option(
        None,
        "N",
        "Send requests of all --adapters to --served, N at once, and tell whether each answer is "
        "by the adapter that was asked.",
        affects={"questions"},
        least=1,
        most=512,
        typed=True,
        commands=("verify",),
    )
    seconds: float = option(
        60.0,
        "S",
        "How long --load sends requests.",
        affects={"questions"},
        least=1,
        most=3600,
        commands=("verify",),
    )
    yes: bool = option(
        False,
        "",
        "Let --load send to a server on another machine.",
        affects={"questions"},
        typed=True,
        commands=("verify",),
    )

    def check(self, options: Options) -> None:
        """Raises UsageError for a server that is not known, and for an engine that is none."""
        if self.serve:
            from loraprobe.extensions.serve.serving import servers_named

            servers_named(self.serve)
        if self.engine != HERE and not re.match(r"vllm$|https?://", self.engine):
            raise UsageError(
                "--engine takes transformers, vllm or a URL such as http://localhost:8000, not "
                f"{self.engine!r}."
            )


class ServerEngine(Engine):
    """A server answers."""

    flag = "--engine"

    def chosen(self, options: Options) -> bool:
        return options.of_extension(ServeOptions).engine != HERE

    def hint(self, session: Session, seconds: float) -> str:
        """That vLLM may take less of a long run on a GPU."""
        on_gpu = session.device.startswith("cuda")
        if not on_gpu or seconds <= LONG or self.chosen(session.options):
            return ""
        from loraprobe.extensions.serve.engine import installed_vllm

        there = installed_vllm() is not None
        return "vLLM is installed: --engine vllm may take less." if there else ""

    def open(self, work: Workload, session: Session, local: ModelScorer) -> Scorer:
        from loraprobe.extensions.serve.engine import open_served

        engine = session.options.of_extension(ServeOptions).engine
        return open_served(engine, work, session, local)

    def refused(self, adapters: Sequence[Adapter]) -> dict[str, LoraprobeError]:
        from loraprobe.extensions.serve.engine import not_loadable

        return not_loadable(adapters)


@dataclass(frozen=True)
class Servers(Constraint):
    """What the named servers cannot run is not advised."""

    wanted: Sequence[str]

    def exclude(
        self, adapters: Sequence[Adapter], systems: Sequence[System], base: Base
    ) -> Mapping[str, Exclusion]:
        from loraprobe.extensions.serve.serving import Serving

        return Serving(self.wanted, adapters, base).unserved(systems)


class Serve(Extension):
    """Has servers answer, and advises what they can run."""

    options = ServeOptions
    commands = (
        CommandSpec(
            "proxy",
            "loraprobe.extensions.serve.proxying.proxy",
            "Other",
            ("loraprobe proxy routed --server http://localhost:8000",),
            "quiet",
        ),
    )
    codes = Path(__file__).with_name("codes.toml")
    backends = (ServerEngine(),)

    def override(self, command: str, options: Options) -> Callable[..., None] | None:
        if command != "verify":
            return None
        added = [one.name for one in fields(ServeOptions) if command in one.metadata["commands"]]
        own, default = {*added, *ServeOptions.shared[command]}, Options()
        known = [name for name in options_of(command) if name in table()]
        given = [name for name in known if options.value(name) != default.value(name)]
        if "served" not in given:
            if flags := [flag_of(name) for name in given if name in own]:
                named = " and ".join(flags)
                raise UsageError(f"verify takes {named} only with --served=URL; add that.")
            return None
        if flags := [flag_of(name) for name in given if name not in {*own, "threads"}]:
            named = " and ".join(flags)
            raise UsageError(f"verify takes {named} without --served=URL; leave one of them out.")
        from loraprobe.extensions.serve.verifying import verify_served

        return verify_served

    def constraints(self, options: Options) -> Sequence[Constraint]:
        wanted = options.of_extension(ServeOptions).serve
        return [Servers(wanted)] if wanted else []

    def remarks(self, session: Session, result: Result) -> Remarks:
        from loraprobe.extensions.serve.remarks import remarks_on

        return remarks_on(session, result, session.options.of_extension(ServeOptions).serve)

    def audit_parts(self) -> Sequence[AuditPart]:
        from loraprobe.extensions.serve.part import ServePart

        return [ServePart()]

    def card_parts(self, adapter: Adapter, audit: Audit | None) -> Sequence[CardPart]:
        from loraprobe.extensions.serve.serving import serve_commands

        commands = serve_commands(adapter)
        return [CardPart("Serve it", ON_CARD, commands)] if commands else []


EXTENSION = Serve()
