"""`--executor ray`: the tasks of a Ray cluster ask the base, on one machine or many."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import Extension, engine_of
from loraprobe.options import AddedOptions, Options, option

if TYPE_CHECKING:
    from loraprobe.session import Executor, Session


@dataclass(frozen=True)
class RayOptions(AddedOptions):
    """Which cluster asks the base; None for this process."""

    title: ClassVar[str] = "Ray"

    executor: str | None = option(
        None,
        "WHERE",
        "Ask the base by tasks of a Ray cluster: ray (this machine) or ray://ADDRESS.",
        affects={"questions"},
        typed=True,
        commands=("inspect", "merge-and-eval", "screen"),
    )

    def check(self, options: Options) -> None:
        """Raises UsageError for another executor, and for one beside another engine."""
        if self.executor is not None and not re.fullmatch(r"ray(://[^\s/]+)?", self.executor):
            raise UsageError(f"--executor takes ray or ray://HOST:PORT, not {self.executor!r}.")
        engine = engine_of(options)
        if self.executor is not None and engine is not None:
            raise UsageError(f"--executor asks by transformers; leave it or {engine.flag} out.")


class Ray(Extension):
    """Asks the base by tasks of a Ray cluster."""

    options = RayOptions
    packages = ("ray",)

    def executor(self, session: Session) -> AbstractContextManager[Executor] | None:
        where = session.options.of_extension(RayOptions).executor
        if where is None:
            return None
        from loraprobe.extensions.ray.cluster import open_cluster

        return open_cluster(where)


EXTENSION = Ray()
