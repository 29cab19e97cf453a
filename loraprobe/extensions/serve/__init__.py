"""Servers of adapters, such as vLLM: `--engine` has one answer the questions of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.extension import Constraint, Engine, Extension, Workload
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.base import Base
    from loraprobe.evaluation import System
    from loraprobe.scoring import ModelScorer, Scorer
    from loraprobe.session import Session
    from loraprobe.verdict import Exclusion

HERE = "transformers"
LONG = 600.0  # seconds of a run on a GPU from which vLLM is named


@dataclass(frozen=True)
class ServeOptions(AddedOptions):
    """Which server answers."""

    title: ClassVar[str] = "Servers"

    engine: str = option(
        HERE,
        "ENGINE",
        "What answers the questions: transformers; the URL of an OpenAI-compatible server that "
        "loads adapters while it runs (vLLM, SGLang) or has yours by name; or vllm, which starts "
        "one.",
        typed=True,
        commands=("inspect", "merge-and-eval", "screen"),
    )

    def check(self, options: Options) -> None:
        """Raises UsageError for an engine that is none."""
        if self.engine != HERE and not re.match(r"vllm$|https?://", self.engine):
            raise UsageError(
                "--engine takes transformers, vllm or a URL such as http://localhost:8000, not "
                f"{self.engine!r}."
            )


class ServerEngine(Engine):
    """A server answers."""

    flag = "--engine"

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
        from loraprobe.servers.serving import Serving

        return Serving(self.wanted, adapters, base).unserved(systems)


class Serve(Extension):
    """Has servers answer, and advises what they can run."""

    options = ServeOptions
    codes = Path(__file__).with_name("codes.toml")

    def engine(self, options: Options) -> Engine | None:
        return None if options.of_extension(ServeOptions).engine == HERE else ServerEngine()

    def constraints(self, options: Options) -> Sequence[Constraint]:
        return [Servers(options.serve)] if options.serve else []

    def hints(self, session: Session, seconds: float) -> Sequence[str]:
        if not session.device.startswith("cuda") or seconds <= LONG or self.engine(session.options):
            return ()
        from loraprobe.extensions.serve.engine import installed_vllm

        there = installed_vllm() is not None
        return ["vLLM is installed: --engine vllm may take less."] if there else ()


EXTENSION = Serve()
