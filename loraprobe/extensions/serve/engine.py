"""The engine of an evaluation: a server, such as vLLM, in place of transformers.

Every composition is written as a LoRA directory and loaded into the server (`Loading`). Where a
server loads none while it runs, it is asked the adapters that it has: by their names (`Naming`), or
weighed in each request, as llama.cpp's does (`Weighing`). Before a composition is asked anything,
the acceptance test compares the server's next words, and likelihoods where these are asked, with
those of transformers here, on a few questions of the tasks: a server that misreads a file, or runs
another base, ends the run. What a server cannot run is asked by transformers here. `started_vllm`
starts a server that ends with the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.errors import LoraprobeError, UnsupportedAdapter, UsageError
from loraprobe.extension import Workload
from loraprobe.extensions.serve import supervisor
from loraprobe.extensions.serve.acceptance import Acceptance
from loraprobe.extensions.serve.client import ServedModel, Server, ServerError
from loraprobe.extensions.serve.scorer import (
    Loading,
    Naming,
    Placing,
    ServedScorer,
    Weighing,
    all_held,
)
from loraprobe.extensions.serve.serving import SERVERS
from loraprobe.formatting import clean
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer
from loraprobe.secrets import public_text
from loraprobe.session import Session

LONGEST_SHOWN = 200  # characters of a model's name in a report
ABSENT = (404, 405)  # what a server answers that knows no request to load, or finds no file


def not_loadable(adapters: Iterable[Adapter]) -> dict[str, LoraprobeError]:
    """Adapters that hold more than servers load, each with its error."""
    return {
        adapter.name: UnsupportedAdapter(
            f"Adapter {adapter.name} holds more than low-rank factors, which no server loads; "
            "use --engine=transformers."
        )
        for adapter in adapters
        if adapter.magnitudes or adapter.has_more_than_factors
    }


def open_served(engine: str, work: Workload, session: Session, local: ModelScorer) -> ServedScorer:
    """A scorer on the server that --engine names or starts.

    local: the base by transformers, for the acceptance test and for what the server cannot run.
    Raises UsageError for what a server cannot be asked, UnsupportedAdapter for an adapter that it
    cannot load, ServerError for a server that does not run this base, lacks an adapter that it
    cannot load, or takes no adapter of the largest rank.
    """
    options, base, adapters = session.options, work.base, work.adapters
    for task in (*work.tasks, *work.guards):
        if task.examiner is not None:
            raise UsageError(
                f"Task {task.name} is one of {task.examiner.name}, which needs "
                "--engine=transformers; a server is asked the questions of task files."
            )
    composed = [*adapters, *work.others]
    asked = {one.name: one for one in (adapters if work.together is None else composed)}
    for error in not_loadable(composed).values():
        raise error
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraprobe-")))
        if engine == "vllm":
            ranks = sorted((adapter.rank_range[1] for adapter in composed), reverse=True)
            rank = (
                sum(ranks[: work.together]) if options.rank == "auto" else max(*ranks, options.rank)
            )
            targets = {path.rpartition(".")[2] for one in composed for path in one.modules}
            engine = stack.enter_context(started_vllm(base, rank, sorted(targets), place, session))
        server = Server(engine)
        served, version = _base_of(server, asked), server.version()
        parts = served.id.split("/")  # of owner/name, or of a path, which is not published
        shown = served.id if len(parts) <= 2 and parts[0] else parts[-1]
        session.engine = f"{version}, model {clean(public_text(shown))[:LONGEST_SHOWN]}"
        prefix = ""  # of an adapter's name in a request
        if served.owned_by == "sglang":
            server.loading, prefix = "", f"{served.id}:"
        placing: Placing
        if (weighed := server.weighed()) is not None:
            layouts = {one.name: one.layout for one in asked.values()}
            placing = Weighing(served.id, all_held(server, layouts, weighed), layouts)
        else:
            placing = Loading(server, served.id, prefix, place, options.allow)
        # A server counts the last token, after which nothing follows.
        contexts = [local.context, served.max_model_len and served.max_model_len - 1]
        scorer = ServedScorer(
            server,
            placing,
            local,
            accept=Acceptance.on(work.tasks, local, base.reference),
            context=min((n for n in contexts if n), default=None),
        )
        stack.callback(scorer.unload)
        if isinstance(placing, Loading):
            largest = single(adapters[0])
            if work.merges and options.rank == "auto":  # no merge has a larger rank
                gates = ConstantGates.ones(len(composed))
                largest = Composition("the sum", tuple(composed), gates)
            try:
                with scorer.with_composition(largest):
                    pass
            except ServerError as error:
                held = {model.id: prefix + model.id for model in server.models()}
                all_there = held.keys() >= asked.keys()
                if error.status is None or not (all_there or error.status in ABSENT):
                    raise
                told = str(error).removesuffix(".")  # other messages have the server's address
                why = told if error.beyond_rank else "it loads none while it runs"
                why = f"the server is asked the adapters that it has; {why}"
                named = all_held(server, asked, held)
                scorer.placing = Naming(served.id, named, why, placing.apart)
        scorer.close = stack.pop_all().close
        return scorer


def _base_of(server: Server, names: Collection[str]) -> ServedModel:
    """What the server tells of its base: the first model that is no adapter."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.address} has no model; start it with the base.")
    bases = (one for one in models if not one.parent and one.id not in names)
    return next(bases, models[0])


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
        raise UsageError("--engine=vllm needs vLLM; pip install vllm, or give the URL of a server.")
    ranks = sorted(SERVERS["vllm"].ranks)
    most = next((allowed for allowed in ranks if allowed >= rank), None)
    if most is None:
        raise UsageError(
            f"The merges have rank {rank} and vLLM takes at most {ranks[-1]}; use "
            "--engine=transformers."
        )
    port = _free_port()
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
    with tempfile.TemporaryFile() as told:
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


def _free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


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
