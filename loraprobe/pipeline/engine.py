"""The engine of an evaluation: a server, such as vLLM, in place of transformers.

Every composition is written as a LoRA directory and loaded into the server (`_Loading`). The server
of llama.cpp loads none while it runs; it weighs those that it has (`_Weighing`). Before a
composition is asked anything, the acceptance test compares the server's next words, and likelihoods
where these are asked, with those of transformers here, on a few questions of the tasks: a server
that misreads a file, or runs another base, ends the run.
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
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from loraprobe.adapters import Adapter, with_below
from loraprobe.adapters.saving import portable, save_adapter
from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.defaults import ANOTHER_BASE, SERVED_CLOSER
from loraprobe.errors import ServerError, UnsupportedAdapter, UsageError
from loraprobe.evaluation.plan import questions
from loraprobe.merging import METHODS, merge
from loraprobe.pipeline import supervisor
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import Plan
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Scorer
from loraprobe.scoring.forward import answering
from loraprobe.scoring.server import Placing, ServedModel, ServedScorer, Server
from loraprobe.tasks import Task

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank
PROMPTS = 12  # of the acceptance test
START = 900.0  # seconds that a server may take to load the base


def not_loadable(adapters: Iterable[Adapter]) -> dict[str, UnsupportedAdapter]:
    """Adapters that hold more than servers load, each with its error."""
    return {
        adapter.name: UnsupportedAdapter(
            f"Adapter {adapter.name} holds more than low-rank factors, which no server loads; "
            "use --engine transformers."
        )
        for adapter in adapters
        if adapter.magnitudes or adapter.has_more_than_factors
    }


def open_served(
    base: Base,
    adapters: Sequence[Adapter],
    plan: Plan,
    session: Session,
    local: Scorer,
    together: int | None = None,
) -> ServedScorer:
    """A scorer on the server that --engine names or starts.

    adapters: those that are composed, at most `together` of them (None: all). plan: what is asked.
    local: the base by transformers, for the acceptance test. Raises UsageError for what a server
    cannot be asked, UnsupportedAdapter for an adapter that it cannot load, ServerError for a server
    that does not run this base or takes no adapter of the largest rank.
    """
    options, engine = session.options, session.options.engine
    for task in plan.tasks:
        if task.of_harness:
            raise UsageError(
                f"Task {task.name} is one of lm-evaluation-harness, which needs --engine "
                "transformers; a server is asked the questions of task files."
            )
    every = with_below(adapters)
    for error in not_loadable(every).values():
        raise error
    with ExitStack() as stack:
        if engine == "vllm":
            ranks = sorted((adapter.rank_range[1] for adapter in adapters), reverse=True)
            rank = sum(ranks[:together]) if options.rank == "auto" else max(*ranks, options.rank)
            rank += sum(adapter.rank_range[1] for adapter in every[len(adapters) :])
            targets = {path.rpartition(".")[2] for one in every for path in one.modules}
            engine = stack.enter_context(started_vllm(base, rank, sorted(targets), session))
        server = Server(engine)
        served, version = _base_of(server), server.version()
        told = Path(served.id)  # no path of this machine is published
        session.engine = f"{version}, model {told.name if told.is_absolute() else served.id}"
        held = server.weighed()
        placing: Placing
        if held is not None:
            placing = _Weighing(server.address, served.id, held)
        else:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="loraprobe-"))
            placing = loading = _Loading(server, served.id, Path(place), options.allow)
            stack.callback(loading.unload)
        # A server counts the last token, after which nothing follows.
        contexts = [local.context, served.max_model_len and served.max_model_len - 1]
        scorer = ServedScorer(
            server,
            placing,
            local,
            accept=_Acceptance.on(plan.tasks, local, base.reference, options.metric),
            context=min((n for n in contexts if n), default=None),
        )
        merged = together is None and any(spec in METHODS for spec in plan.specs)
        if merged and options.rank == "auto":
            # No merge has a larger rank: a server that refuses it does so before it is asked.
            gates = ConstantGates.ones(len(adapters))
            with scorer.with_composition(Composition("the sum", tuple(adapters), gates)):
                pass
        scorer.close = stack.pop_all().close
        return scorer


def _base_of(server: Server) -> ServedModel:
    """What the server tells of its base: the first model that is no adapter of another."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.address} has no model; start it with the base.")
    return next((one for one in models if not one.parent), models[0])


