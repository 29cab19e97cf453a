"""A composition: experts and a router, and how they are put into a model and taken out again."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.adapters.fused import may_be_fused
from loraprobe.composition.experts.full import replaced
from loraprobe.composition.experts.parameters import added_to_parameters, checked_places
from loraprobe.composition.forward_pass import following_passes
from loraprobe.composition.layers import (
    ComposedLayer,
    GateObserver,
    composed_layer,
    input_of,
    layer_hook,
)
from loraprobe.composition.router import Router
from loraprobe.composition.targets import aligned_to, check_model, checked_targets
from loraprobe.composition.weights import device_of, fingerprint
from loraprobe.errors import UsageError
from loraprobe.formatting import shortly
from loraprobe.lora.lowrank import LowRank

PREPARED_BYTES = 1 << 30  # of concatenated factors that are kept for the next use of a composition

_ACTIVE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Composition:
    """Experts and the router that gives them gates. No experts: the base model as it is."""

    name: str
    experts: tuple[Adapter, ...]
    router: Router

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))
        self.router.check(len(self.experts))

    def __repr__(self) -> str:
        experts = shortly(expert.name for expert in self.experts) or "no adapter"
        return f"<Composition {shortly([self.name])}: {self.router.name} of {experts}>"

    def into(self, model: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
        """The same as composed(model, self)."""
        return composed(model, self)

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that at least one expert adapts, in the experts' order."""
        return tuple(dict.fromkeys(path for expert in self.experts for path in expert.modules))

    def notes(self) -> tuple[str, ...]:
        """Notes for a report on gates that differ from the router's formula."""
        if self.router.constant or not self.experts:
            return ()
        notes = []
        partial = [p for p in self.paths if any(p not in e.modules for e in self.experts)]
        if partial:
            notes.append(
                f"{self.name}: {len(partial)} of {len(self.paths)} modules (such as "
                f"{partial[0]}) are adapted by some experts only; there the gates are "
                "shared among those."
            )
        kinds = {path: info.kind for e in self.experts for path, info in e.layout.items()}
        for kind, noun in (("embedding", "embeddings"), ("convolution", "convolutions")):
            paths = [path for path in self.paths if kinds[path] == kind]
            if paths:
                notes.append(
                    f"{self.name}: {noun} ({', '.join(paths)}) have no input to route by "
                    "and get equal constant gates."
                )
        return tuple(notes)


@contextlib.contextmanager
def composed(
    model: nn.Module, composition: Composition, observe: GateObserver | None = None
) -> Iterator[nn.Module]:
    """Puts a composition into a transformers model for as long as the context lasts.

    Forward hooks on the target modules add the experts' output. Weights, dtypes, modes and
    attributes of the model do not change, and the hooks are removed when the context ends, also
    after an exception. Parameters that an expert replaces as a whole are exchanged for that time;
    afterwards the model has its original tensors again. Experts in another layout of fused
    projections are converted exactly. observe(path, present, gates) is called with the gates of a
    token router in each module.

    Raises UsageError if the model already carries a composition; CompatibilityError, which names
    the module, if a target is missing, is of an unsupported kind, has another shape, or is already
    wrapped by peft; UnsupportedAdapter if an expert has tensors that no kind of expert supports, or
    if a base weight that it needs cannot be read.
    """
    if model in _ACTIVE:
        raise UsageError(
            "The model already carries a composition; leave it before entering another, or put "
            "all adapters into one composition."
        )
    check_model(model)
    composition = on_layout_of(model, composition)
    targets = checked_targets(model, composition.experts)
    parameters = checked_places(model, composition.experts, composition.router)
    dtype = _dtype([*targets.values(), *(place.module for place in parameters.values())])
    layers = prepared(composition, dtype, model)
    with contextlib.ExitStack() as undo:
        _ACTIVE.add(model)
        undo.callback(_ACTIVE.discard, model)
        experts = {p.path: LowRank(p.A, p.B) for p in layers if p.kind == "expert"}
        undo.enter_context(added_to_parameters(parameters, experts))
        others = [layer for layer in layers if layer.kind != "expert"]
        _enter(model, composition, others, targets, observe, undo)
        yield model


