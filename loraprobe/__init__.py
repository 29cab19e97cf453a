"""Tells whether composing LoRA adapters will work for a task, why, and what to do instead.

    import loraprobe
    a, b = loraprobe.load("./a"), loraprobe.load("owner/b")
    audit = loraprobe.inspect([a, b])
    merged = loraprobe.merge([a, b], method="ties:density=0.3")
    merged.save("./out")
    with loraprobe.route(model, [a, b], router="arrow:top_k=1"):
        model.generate(...)
    audit = loraprobe.merge_and_eval([a, b], base="...", tasks=["task.jsonl"])
    loraprobe.compose([a, b], router="arrow").save("./composed")
    with loraprobe.load_composition("./composed").into(model):
        model.generate(...)

Adapters are given as loaded or as references; options are those of the command line, and None
means that one is not given. Every error is a LoraprobeError. Importing this module imports neither
torch nor transformers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, overload

from loraprobe._version import __version__
from loraprobe.errors import (
    AdapterError,
    BadReference,
    BaseError,
    CompatibilityError,
    Defect,
    EngineError,
    HubError,
    Incomplete,
    Interrupted,
    LoraprobeError,
    OutOfMemory,
    OutputError,
    Refused,
    TaskError,
    UnsupportedAdapter,
    UsageError,
)
from loraprobe.extension import installed
from loraprobe.options import takes
from loraprobe.wiring import OF_CORE

if TYPE_CHECKING:
    from pathlib import Path

    from loraprobe.adapters import Adapter
    from loraprobe.composition import Composition
    from loraprobe.merging import Merged
    from loraprobe.records import Audit
    from loraprobe.report.sections import JudgedAudit
    from loraprobe.routing import Routed

__all__ = [
    "AdapterError",
    "BadReference",
    "BaseError",
    "CompatibilityError",
    "Defect",
    "EngineError",
    "HubError",
    "Incomplete",
    "Interrupted",
    "LoraprobeError",
    "OutOfMemory",
    "OutputError",
    "Refused",
    "TaskError",
    "UnsupportedAdapter",
    "UsageError",
    "__version__",
    "compose",
    "inspect",
    "load",
    "load_composition",
    "merge",
    "merge_and_eval",
    "route",
]
OF_CORE |= {f"the function {name}": __name__ for name in __all__}
_ADDED = {name: at for one in installed() for name, at in one.functions.items()}
__all__ += [*_ADDED]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """A function of an extension."""
    if name not in _ADDED:
        raise AttributeError(f"module 'loraprobe' has no attribute {name!r}")
    module, _, function = _ADDED[name].rpartition(".")
    return getattr(importlib.import_module(module), function)


@takes()
def load(reference: str | Path) -> Adapter:
    """Loads one adapter from a directory or the Hub. Raises LoraprobeError if that fails."""
    from loraprobe import hub

    return hub.load(reference)


@overload
def inspect(
    adapters: Adapter | str | Path,
    *,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    probe: str | Path | None = None,
    **options: Any,
) -> Audit: ...


@overload
def inspect(
    adapters: Sequence[Adapter | str | Path],
    *,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    probe: str | Path | None = None,
    **options: Any,
) -> JudgedAudit: ...


@takes("inspect")
def inspect(
    adapters: Sequence[Adapter | str | Path] | Adapter | str | Path,
    *,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    probe: str | Path | None = None,
    **options: Any,
) -> Audit:
    """Describes adapters and measures how they relate. The result is the Audit's `verdict`, which
    is None for a single adapter without tasks and probe.

    base: the base model, which tasks, probes and some diagnostics need; "auto" is the one that the
    adapters' configs name. tasks: task files; the base, the single adapters and the compositions
    are asked a sample of each. probe: "auto" or a file of questions. Raises LoraprobeError for
    input that cannot be used.
    """
    return _run("inspect", adapters, options, base=base, tasks=tasks, probe=probe).audit


@takes("merge")
def merge(
    adapters: Sequence[Adapter | str | Path],
    method: str = "uniform",
    *,
    weights: Sequence[float] | Literal["learn", "learn:per=layer"] | None = None,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    **options: Any,
) -> Merged:
    """Merges several adapters into one; `.save(directory)` writes it with a model card.

    weights: one for each adapter, or "learn", which minimises the loss of `base` on `tasks`. DoRA
    adapters and whole modules are merged with the base's weights. Raises CompatibilityError if the
    adapters do not fit together.
    """
    chosen = {**options, "methods": (method,), "weights": weights}
    return _run("merge", adapters, chosen, base=base, tasks=tasks).made


@takes()
def route(
    model: Any,
    adapters: Sequence[Adapter | str | Path],
    *,
    router: str = "arrow",
    prompts: Mapping[str, Sequence[str]] | None = None,
    tokenizer: Any = None,
    balance: Literal["none", "norm"] = "none",
    subtract: Sequence[Adapter | str | Path] | Adapter | str | Path = (),
) -> AbstractContextManager[Any]:
    """Puts a routed composition into a loaded transformers model while the context lasts.

    What the command `route` writes is made by `compose`.

    prompts: adapter's name -> a few unlabelled prompts, for a router that is fitted to them
    (centroid). The model reads them with `tokenizer`.
    balance, subtract: transformations of the adapters, as on the command line.

    Raises CompatibilityError if the adapters do not fit together or do not fit the model, and
    UsageError if such a router gets no prompts.
    """
    from loraprobe import compatibility, hub
    from loraprobe.composition import Composition, aligned_to, composed
    from loraprobe.routing import ROUTERS

    loaded = tuple(aligned_to(model, hub.load_all(adapters)))
    compatibility.require(compatibility.check(loaded, purpose="route"))
    if balance != "none" or subtract:
        from loraprobe.pipeline.transforms import transform_for

        loaded = transform_for(model, loaded, balance, subtract)
    made = ROUTERS.make(router)
    if made.needs_prompts or prompts:
        from loraprobe.pipeline.fitting import fitted_in

        made = fitted_in(made, model, tokenizer, loaded, prompts or {})
    return composed(model, Composition(router, loaded, made))


@takes("route")
def compose(
    adapters: Sequence[Adapter | str | Path],
    *,
    router: str = "arrow",
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    weights: Sequence[float] | Literal["learn", "learn:per=layer"] | None = None,
    **options: Any,
) -> Routed:
    """Combines adapters with a router; `.save(directory)` writes them with a card.

    Raises CompatibilityError if the adapters do not fit together.
    """
    chosen = {**options, "routers": (router,), "weights": weights}
    return _run("compose", adapters, chosen, base=base, tasks=tasks).made


@takes()
def load_composition(directory: str | Path) -> Composition:
    """Loads a directory of `loraprobe route --output` or `compose(...).save`, checking all hashes.

    `with load_composition(directory).into(model): ...` puts it into a loaded transformers model.
    Raises AdapterError if a file is missing or has changed.
    """
    from loraprobe.routing import _saved

    return _saved.load_composition(directory)


@takes("merge-and-eval")
def merge_and_eval(
    adapters: Sequence[Adapter | str | Path],
    *,
    base: str | Path = "auto",
    tasks: Sequence[str | Path] | str | Path = (),
    **options: Any,
) -> JudgedAudit:
    """Evaluates compositions of adapters on tasks and decides whether they work.

    The Audit's `verdict` has decision, system, gain, action and reasons. Raises LoraprobeError for
    input that cannot be used.
    """
    return _run("merge_and_eval", adapters, options, base=base, tasks=tasks).audit


def _run(command: str, adapters: Any, options: Mapping[str, Any], **inputs: Any) -> Any:
    """The outcome of a function of the pipeline's `commands`; options are as keywords give them."""
    from loraprobe.pipeline import commands
    from loraprobe.session import Session

    return getattr(commands, command)(adapters, Session.of_call(options), **inputs)
