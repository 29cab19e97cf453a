"""`--executor ray`: the tasks of a Ray cluster ask the base, on one machine or many."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from loraprobe.errors import UsageError
from loraprobe.extension import Extension, Pool
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
        """Raises UsageError for another executor."""
        if self.executor is not None and not re.fullmatch(r"ray(://[^\s/]+)?", self.executor):
            raise UsageError(f"--executor takes ray or ray://HOST:PORT, not {self.executor!r}.")


class RayTasks(Pool):
    """The tasks of a Ray cluster."""

    flag = "--executor"

    def chosen(self, options: Options) -> bool:
        return options.of_extension(RayOptions).executor is not None

    def open(self, session: Session) -> AbstractContextManager[Executor]:
        from loraprobe.extensions.ray.cluster import open_cluster

        where = session.options.of_extension(RayOptions).executor
        assert where is not None  # it is chosen
        return open_cluster(where)


class Ray(Extension):
    """Asks the base by tasks of a Ray cluster."""

    options = RayOptions
    backends = (RayTasks(),)


EXTENSION = Ray()
