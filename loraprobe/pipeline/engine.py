"""The engine of an evaluation: a server, such as vLLM, in place of transformers.

Every composition is written as a LoRA directory and loaded into the server (`_Loading`). Where a
server loads none while it runs, it is asked the adapters that it has: by their names (`_Naming`),
or weighed in each request, as llama.cpp's does (`_Weighing`). Before a composition is asked
anything, the acceptance test compares the server's next words, and likelihoods where these are
asked, with those of transformers here, on a few questions of the tasks: a server that misreads a
file, or runs another base, ends the run. What a server cannot run is asked by transformers here.
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
from typing import IO, Any, TypeVar

import torch

from loraprobe.adapters import Adapter, ModuleInfo, with_below
from loraprobe.adapters.saving import portable, save_adapter
from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.defaults import ANOTHER_BASE, SERVED_CLOSER
from loraprobe.errors import ServerError, UnsupportedAdapter, UsageError
from loraprobe.evaluation.plan import questions
from loraprobe.merging import METHODS, merge
from loraprobe.pipeline import supervisor
from loraprobe.pipeline.systems import Plan
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import Scorer
from loraprobe.scoring.forward import answering
from loraprobe.scoring.server import Placing, ServedModel, ServedScorer, Server
from loraprobe.session import Session
from loraprobe.tasks import Task

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank
PROMPTS = 12  # of the acceptance test
ABSENT = (404, 405)  # what a server answers that knows no request to load, or finds no file
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
    others: Sequence[Adapter] = (),
    together: int | None = None,
    guards: Sequence[Task] = (),
) -> ServedScorer:
    """A scorer on the server that --engine names or starts.

    adapters: those that are asked and composed. others: those that only enter merges, or, where at
    most `together` are composed, the other ones of a library. plan, guards: what is asked. local:
    the base by transformers, for the acceptance test and for what the server cannot run. Raises
    UsageError for what a server cannot be asked, UnsupportedAdapter for an adapter that it cannot
    load, ServerError for a server that does not run this base, lacks an adapter that it cannot
    load, or takes no adapter of the largest rank.
    """
    options, engine = session.options, session.options.engine
    for task in (*plan.tasks, *guards):
        if task.of_harness:
            raise UsageError(
                f"Task {task.name} is one of lm-evaluation-harness, which needs --engine "
                "transformers; a server is asked the questions of task files."
            )
    composed = [*adapters, *others]
    asked = {one.name: one for one in (adapters if together is None else composed)}
    every = with_below(composed)
    for error in not_loadable(every).values():
        raise error
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraprobe-")))
        if engine == "vllm":
            ranks = sorted((adapter.rank_range[1] for adapter in composed), reverse=True)
            rank = sum(ranks[:together]) if options.rank == "auto" else max(*ranks, options.rank)
            rank += sum(adapter.rank_range[1] for adapter in every[len(composed) :])
            targets = {path.rpartition(".")[2] for one in every for path in one.modules}
            engine = stack.enter_context(started_vllm(base, rank, sorted(targets), place, session))
        server = Server(engine)
        served, version = _base_of(server, asked), server.version()
        name = Path(served.id)  # no path of this machine is published
        session.engine = f"{version}, model {name.name if name.is_absolute() else served.id}"
        called = "%s"  # how a request names an adapter
        if served.owned_by == "sglang":
            server.loading, called = "", f"{served.id}:%s"
        placing: Placing
        if (weighed := server.weighed()) is not None:
            layouts = {one.name: one.layout for one in with_below([*asked.values()])}
            placing = _Weighing(served.id, _all_held(server, layouts, weighed), layouts)
        else:
            placing = _Loading(server, served.id, called, place, options.allow)
        stack.callback(placing.unload)
        # A server counts the last token, after which nothing follows.
        contexts = [local.context, served.max_model_len and served.max_model_len - 1]
        scorer = ServedScorer(
            server,
            placing,
            local,
            accept=_Acceptance.on(plan.tasks, local, base.reference, options.metric),
            context=min((n for n in contexts if n), default=None),
        )
        if isinstance(placing, _Loading):
            largest = single(adapters[0])
            merged = together is None and any(spec in METHODS for spec in plan.specs)
            if merged and options.rank == "auto":  # no merge has a larger rank
                gates = ConstantGates.ones(len(composed))
                largest = Composition("the sum", tuple(composed), gates)
            try:
                with scorer.with_composition(largest):
                    pass
            except ServerError as error:
                held = {model.id: called % model.id for model in server.models()}
                all_there = held.keys() >= asked.keys()
                if error.status is None or not (all_there or error.status in ABSENT):
                    raise
                told = str(error).removesuffix(".")  # other messages have the server's address
                why = told if " has rank " in told else "it loads none while it runs"
                scorer.placing = _Naming(served.id, _all_held(server, asked, held), why)
        scorer.close = stack.pop_all().close
        return scorer


def _base_of(server: Server, names: Collection[str]) -> ServedModel:
    """What the server tells of its base: the first model that is no adapter."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.address} has no model; start it with the base.")
    bases = (one for one in models if not one.parent and one.id not in names)
    return next(bases, models[0])


