"""A `vllm serve` that a run starts, and that ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from loraprobe.base import Base
from loraprobe.errors import ServerError, UsageError
from loraprobe.servers import supervisor
from loraprobe.servers.client import Server
from loraprobe.servers.rules import SERVERS
from loraprobe.session import Session

START = 900.0  # seconds that a server may take to load the base


def installed_vllm() -> str | None:
    """The program `vllm`: that of PATH, or of this environment; None where there is none."""
    return shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def started_vllm(
    base: Base, rank: int, targets: Sequence[str], place: Path, session: Session
) -> Iterator[str]:
    """The address of a `vllm serve` of the base, which ends with the context or this process.

    rank: the largest that an adapter has. targets: the last parts of the names of its modules;
    where vLLM expects an adapter of the head, it scores prompts wrongly or fails. place: a
    directory that goes with it. Raises UsageError where vllm is not installed or allows no such
    rank, ServerError where it does not start.
    """
    program = installed_vllm()
    if program is None:
        raise UsageError("--engine vllm needs vLLM; pip install vllm, or give the URL of a server.")
    ranks = sorted(SERVERS["vllm"].ranks)
    most = next((allowed for allowed in ranks if allowed >= rank), None)
    if most is None:
        raise UsageError(
            f"The merges have rank {rank} and vLLM takes at most {ranks[-1]}; use --engine "
            "transformers."
        )
    port, taken = _own_port()
    command = [program, "serve", str(base.path), "--served-model-name", "base", "--enable-lora"]
    command += ["--max-lora-rank", str(most), "--dtype", session.dtype, "--max-model-len", "auto"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--lora-target-modules", *targets]
    if torch.cuda.is_available():  # the base is there already, for the acceptance test
        left, whole = torch.cuda.mem_get_info()
        command += ["--gpu-memory-utilization", f"{0.9 * left / whole:.2f}"]
    if session.options.trust_remote_code:
        command.append("--trust-remote-code")
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    address = f"http://127.0.0.1:{port}"
    with taken, tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, supervisor.__file__, str(place), *command],
            env={**os.environ, **allowed},
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ^C reaches loraprobe alone, which then stops the server
        )
        assert process.stdin is not None
        try:
            with session.stage("start vLLM"):
                _wait(address, process, told, session)
            yield address
        finally:
            process.stdin.close()
            process.wait()


def _own_port() -> tuple[int, socket.socket]:
    """A free port of loopback, and a socket that keeps others from getting it until it is closed.

    On Linux a server may bind a port that is bound already, if both sockets reuse addresses and
    neither listens; the port of a bound socket is given to nobody who asks for any. Elsewhere the
    port is only free now.
    """
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    if sys.platform != "linux":
        taken.close()
    return port, taken


def _wait(
    address: str, process: subprocess.Popen[bytes], told: IO[bytes], session: Session
) -> None:
    """Returns when the server answers. Raises ServerError if it ends or takes too long."""
    server, start = Server(address), time.monotonic()
    while (passed := time.monotonic() - start) < START:
        with contextlib.suppress(ServerError):
            if server.models():
                return
        if process.poll() is not None:
            break
        session.tell(f"start vLLM, {passed:.0f} s so far", 0, 0)
        time.sleep(1.0)
    told.seek(0)
    lines = told.read().decode("utf-8", "replace").splitlines()
    why = f"no answer within {START:g} s"
    if process.poll() is not None:
        why = "it ended and wrote no error"
    why = [why, *(line.strip() for line in lines if "error" in line.lower())][-1][-200:]
    raise ServerError(f"vllm serve did not start ({why}); start it by hand and give its URL.")
