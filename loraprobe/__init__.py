"""Tells whether composing LoRA adapters will work for a task, why, and what to do instead.

    import loraprobe
    a, b = loraprobe.load("./a"), loraprobe.load("owner/b")
    audit = loraprobe.inspect([a, b])
    merged = loraprobe.merge([a, b], method="ties:density=0.3", weights=[0.5, 0.5])
    merged.save("./out")
    with loraprobe.route(model, [a, b], router="arrow:top_k=1"):
        model.generate(...)
    audit = loraprobe.merge_and_eval([a, b], base="...", tasks=["task.jsonl"])
    loraprobe.compose([a, b], router="arrow").save("./composed")
    with loraprobe.load_composition("./composed").into(model):
        model.generate(...)

Adapters are given as loaded or as references; options are those of the command line. Importing
this module imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from loraprobe._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from loraprobe.adapter import Adapter
    from loraprobe.audit.saved import Routed
    from loraprobe.composition import Composition
    from loraprobe.merging import Merged
    from loraprobe.records import Audit, Verification

__all__ = [
    "__version__", "compose", "inspect", "load", "load_composition", "merge", "merge_and_eval",
    "route", "verify",
]  # fmt: skip


def load(reference: str | Path) -> Adapter:
    """One adapter from a directory or the Hub. Raises LoraprobeError, saying what to do."""
    from loraprobe import hub

    return hub.load(reference)


def inspect(
    adapters: Sequence[Adapter | str | Path],
    *,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    probe: str | Path | None = None,
    **options: Any,
) -> Audit:
    """What `loraprobe inspect` does; options are the fields of `loraprobe.audit.Settings`."""
    from loraprobe import audit, hub
    from loraprobe.errors import UsageError
    from loraprobe.tasks import load_probe

    if (tasks or probe) and base is None:
        raise UsageError("tasks and probe ask the base model; give base, which may be 'auto'.")
    loaded = hub.load_all(adapters)
    settings = audit.Settings(**options)
    return audit.inspect(
        loaded,
        base=audit.base_of(base, loaded, code=settings.trust_remote_code) if base else None,
        tasks=_tasks(tasks, settings.limit),
        probe=load_probe(probe) if probe and probe != "auto" else ("auto" if probe else None),
        cards={a.name: hub.model_card(a) for a in loaded} if probe == "auto" else {},
        settings=settings,
    )


def merge(
    adapters: Sequence[Adapter | str | Path],
    method: str = "uniform",
    *,
    weights: Sequence[float] | Literal["search"] | None = None,
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    **options: Any,
) -> Merged:
    """One adapter from several, with a model card; raises CompatibilityError if they do not fit.

    weights: one an adapter, or "search", which finds them on `tasks` by asking `base`. The base is
    also what DoRA adapters and whole modules are merged with. options are the fields of
    `loraprobe.audit.Settings`.
    """
    from loraprobe import audit, hub

    loaded = hub.load_all(adapters)
    settings = audit.Settings(methods=(method,), weights=_chosen(weights), **options)
    found, merged = audit.merge(
        loaded,
        base=audit.base_of(base, loaded, code=settings.trust_remote_code) if base else None,
        tasks=_tasks(tasks, settings.limit),
        settings=settings,
    )
    return with_card(merged, found, settings)


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

    prompts: a few unlabelled prompts of each adapter, by its name, for a router that learns from
    them (centroid), which are read here through the model with its tokenizer.
    balance, subtract: what is done to the adapters first, as on the command line.

    Raises CompatibilityError where the adapters do not fit together or do not fit the model, and
    UsageError where such a router is given no prompts.
    """
    from loraprobe import compatibility, hub
    from loraprobe.composition import Composition, composed
    from loraprobe.composition.aligning import aligned_to
    from loraprobe.routing import ROUTERS

    loaded = tuple(aligned_to(model, hub.load_all(adapters)))
    compatibility.require(compatibility.check(loaded, purpose="route"))
    if balance != "none" or subtract:
        from loraprobe.audit.transforms import prepare_for

        loaded = prepare_for(model, loaded, balance, subtract)
    made = ROUTERS.make(router)
    if made.needs_prompts or prompts:
        from loraprobe.audit.fitting import fitted_in

        made = fitted_in(made, model, tokenizer, loaded, prompts or {})
    return composed(model, Composition(router, loaded, made))