Held = TypeVar("Held")


def _all_held(server: Server, names: Iterable[str], held: Mapping[str, Held]) -> dict[str, Held]:
    """What a server has of adapters. Raises ServerError where one is missing."""
    for name in names:
        if name not in held:
            raise ServerError(
                f"{server.address} has no adapter named {name} (it has "
                f"{', '.join(held) or 'none'}) and loads no file of this run; name yours as it "
                f"does (NAME=REF), start it with {name}, or start a vLLM that sees TMPDIR with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
    return {name: held[name] for name in names}


def _few(every: Sequence[Any]) -> list[Any]:
    """At most PROMPTS of them, evenly distributed."""
    n = min(PROMPTS, len(every))
    return [every[i * len(every) // n] for i in range(n)]


def _weights(composition: Composition) -> tuple[float, ...] | None:
    """The weight of each expert; None where it depends on the text."""
    router, n = composition.router, len(composition.experts)
    if not isinstance(router, ConstantGates):
        return None
    return router.weights if router.weights is not None else (1.0 / n,) * n


@dataclass
class _Loading(Placing):
    """Loads each composition with constant weights into a server as one LoRA file.

    model: the server's name of the base. called: how a request names an adapter. place: the
    directory of the files. loaded: the server's names of what it loaded, by those of requests.
    """

    server: Server
    model: str
    called: str
    place: Path
    allow: Collection[str]
    why = "no server weighs adapters by the text"
    loaded: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = {"model": self.model}

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """Loads a composition; what a request says of it."""
        weights, name = _weights(composition), f"loraprobe-{uuid.uuid4().hex[:12]}"
        if weights is None:
            return None
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
            if "rank" in str(error).lower():
                why = f"{composition.name} has rank {rank}; start vLLM with --max-lora-rank {rank}"
            else:
                why = f"{composition.name} was not loaded: {error}"
            refused = ServerError(f"{why}.".replace("..", "."))
            refused.status = error.status
            raise refused from None
        self.loaded[self.called % name] = name
        return {"model": self.called % name}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Unloads a composition."""
        name = self.loaded.pop(model["model"])
        self.server.unload(name)
        shutil.rmtree(self.place / name, ignore_errors=True)

    def unload(self) -> None:
        for name in self.loaded.values():
            self.server.unload(name)


@dataclass
class _Naming(Placing):
    """Asks a server the adapters that it has, each by its name.

    model: the server's name of the base. held: what a request calls an adapter, by its name. told:
    why it is asked no others.
    """

    model: str
    held: Mapping[str, str]
    told: str

    def __post_init__(self) -> None:
        self.base = {"model": self.model}
        self.why = f"the server is asked the adapters that it has; {self.told}"

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """What a request says of a single adapter; with others below it, it is not what is held."""
        first = composition.experts[0]
        alone = _weights(composition) == (1.0,) and first.name in self.held and not first.below
        return {"model": self.held[first.name]} if alone else None


@dataclass
class _Weighing(Placing):
    """Has the server of llama.cpp weigh the adapters that it has, in each request.

    model: the server's name of the base. held: the server's ids of adapters, by name. layouts:
    those of the adapters as they are served, by name.
    """

    model: str
    held: Mapping[str, int]
    layouts: Mapping[str, Mapping[str, ModuleInfo]]
    why = "the server weighs the adapters that it has and nothing else"

    def __post_init__(self) -> None:
        self.base = self._request({})

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """What a request says of a sum of the adapters with constant weights."""
        weights, experts = _weights(composition), with_below(composition.experts)
        if weights is None or any(self.layouts.get(one.name) != one.layout for one in experts):
            return None  # scaled adapters have their names too
        weights += (1.0,) * (len(experts) - len(weights))  # of the adapters below
        return self._request({one.name: w for one, w in zip(experts, weights, strict=True)})

    def _request(self, weights: Mapping[str, float]) -> dict[str, Any]:
        # All adapters are named, also those of weight 0. With cache_prompt the server would take a
        # prompt from its cache that it read with other weights.
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
        served.placing.apart = max(self.rounding.values())

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