def _few(every: Sequence[Any]) -> list[Any]:
    """At most PROMPTS of them, evenly distributed."""
    n = min(PROMPTS, len(every))
    return [every[i * len(every) // n] for i in range(n)]


def _weights(composition: Composition) -> tuple[float, ...]:
    """The weight of each expert. Raises UnsupportedAdapter where it depends on the text."""
    router, n = composition.router, len(composition.experts)
    if not isinstance(router, ConstantGates):
        raise UnsupportedAdapter(
            f"{composition.name} weighs adapters by the text, which no server does; use --engine "
            "transformers, or leave it out by --router none."
        )
    return router.weights if router.weights is not None else (1.0 / n,) * n


@dataclass
class _Loading(Placing):
    """Loads each composition into a server as one LoRA file.

    model: the server's name of the base. place: the directory of the files. loaded: the server's
    names of what it loaded.
    """

    server: Server
    model: str
    place: Path
    allow: Collection[str]
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = {"model": self.model}

    def __call__(self, composition: Composition) -> dict[str, Any]:
        """Loads a composition; what a request says of it."""
        weights, name = _weights(composition), f"loraprobe-{uuid.uuid4().hex[:12]}"
        made = composition.experts[0]
        if weights == (1.0,) and not made.below:
            made = portable(made)
        else:
            merged = merge(
                composition.experts, "task_arithmetic", weights=weights, allow=self.allow
            )
            made = merged.written
        save_adapter(made, self.place / name)
        rank = made.rank_range[1]
        try:
            self.server.load(name, self.place / name)
        except ServerError as error:
            if error.status is None:  # the server is gone
                raise
            told = str(error).lower()
            if error.status in (404, 405) and "lora" not in told.partition("status")[2]:
                if any(model.id == composition.name for model in self.server.models()):
                    return {"model": composition.name}  # it was loaded when the server started
                cure = "vLLM does where VLLM_ALLOW_RUNTIME_LORA_UPDATING=True is set"
                why = f"{self.server.address} loads no adapters while it runs; {cure}"
            elif "rank" in told:
                why = f"{composition.name} has rank {rank}; start vLLM with --max-lora-rank {rank}"
            else:
                why = f"{composition.name} was not loaded: {error}"
            raise ServerError(f"{why}.".replace("..", ".")) from None
        self.loaded.append(name)
        return {"model": name}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Unloads a composition, unless it was loaded when the server started."""
        if model["model"] in self.loaded:
            self.loaded.remove(model["model"])
            self.server.unload(model["model"])
            shutil.rmtree(self.place / model["model"], ignore_errors=True)

    def unload(self) -> None:
        """Takes everything that was loaded out of the server again."""
        for name in self.loaded:
            self.server.unload(name)


@dataclass
class _Weighing(Placing):
    """Has the server of llama.cpp weigh the adapters that it has, in each request.

    model: the server's name of the base. held: the server's ids of adapters, by name.
    """

    address: str
    model: str
    held: Mapping[str, int]

    def __post_init__(self) -> None:
        self.base = self._request({})
        self.note = (
            "llama.cpp's server weighs the adapters that it has: merges that need new weights and "
            "the control random-partner were left out."
        )

    def runs(self, composition: Composition | None) -> bool:
        """Whether a composition is a sum of adapters that the server has, with constant weights."""
        if composition is None:
            return True
        names = {expert.name for expert in with_below(composition.experts)}
        return isinstance(composition.router, ConstantGates) and names <= set(self.held)

    def __call__(self, composition: Composition) -> dict[str, Any]:
        """What a request says of a composition that is a sum of adapters that the server has."""
        names = [one.name for one in with_below(composition.experts)]
        weights = _weights(composition)
        weights += (1.0,) * (len(names) - len(weights))  # of the adapters below the experts
        lacking = [name for name in names if name not in self.held]
        if lacking:
            raise UnsupportedAdapter(
                f"{composition.name} needs the adapter {lacking[0]}, and llama.cpp at "
                f"{self.address} has {', '.join(self.held) or 'none'}; start it with --lora "
                f"{lacking[0]}.gguf, or ask vLLM."
            )
        return self._request(dict(zip(names, weights, strict=True)))

    def _request(self, weights: Mapping[str, float]) -> dict[str, Any]:
        # Adapters that a request leaves out keep the weight of the server's start. The server would
        # take a prompt from its cache that it read with other weights.
        lora = [{"id": i, "scale": weights.get(name, 0.0)} for name, i in self.held.items()]
        return {"model": self.model, "lora": lora, "cache_prompt": False}


@dataclass
class _Acceptance:
    """Ends the run where a server computes something else than transformers.

    prompts: of which the log-probability of the likeliest next word is compared. pairs: of which
    the log-probability of the continuation is, for a token; none where nothing is judged by it.
    """

    local: Scorer
    prompts: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    base: str
    of_base: dict[str, list[float]] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    @classmethod
    def on(cls, tasks: Sequence[Task], local: Scorer, base: str, metric: str | None) -> _Acceptance:
        """On a few questions of the tasks."""
        asked = questions(tasks, metric)
        prompts = list(dict.fromkeys(item.prompt for task in tasks for item in task.items))
        pairs = [(one.prompt, one.continuations[0]) for one in asked if not one.generated]
        return cls(local, _few(prompts), _few(pairs), base)

    def __call__(self, served: ServedScorer, composition: Composition | None) -> None:
        """Raises ServerError unless the server runs the composition; None: the base."""
        ids = self.local.encoder.prompts(self.prompts)
        theirs = {"of the next word": served.server.first_tokens(served.model, ids)}
        with self.local.with_composition(composition):
            own = {"of the next word": first_tokens(self.local, ids)}
            if self.pairs:
                alike = served.with_template(self.local.chat_template)
                for scorer, found in ((alike, theirs), (self.local, own)):
                    scores = scorer.loglikelihood(self.pairs)
                    found["of an answer"] = [one.per_token for one in scores]
        if composition is None:
            self.of_base = own
        for what, figures in own.items():
            self._compare(what, served.server.address, theirs[what], figures, composition)

    def _compare(
        self,
        what: str,
        where: str,
        theirs: Sequence[float],
        own: Sequence[float],
        composition: Composition | None,
    ) -> None:
        apart, between = apart_by(theirs, own), apart_by(own, self.of_base[what])
        told = f"the log-probability {what} differs by {apart:.2f} on average"
        if composition is None:
            self.rounding[what] = apart
            if apart > ANOTHER_BASE:
                raise ServerError(
                    f"{where} runs another base than {self.base}: {told}; serve that base, or give "
                    "the served one by --base."
                )
        elif apart > max(between / SERVED_CLOSER, 2 * self.rounding[what] + 0.005):
            raise ServerError(
                f"{where} does not compute {composition.name}: {told} from that of transformers, "
                f"where adapter and base are {between:.2f} apart; loraprobe inspect ADAPTER "
                "--serve all tells what servers misread, and --engine transformers needs none."
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


def installed_vllm() -> str | None:
    """The program `vllm`: that of PATH, or of this environment; None where there is none."""
    return shutil.which("vllm") or shutil.which("vllm", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def started_vllm(base: Base, rank: int, targets: Sequence[str], session: Session) -> Iterator[str]:
    """The address of a `vllm serve` of the base, which ends with the context or this process.

    rank: the largest that an adapter has. targets: the last parts of the names of its modules;
    where vLLM expects an adapter of the head, it scores prompts wrongly or fails. Raises UsageError
    where vllm is not installed or allows no such rank, ServerError where it does not start.
    """
    program = installed_vllm()
    if program is None:
        raise UsageError("--engine vllm needs vLLM; pip install vllm, or give the URL of a server.")
    most = next((allowed for allowed in RANKS if allowed >= rank), None)
    if most is None:
        raise UsageError(
            f"The merges have rank {rank} and vLLM takes at most {RANKS[-1]}; use --engine "
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
            [sys.executable, supervisor.__file__, *command],
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
    every = told.read().decode("utf-8", "replace").splitlines()
    lines = [line for line in every if "error" in line.lower()]
    why = lines[-1].strip()[-200:] if lines else f"no answer within {START:g} s"
    raise ServerError(f"vllm serve did not start ({why}); start it by hand and give its URL.")
