"""Subtracts adapters from the others and balances their norms, before they are merged or routed.

Both steps are linear in each delta and keep it in factors, so every merge method and every router
accepts the result. Factors are read when they are used.

*General-knowledge subtraction* (GenKnowSub, arXiv 2505.10939) subtracts the mean of general
adapters, such as adapters for a language or a format, from every task adapter,

    dW_i  ->  dW_i - (1/m) sum_j dW_gk_j      exactly, rank r_i + sum_j r_gk_j

peft's Arrow instead subtracts the mean A from A and the mean B from B, which is another matrix. If
only a general adapter changes a module, the task adapter's delta is 0 there and becomes -dW_gk.

*Balance* scales each adapter so that all have the same Frobenius norm over all modules, the mean of
their norms. Otherwise an adapter with a much larger norm dominates an average (norm disparity,
arXiv 2508.01148).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from loraprobe import compatibility, hub
from loraprobe.adapters import Adapter, ModuleInfo, Modules, Tensors, layer_of
from loraprobe.base import Base
from loraprobe.compatibility.identity import Purpose
from loraprobe.errors import CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS
from loraprobe.options import Options, affecting
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import LearnedWeights, Transformation, plain
from loraprobe.results import digest
from loraprobe.session import Session


@dataclass(frozen=True)
class PreparedAdapters:
    """Adapters as they are merged and routed, and what was done to each.

    subtrahends: the adapters that were subtracted. dtype: that of a merge, the widest of the
    sources'; None where nothing was done. Factors that subtraction joins are float32, so that it
    rounds nothing, and a file need not be.
    """

    adapters: tuple[Adapter, ...]
    subtrahends: tuple[Adapter, ...] = ()
    steps: tuple[Transformation, ...] = ()
    notes: tuple[str, ...] = ()
    dtype: torch.dtype | None = None

    def content(
        self,
        spec: str,
        given: Sequence[Adapter],
        options: Options,
        learned: Any = None,
        control: str = "",
    ) -> str:
        """A digest of all that decides what a composition of these computes, or a control of it.

        spec: of its merge method or router. given: the adapters as they were given. learned: what
        was fitted for it, a record or plain data.
        """
        adapters = [(adapter.name, adapter.content) for adapter in (*given, *self.subtrahends)]
        names = {*affecting("composition")}
        if spec not in METHODS:
            from loraprobe.routing import ROUTERS  # a merge needs none of them

            constant = ROUTERS.make(spec).constant
            names -= {"space", "rank"} if constant else {"space", "rank", "weights"}
        elif not METHODS.make(spec).takes_weights:
            names, learned = names - {"weights"}, None
        decides = {name: value for name, value in options.fingerprint().items() if name in names}
        return digest([spec, control, adapters, decides, plain(learned)])


def transform_inputs(inputs: Inputs, purpose: Purpose, session: Session) -> PreparedAdapters:
    """The adapters of a run, balanced and subtracted from as its options say.

    Raises CompatibilityError where the adapters that `--subtract` names do not fit the others or
    the base, and what `transform` raises.
    """
    options = session.options
    with session.stage("transform"):
        subtrahends = subtrahends_of(inputs.adapters, options, purpose, inputs.base)
        return transform(inputs.adapters, options, subtrahends, inputs.base)


def transform_for(
    model: nn.Module,
    adapters: Sequence[Adapter],
    balance: Literal["none", "norm"],
    subtract: Sequence[Any] | Any,
) -> tuple[Adapter, ...]:
    """The adapters as `transform` makes them, on the layout of a model in memory."""
    from loraprobe.composition import aligned_to

    options = Options(balance=balance, subtract=subtract)  # type: ignore[arg-type]
    subtrahends = aligned_to(model, subtrahends_of(adapters, options, "route", None))
    return tuple(aligned_to(model, transform(adapters, options, subtrahends).adapters))


def subtrahends_of(
    adapters: Sequence[Adapter], options: Options, purpose: Purpose, base: Base | None
) -> Sequence[Adapter]:
    """The adapters that `options.subtract` names, loaded, under names of their own."""
    if not options.subtract:
        return ()
    loaded = hub.load_all([*adapters, *options.subtract])
    findings = compatibility.check(loaded, base, purpose=purpose, allow=options.allow)
    compatibility.require(findings)
    return loaded[len(adapters) :]


@torch.no_grad()
def transform(
    adapters: Sequence[Adapter],
    options: Options,
    subtrahends: Sequence[Adapter] = (),
    base: Base | None = None,
) -> PreparedAdapters:
    """The adapters as options.balance and the general adapters to subtract make them.

    base: brings all of them to its layout of fused projections, as `compatibility.aligned` does.
    Raises UnsupportedAdapter, naming the adapter, if a step is not linear in it, and UsageError
    if nothing is left of an adapter.
    """
    if options.balance == "none" and not subtrahends:
        return PreparedAdapters(tuple(adapters))
    together = compatibility.aligned([*adapters, *subtrahends], base)
    adapters, subtrahends = together[: len(adapters)], together[len(adapters) :]
    before = [adapter.norm() for adapter in adapters]
    made = [subtracted(adapter, subtrahends) for adapter in adapters] if subtrahends else adapters
    norms = [adapter.norm() for adapter in made] if subtrahends else before
    names = listing([other.name for other in subtrahends])
    for adapter, norm, old in zip(made, norms, before, strict=True):
        if old == 0:
            raise UsageError(
                f"Adapter {adapter.name} has no effect (all of its deltas are zero); leave it out."
            )
        if norm <= 1e-6 * old:
            raise UsageError(
                f"Nothing is left of adapter {adapter.name} without {names}; subtract adapters of "
                "something else."
            )
    factors = [1.0] * len(made)
    if options.balance == "norm":
        factors = [sum(norms) / len(norms) / norm for norm in norms]
        made = [
            scaled_adapter(adapter, factor) for adapter, factor in zip(made, factors, strict=True)
        ]
    steps = tuple(
        Transformation(
            adapter=after.name,
            factor=factor,
            norm_before=old,
            norm_after=norm * factor,
            subtracted=tuple(other.name for other in subtrahends),
            modules_added=len(after.modules) - len(adapter.modules),
        )
        for adapter, after, factor, old, norm in zip(
            adapters, made, factors, before, norms, strict=True
        )
    )
    sources = [adapter.dtype for adapter in (*adapters, *subtrahends)]
    widest = functools.reduce(torch.promote_types, sources)
    return PreparedAdapters(tuple(made), tuple(subtrahends), steps, _notes(steps, options), widest)


def scaled_adapter(
    adapter: Adapter, factor: float, layers: Mapping[str, float] | None = None
) -> Adapter:
    """An adapter's change times a factor. Its files, name and extras are kept.

    layers: factors of single layers, which are multiplied into it. Raises what `check_scalable`
    raises.
    """
    check_scalable(adapter)

    def of(path: str) -> float:
        return factor * layers[layer_of(path)] if layers else factor

    infos = {
        path: replace(info, scaling=info.scaling * of(path))
        for path, info in adapter.layout.items()
    }
    source = adapter.modules
    return replace(adapter, modules=Modules(infos, lambda path: source[path].scaled(of(path))))


def scaled_by_layer(
    adapters: Sequence[Adapter], layers: Mapping[str, Sequence[float]]
) -> tuple[Adapter, ...]:
    """The adapters, each times its own weight in each layer; as they are without layers.

    layers: layer -> one weight for each adapter. Raises what `check_scalable` raises.
    """
    if not layers:
        return tuple(adapters)
    weights_of = (
        {layer: weights[i] for layer, weights in layers.items()} for i in range(len(adapters))
    )
    return tuple(
        scaled_adapter(adapter, 1.0, weight_of)
        for adapter, weight_of in zip(adapters, weights_of, strict=True)
    )


def with_layers(
    prepared: PreparedAdapters, options: Options, learned: LearnedWeights | None
) -> PreparedAdapters:
    """The adapters times the weights of single layers that were learned or given, if any were."""
    layers = options.layers if learned is None else learned.layers
    return replace(prepared, adapters=scaled_by_layer(prepared.adapters, layers))


def check_scalable(adapter: Adapter) -> None:
    """Raises UnsupportedAdapter for DoRA, whose change is not linear in its factors, and for whole
    modules, biases or token rows, whose change is a difference from the base."""
    _refuse(adapter, "scaled", bool(adapter.magnitudes or adapter.whole or adapter.token_rows))


def subtracted(adapter: Adapter, subtrahends: Sequence[Adapter]) -> Adapter:
    """The adapter minus the mean of general ones, exact on the deltas, in factors of float32.

    Rank r_i + sum of the general ones' ranks in a module that all change. Whole modules, biases
    and token rows of the adapter stay as they are. Raises UnsupportedAdapter for DoRA on either
    side and for general adapters that hold more than factors, CompatibilityError for shapes that
    differ.
    """
    _refuse(adapter, "subtracted from", bool(adapter.magnitudes))
    for other in subtrahends:
        _refuse(other, "subtracted", other.has_more_than_factors)
    parts = [
        (adapter, 1.0),
        *((other, -1.0 / len(subtrahends)) for other in subtrahends),
    ]
    infos: dict[str, ModuleInfo] = {}
    for holder, _ in parts:
        for path, info in holder.layout.items():
            infos[path] = _joined(infos.get(path), info, path, (adapter.name, holder.name))

    def read(path: str) -> LowRank:
        held = [
            holder.modules[path].to(infos[path].dtype).scaled(share).folded()
            for holder, share in parts
            if path in holder.modules
        ]
        return LowRank(torch.cat([u.A for u in held]), torch.cat([u.B for u in held], 1), 1.0)

    def offset(path: str) -> torch.Tensor:
        return adapter.offsets[path].to(infos[path].dtype) * adapter.layout[path].scaling

    return replace(adapter, modules=Modules(infos, read), offsets=Tensors(adapter.offsets, offset))


def _joined(
    known: ModuleInfo | None, info: ModuleInfo, path: str, names: tuple[str, str]
) -> ModuleInfo:
    """One module's layout with the factors of another adapter added."""
    # Scalings are multiplied into B, and a third has no end in bfloat16.
    dtype = torch.promote_types(info.dtype, torch.float32)
    if known is None:
        return replace(info, scaling=1.0, dtype=dtype)
    shapes = [(i.out_features, i.in_features, i.kernel) for i in (known, info)]
    plain = {known.kind, info.kind} <= {"linear", "conv1d"}  # one flag, which peft sets by itself
    if shapes[0] != shapes[1] or (known.kind != info.kind and not plain):
        raise CompatibilityError(
            f"Module {path} is {known.kind} {list(shapes[0][:2])} in {names[0]} and {info.kind} "
            f"{list(shapes[1][:2])} in {names[1]}, so one cannot be subtracted from the other; "
            "give adapters of one base model."
        )
    return replace(
        known,
        kind="conv1d" if info.kind == "conv1d" else known.kind,
        rank=known.rank + info.rank,
        dtype=torch.promote_types(known.dtype, dtype),
    )


