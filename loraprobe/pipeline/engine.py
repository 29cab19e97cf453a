"""The engine of an evaluation: a server, such as vLLM, in place of transformers.

Every composition is written as a LoRA directory and loaded into the server. Before it is asked
anything, the acceptance test compares the server's next words with those of transformers here, on a
few prompts of the tasks: a server that misreads a file, or runs another base, ends the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters import Adapter
from loraprobe.adapters.saving import portable, save_adapter
from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.defaults import ANOTHER_BASE, SERVED_CLOSER
from loraprobe.errors import ServerError, UnsupportedAdapter, UsageError
from loraprobe.merging import merge
from loraprobe.pipeline.session import Session
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Scorer
from loraprobe.scoring.forward import answering
from loraprobe.scoring.server import ServedModel, ServedScorer, Server
from loraprobe.tasks import Task

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank
PROMPTS = 12  # of the acceptance test
START = 900.0  # seconds that a server may take to load the base


def open_served(
    base: Base, adapters: Sequence[Adapter], tasks: Sequence[Task], session: Session, local: Scorer
) -> ServedScorer:
    """A scorer on the server that --engine names or starts.

    adapters: those that are composed. local: the base by transformers, for the acceptance test.
    Raises UsageError for what a server cannot be asked, UnsupportedAdapter for an adapter that it
    cannot load, ServerError for a server that does not run this base.
    """
    options, engine = session.options, session.options.engine
    for task in tasks:
        if task.of_harness:
            raise UsageError(
                f"Task {task.name} is one of lm-evaluation-harness, which needs --engine "
                "transformers; a server is asked the questions of task files."
            )
    for adapter in adapters:
        if adapter.magnitudes or adapter.has_more_than_factors:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} holds more than low-rank factors, which no server loads; "
                "use --engine transformers."
            )
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraprobe-")))
        if engine == "vllm":
            rank = sum(adapter.rank_range[1] for adapter in adapters)
            with session.stage("start the server"):
                engine = stack.enter_context(started_vllm(base, rank, options.dtype))
        server = Server(engine)
        served, version = _base_of(server), server.version()
        name, contexts = served.id, [local.context, served.max_model_len]
        session.engine = f"{version}, model {name}"
        scorer = ServedScorer(
            server,
            name,
            local.tokenizer,
            publish=lambda composition: _published(composition, place, options.allow),
            accept=_Acceptance(server, local, _prompts(tasks), base.reference),
            rows=local.vocab_size,
            context=min((n for n in contexts if n), default=None),
            chat_template=options.chat_template == "on",
        )
        scorer.on_close = stack.pop_all().close
    return scorer


def _base_of(server: Server) -> ServedModel:
    """What the server tells of its base: the first model that is no adapter of another."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.address} has no model; start it with the base.")
    return next((one for one in models if not one.parent), models[0])


def _prompts(tasks: Sequence[Task]) -> list[str]:
    """At most PROMPTS prompts of the tasks, evenly distributed."""
    every = list(dict.fromkeys(item.prompt for task in tasks for item in task.items))
    n = min(PROMPTS, len(every))
    return [every[i * len(every) // n] for i in range(n)]


def _published(composition: Composition, place: Path, allow: Collection[str]) -> tuple[Path, int]:
    """The directory of a composition as one LoRA file, which servers read, and its rank."""
    experts, router = composition.experts, composition.router
    if not isinstance(router, ConstantGates):
        raise UnsupportedAdapter(
            f"{composition.name} weighs adapters by the text, which no server does; use --engine "
            "transformers, or leave it out by --router none."
        )
    n = len(experts)
    weights = router.weights if router.weights is not None else (1.0 / n,) * n
    directory = place / f"{len(os.listdir(place))}"
    if weights == (1.0,):
        made = portable(experts[0])
    else:
        made = merge(experts, "task_arithmetic", weights=weights, allow=allow).written
    save_adapter(made, directory)
    return directory, made.rank_range[1]


@dataclass
class _Acceptance:
    """Ends the run where a server computes something else than transformers.

    prompts: of which the log-probability of the likeliest next word is compared.
    """

    server: Server
    local: Scorer
    prompts: Sequence[str]
    base: str
    of_base: list[float] = field(default_factory=list)
    rounding: float = 0.0

    def __call__(self, name: str, composition: Composition | None) -> None:
        """Raises ServerError unless the server's `name` is the composition; None: the base."""
        ids = self.local.encoder.prompts(self.prompts)
        theirs = self.server.first_tokens(name, ids)
        with self.local.with_composition(composition):
            own = first_tokens(self.local, ids)
        if composition is None:
            self.of_base = own
        apart, between = apart_by(theirs, own), apart_by(own, self.of_base)
        where = self.server.address
        if composition is None:
            self.rounding = apart
            if apart > ANOTHER_BASE:
                raise ServerError(
                    f"{where} runs another base than {self.base}: the log-probability of the next "
                    f"word differs by {apart:.2f} on average; serve that base, or give the served "
                    "one by --base."
                )
        elif apart > max(between / SERVED_CLOSER, 2 * self.rounding + 0.005):
            raise ServerError(
                f"{where} does not compute {composition.name}: the log-probability of the next "
                f"word differs by {apart:.2f} on average from that of transformers, where adapter "
                f"and base are {between:.2f} apart; loraprobe inspect ADAPTER --serve all tells "
                "what servers misread, and --engine transformers needs none."
            )


def first_tokens(scorer: Scorer, rows: Sequence[Sequence[int]]) -> list[float]:
    """The largest log-probability of a next token after each row of token ids."""
    found = []
    with answering(scorer.model), torch.no_grad():
        for ids in rows:
            logits = scorer.model(input_ids=torch.tensor([ids], device=scorer.model.device)).logits
            found.append(float(logits[0, -1].double().log_softmax(-1).max()))
    return found


def apart_by(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@contextlib.contextmanager
def started_vllm(base: Base, rank: int, dtype: str) -> Iterator[str]:
    """The address of a `vllm serve` of the base, which runs while the context lasts.

    rank: the largest that an adapter has. Raises UsageError where vllm is not installed or allows
    no such rank, ServerError where it does not start.
    """
    program = shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError("--engine vllm needs vLLM; pip install vllm, or give the URL of a server.")
    most = next((allowed for allowed in RANKS if allowed >= rank), None)
    if most is None:
        raise UsageError(
            f"The merges have rank {rank} and vLLM takes at most {RANKS[-1]}; use --engine "
            "transformers."
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "serve", str(base.path), "--served-model-name", "base", "--enable-lora"]
    command += ["--max-lora-rank", str(most), "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command,
            env={**os.environ, **allowed},
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ^C reaches loraprobe alone, which then stops the server
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, told)
            yield f"http://127.0.0.1:{port}"
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)


def _wait(address: str, process: subprocess.Popen[bytes], told: Any) -> None:
    """Returns when the server answers. Raises ServerError if it ends or takes too long."""
    server, start = Server(address), time.monotonic()
    while time.monotonic() < start + START:
        with contextlib.suppress(ServerError):
            if server.models():
                return
        if process.poll() is not None:
            break
        time.sleep(1.0)
    told.seek(0)
    lines = [
        line for line in told.read().decode("utf-8", "replace").splitlines() if "Error" in line
    ]
    why = lines[-1].strip()[-200:] if lines else f"no answer within {START:g} s"
    raise ServerError(f"vllm serve did not start ({why}); start it by hand and give its URL.")
