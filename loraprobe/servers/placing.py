"""How compositions get into a server, and what a request then says of them."""

from __future__ import annotations

import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loraprobe.adapters import ModuleInfo, portable, save_adapter, with_below
from loraprobe.composition import Composition
from loraprobe.errors import ServerError
from loraprobe.merging import merge
from loraprobe.routing.constant import ConstantGates
from loraprobe.servers.client import Server


class Placing(ABC):
    """How compositions get into a server.

    model: the server's name of the base. why: the reason for which the server cannot run some, for
    the report. apart: how far its log-probabilities of the base are from those of transformers
    here, on average.
    """

    model: str
    why: str
    apart: float = 0.0

    @property
    def base(self) -> dict[str, Any]:
        """What a request says of the base."""
        return {"model": self.model}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Takes what `__call__` gave out of the server, which need not hold more for it."""
        return None

    @abstractmethod
    def __call__(self, composition: Composition) -> Mapping[str, Any] | None:
        """Makes the server ready for a composition; what a request says of it.

        None for one that it cannot run.
        """


Held = TypeVar("Held")


def all_held(server: Server, names: Iterable[str], held: Mapping[str, Held]) -> dict[str, Held]:
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


def _weights(composition: Composition) -> tuple[float, ...] | None:
    """The weight of each expert; None where it depends on the text."""
    router, n = composition.router, len(composition.experts)
    if not isinstance(router, ConstantGates):
        return None
    return router.weights if router.weights is not None else (1.0 / n,) * n


@dataclass
class Loading(Placing):
    """Loads each composition with constant weights into a server as one LoRA file.

    called: how a request names an adapter. place: the directory of the files.
    """

    server: Server
    model: str
    called: str
    place: Path
    allow: Collection[str]
    why = "no server weighs adapters by the text"

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
        return {"model": self.called % name}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Unloads a composition."""
        name = model["model"].rpartition(":")[2]
        self.server.unload(name)
        shutil.rmtree(self.place / name, ignore_errors=True)


@dataclass
class Naming(Placing):
    """Asks a server the adapters that it has, each by its name.

    held: what a request calls an adapter, by its name.
    """

    model: str
    held: Mapping[str, str]
    why: str
    apart: float

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """What a request says of a single adapter; with others below it, it is not what is held."""
        first = composition.experts[0]
        alone = _weights(composition) == (1.0,) and first.name in self.held and not first.below
        return {"model": self.held[first.name]} if alone else None


@dataclass
class Weighing(Placing):
    """Has the server of llama.cpp weigh the adapters that it has, in each request.

    held: the server's ids of adapters, by name. layouts: those of the adapters as they are served,
    by name.
    """

    model: str
    held: Mapping[str, int]
    layouts: Mapping[str, Mapping[str, ModuleInfo]]
    why = "the server weighs the adapters that it has and nothing else"

    @property
    def base(self) -> dict[str, Any]:
        return self._request({})

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