def _refuse(adapter: Adapter, what: str, not_linear: bool) -> None:
    if not_linear:
        held = "DoRA magnitudes" if adapter.magnitudes else "trained biases, modules or token rows"
        raise UnsupportedAdapter(
            f"Adapter {adapter.name} holds {held}, so its change is not that of its factors and "
            f"cannot be {what} without the base; leave --balance and --subtract out, or merge it "
            "into its base and extract a plain LoRA first."
        )


def _notes(steps: Sequence[Transformation], options: Options) -> tuple[str, ...]:
    """Sentences about the steps for the report."""
    notes = []
    if steps[0].subtracted:
        names = listing(list(steps[0].subtracted))
        mean = f"the mean of {names}" if len(steps[0].subtracted) > 1 else names
        notes.append(
            f"From every adapter {mean} was subtracted, on the deltas, before merging and routing."
        )
        added = [f"{step.modules_added} in {step.adapter}" for step in steps if step.modules_added]
        if added:
            notes.append(
                "Modules that only what was subtracted changes were added with its "
                f"negative: {listing(added)}."
            )
    if options.balance == "norm":
        factors = listing([f"{step.adapter} by {step.factor:.4g}" for step in steps])
        mean = f"{steps[0].norm_after:.4g}, their mean"
        notes.append(
            f"Before merging and routing all Frobenius norms were made equal ({mean}): "
            f"{factors} (--balance norm)."
        )
    return tuple(notes)