def _enter(
    model: nn.Module,
    composition: Composition,
    layers: Iterable[ComposedLayer],
    targets: dict[str, nn.Module],
    observe: GateObserver | None,
    undo: contextlib.ExitStack,
) -> None:
    """Adds the layers' hooks and replaces whole parameters until `undo` closes."""
    for layer in layers:
        module = targets[layer.path]
        here = replace(layer.to(device_of(module)), observe=observe)
        hook = layer_hook(here, module)
        undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
    if any(getattr(layer.gates, "shared", False) for layer in layers):
        undo.enter_context(following_passes(model))
    # Last, because scaled experts need a layer's own output without other changes.
    scaled = frozenset(layer.path for layer in layers if layer.ratio is not None)
    undo.enter_context(replaced(model, composition.experts, composition.router, scaled))


InputObserver = Callable[[str, Tensor, Tensor], None]


@contextlib.contextmanager
def watched(
    model: nn.Module, experts: Sequence[Adapter], observe: InputObserver
) -> Iterator[nn.Module]:
    """Calls observe(path, input, output) after each run of a module that some expert adapts.

    input: [..., in], or token ids [...] of an embedding; output: [..., out]. The model itself stays
    unchanged. Raises the errors of `composed` if an expert does not fit.
    """

    def see(path: str, _: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
        observe(path, input_of(args, kwargs), output)

    check_model(model)
    with contextlib.ExitStack() as undo:
        for path, module in checked_targets(model, experts).items():
            hook = module.register_forward_hook(functools.partial(see, path), with_kwargs=True)
            undo.callback(hook.remove)
        yield model


def _dtype(modules: Iterable[nn.Module]) -> torch.dtype:
    """float64 for a float64 model, else float32, to which peft also converts 16-bit factors."""
    weights = (weight for module in modules for weight in module.parameters(recurse=False))
    doubles = any(weight.dtype is torch.float64 for weight in weights)
    return torch.float64 if doubles else torch.float32


_Known = weakref.WeakKeyDictionary[Composition, Composition]
_ALIGNED: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def on_layout_of(model: nn.Module, composition: Composition) -> Composition:
    """The composition; its experts are converted if the model lacks some of their layers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if all(path in modules for path in composition.paths if may_be_fused(path)):
        return composition
    known = _ALIGNED.setdefault(model, weakref.WeakKeyDictionary())
    if composition not in known:  # kept, so that its layers are prepared only once
        experts = tuple(aligned_to(model, composition.experts))
        known[composition] = replace(composition, experts=experts)
    return known[composition]


_Prepared = dict[torch.dtype, tuple[Any, tuple[ComposedLayer, ...]]]
_PREPARED: weakref.WeakKeyDictionary[Composition, _Prepared] = weakref.WeakKeyDictionary()


def prepared(
    composition: Composition, dtype: torch.dtype, model: nn.Module | None = None
) -> tuple[ComposedLayer, ...]:
    """The layers of a composition. They are cached, at most PREPARED_BYTES for all compositions.

    model: the base, whose weights scaled experts need; other layers do not depend on it.
    """
    known = _PREPARED.setdefault(composition, {})
    mark = _weights_that_count(composition, model)
    if dtype not in known or known[dtype][0] != mark:
        known.pop(dtype, None)  # it belongs to another model or to changed weights
        with torch.inference_mode(False), torch.no_grad():
            made = (
                composed_layer(composition.experts, composition.router, path, dtype, model)
                for path in composition.paths
            )
            known[dtype] = mark, tuple(layer for layer in made if layer is not None)
        _forget_oldest(keep=composition)
    return known[dtype][1]


def _weights_that_count(composition: Composition, model: nn.Module | None) -> Any:
    """Fingerprints of the base weights on which layers depend; None if there are none."""
    scaled = [p for p in composition.paths if any(p in e.magnitudes for e in composition.experts)]
    if not scaled or model is None:
        return None
    marks = tuple(fingerprint(model.get_submodule(path)) for path in scaled)
    return weakref.ref(model), marks


def _forget_oldest(keep: Composition) -> None:
    sizes = {
        composition: sum(layer.nbytes for _, layers in known.values() for layer in layers)
        for composition, known in list(_PREPARED.items())
    }
    total = sum(sizes.values())
    for composition, size in sizes.items():
        if total <= PREPARED_BYTES:
            return
        if composition != keep:
            del _PREPARED[composition]
            total -= size
