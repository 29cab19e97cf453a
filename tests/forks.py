"""Processes that have imported everything already, so that a test waits for work and not imports.

They are forks of a server (multiprocessing's) that has one thread. A fork of a process that runs
tests would have the locks of its other threads, some of them held for ever.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

IMPORTED = """torch transformers.models.llama peft typer.testing jinja2 loraprobe.cli loraprobe.demo
loraprobe.pipeline.evaluate"""


def run(
    work: Callable[[], object], place: Path, environment: dict[str, str], seconds: float = 0.0
) -> None:
    """Ends this process, a child, with the exit code of `work`; what it says goes into `place`.

    seconds: after so many it tells where its threads are, and ends; not in a fork of a process that
    does so too, because it would wait for that one's timer.
    """
    code = 70
    try:
        os.environ.clear()
        os.environ.update(environment)
        import torch

        torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: list[str], before: Callable[[], object]) -> None:
    """Runs the command line as its entry point does."""
    from loraprobe.cli import main

    before()
    sys.argv = ["loraprobe", *arguments]
    main()


def nothing() -> None:
    """Changes nothing before a command."""


class Fork:
    """`work`, a function of a module or a partial of one, in a process of its own.

    Its standard output and error go to files in the new directory `place`. It may take so many
    seconds.
    """

    def __init__(
        self, work: Callable[[], object], place: Path, seconds: float = 120.0, **environment: str
    ) -> None:
        place.mkdir()
        self.place = place
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(IMPORTED.split())
        child = forks.Process(
            target=run, args=(work, place, {**os.environ, **environment}, seconds)
        )
        # The server keeps these; the path of its socket must be short.
        short = mock.patch.object(tempfile, "tempdir", None)
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}), short:
            child.start()
        self.child, self.pid = child, child.pid

    @classmethod
    def of_command(
        cls,
        arguments: list[object],
        place: Path,
        before: Callable[[], object] = nothing,
        **environment: str,
    ) -> Fork:
        """A call of the command line; `before` may change the program."""
        call = functools.partial(command, list(map(str, arguments)), before)
        return cls(call, place, **environment)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.child.is_alive()

    def stop(self, number: int) -> tuple[int, str, str]:
        """Sends it a signal, before which it must not have ended; what `end` gives."""
        if not self.runs():
            code, *texts = self.end()
            raise AssertionError(f"it ended too early, with code {code}:\n" + "\n".join(texts))
        os.kill(self.pid, number)
        return self.end()

    def end(self) -> tuple[int, str, str]:
        """Waits for the end; exit code, standard output and standard error."""
        self.child.join()
        out, error = (self.place / name for name in ("stdout", "stderr"))
        return self.child.exitcode, out.read_text("utf-8"), error.read_text("utf-8")