def compose(
    adapters: Sequence[Adapter | str | Path],
    *,
    router: str = "arrow",
    base: str | Path | None = None,
    tasks: Sequence[str | Path] | str | Path = (),
    weights: Sequence[float] | Literal["search"] | None = None,
    **options: Any,
) -> Routed:
    """What `loraprobe route` saves: adapters and a router, with a card; `.save(directory)` writes.

    options are the fields of `loraprobe.audit.Settings`. Raises CompatibilityError where the
    adapters do not fit together.
    """
    from loraprobe import audit, hub

    loaded = hub.load_all(adapters)
    settings = audit.Settings(routers=(router,), weights=_chosen(weights), **options)
    found, made = audit.compose(
        loaded,
        base=audit.base_of(base, loaded, code=settings.trust_remote_code) if base else None,
        tasks=_tasks(tasks, settings.limit),
        settings=settings,
    )
    return with_composition_card(made, found, settings)


def load_composition(directory: str | Path) -> Composition:
    """What `loraprobe route --output` or `compose(...).save` wrote, every file's hash checked.

    `with load_composition(directory).into(model): ...` puts it into a loaded transformers model.
    Raises AdapterError where a file is missing or is not the one that was saved.
    """
    from loraprobe import audit

    return audit.load_composition(directory)


def verify(
    directory: str | Path,
    sources: Sequence[str | Path] = (),
    base: str | Path | None = None,
) -> Verification:
    """What `loraprobe verify` does: whether a merged or routed directory is what its card says.

    sources, base: where the adapters and the base are that it was made of, if they moved. Raises
    AdapterError where the directory was not made by loraprobe.
    """
    from loraprobe import audit

    return audit.verify(directory, [*map(str, sources)], None if base is None else str(base))


def merge_and_eval(
    adapters: Sequence[Adapter | str | Path],
    *,
    base: str | Path = "auto",
    tasks: Sequence[str | Path] | str | Path,
    **options: Any,
) -> Audit:
    """The whole audit; options are the fields of `loraprobe.audit.Settings`.

    Raises LoraprobeError with one sentence where something cannot be used.
    """
    from loraprobe import audit, hub
    from loraprobe.errors import UsageError

    settings = audit.Settings(**options)
    read = _tasks(tasks, settings.limit)
    if not read:
        raise UsageError("merge_and_eval needs a task; without one, try inspect with a probe.")
    loaded = hub.load_all(adapters)
    if len(loaded) < 2:
        raise UsageError("merge_and_eval composes adapters; give at least two.")
    return audit.merge_and_eval(
        loaded,
        base=audit.base_of(base, loaded, code=settings.trust_remote_code),
        tasks=read,
        settings=settings,
    ).audit


def with_card(merged: Merged, audit: Audit, settings: Any) -> Merged:
    """The merge with the model card that its directory will carry."""
    import dataclasses

    from loraprobe.audit.provenance import merge_matter
    from loraprobe.report.card import model_card

    low, high = merged.adapter.rank_range
    card = model_card(
        name=merged.adapter.name,
        matter=merge_matter(merged, audit, settings),
        sources=merged.sources,
        method=merged.method,
        space=merged.space,
        rank=str(low) if low == high else f"{low} to {high}",
        weights=merged.weights,
        compression_error=merged.compression_error,
        rounding_error=merged.rounding_error,
        dtype=str(merged.adapter.dtype).removeprefix("torch."),
        seed=settings.seed,
        issues=audit.compatibility.issues,
        allowed=settings.allow,
        verdict=audit.verdict,
        transformations=audit.transformations,
        search=audit.search,
    )
    return dataclasses.replace(merged, card=card)


def with_composition_card(made: Routed, audit: Audit, settings: Any) -> Routed:
    """The composition with the card that its directory will carry."""
    import dataclasses

    from loraprobe.audit.provenance import composition_matter
    from loraprobe.report.card import composition_card

    experts = made.composition.experts
    card = composition_card(
        name=made.composition.name,
        matter=composition_matter(made, audit, settings),
        router=repr(made.composition.router),
        experts=[
            dataclasses.replace(expert.summary(), license=made.licences.get(expert.name))
            for expert in experts
        ],
        why_not_peft=made.why_not_peft,
        missed_prototype=made.missed_prototype,
        issues=audit.compatibility.issues,
        allowed=settings.allow,
        verdict=audit.verdict,
        transformations=audit.transformations,
        search=audit.search,
    )
    return dataclasses.replace(made, card=card)


def _chosen(
    weights: Sequence[float] | Literal["search"] | None,
) -> tuple[float, ...] | Literal["search"] | None:
    return weights if weights is None or isinstance(weights, str) else tuple(weights)


def _tasks(tasks: Sequence[str | Path] | str | Path, limit: int | None) -> list[Any]:
    """Task files, one or several; a single one need not stand in a list."""
    from pathlib import Path

    from loraprobe.tasks import load_task

    return [load_task(p, limit) for p in ([tasks] if isinstance(tasks, (str, Path)) else tasks)]
