"""The engine of an evaluation: a server, such as vLLM, in place of transformers.

Every composition is written as a LoRA directory and loaded into the server (`Loading`). Where a
server loads none while it runs, it is asked the adapters that it has: by their names (`Naming`), or
weighed in each request, as llama.cpp's does (`Weighing`). Before a composition is asked anything,
the acceptance test compares the server's next words, and likelihoods where these are asked, with
those of transformers here, on a few questions of the tasks: a server that misreads a file, or runs
another base, ends the run. What a server cannot run is asked by transformers here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from loraprobe.adapters import Adapter, with_below
from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.errors import ServerError, UnsupportedAdapter, UsageError
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.scoring import ModelScorer
from loraprobe.servers.acceptance import Acceptance
from loraprobe.servers.client import ServedModel, Server
from loraprobe.servers.placing import Loading, Naming, Placing, Weighing, all_held
from loraprobe.servers.scorer import ServedScorer
from loraprobe.servers.vllm import started_vllm
from loraprobe.session import Session
from loraprobe.tasks import Task

ABSENT = (404, 405)  # what a server answers that knows no request to load, or finds no file


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
    tasks: Sequence[Task],
    session: Session,
    local: ModelScorer,
    *,
    others: Sequence[Adapter] = (),
    together: int | None = None,
    guards: Sequence[Task] = (),
    merges: bool = False,
) -> ServedScorer:
    """A scorer on the server that --engine names or starts.

    adapters: those that are asked and composed. others: those that only enter merges, or, where at
    most `together` are composed, the other ones of a library. tasks, guards: what is asked. merges:
    whether all of them are merged. local: the base by transformers, for the acceptance test and for
    what the server cannot run. Raises
    UsageError for what a server cannot be asked, UnsupportedAdapter for an adapter that it cannot
    load, ServerError for a server that does not run this base, lacks an adapter that it cannot
    load, or takes no adapter of the largest rank.
    """
    options, engine = session.options, session.options.engine
    for task in (*tasks, *guards):
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
            placing = Weighing(served.id, all_held(server, layouts, weighed), layouts)
        else:
            placing = Loading(server, served.id, called, place, options.allow)
        stack.callback(placing.unload)
        # A server counts the last token, after which nothing follows.
        contexts = [local.context, served.max_model_len and served.max_model_len - 1]
        scorer = ServedScorer(
            server,
            placing,
            local,
            accept=Acceptance.on(tasks, local, base.reference, options.metric),
            context=min((n for n in contexts if n), default=None),
        )
        if isinstance(placing, Loading):
            largest = single(adapters[0])
            if merges and options.rank == "auto":  # no merge has a larger rank
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
                scorer.placing = Naming(served.id, all_held(server, asked, held), why)
        scorer.close = stack.pop_all().close
        return scorer


def _base_of(server: Server, names: Collection[str]) -> ServedModel:
    """What the server tells of its base: the first model that is no adapter."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.address} has no model; start it with the base.")
    bases = (one for one in models if not one.parent and one.id not in names)
    return next(bases, models[0])
