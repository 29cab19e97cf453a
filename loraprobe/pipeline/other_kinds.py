"""Adapters of other PEFT types as LoRA: their change of each weight, cut to a rank.

peft loads the adapter on its base and merges it into each layer's weight; the singular value
decomposition of the change gives the factors. What rotates or scales activations, or adds tokens,
has no such change.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe import hub
from loraprobe.adapters import Adapter, Source, adapter_of
from loraprobe.adapters.config import CONFIG, WITH_DELTA
from loraprobe.adapters.reading import PICKLE, PREFIX, SAFETENSORS
from loraprobe.base import Base
from loraprobe.base.loading import load_model
from loraprobe.defaults import CUT_ENERGY
from loraprobe.errors import AdapterError, CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.pipeline.inputs import base_apart
from loraprobe.records import Measurement
from loraprobe.session import Ref, Session
from loraprobe.untrusted import read_json

NAME = "default"  # of the adapter in peft


def lora_of(
    ref: Any, session: Session, base: Base | Ref | None, keep: float
) -> tuple[Adapter, str, list[Measurement]] | None:
    """An adapter of another type as LoRA, what was done, and the energy that each module keeps.

    None for an open adapter, a LoRA, and a type without a change of weights, which reading refuses.
    keep: the least share of ||dW||_F^2 of a module. Raises UsageError without a base,
    CompatibilityError where the rank keeps less, AdapterError where peft cannot load it.
    """
    if isinstance(ref, Adapter):
        return None
    reference = hub.Reference.parse(str(ref))
    found = hub.resolve_adapter(reference)
    config = read_json(found.path / CONFIG, str(found.path), AdapterError)
    kind = str(config.get("peft_type"))
    if kind not in WITH_DELTA:
        return None
    named = config.get("base_model_name_or_path")
    if base == "auto":
        base = named
    opened = base_apart([], session, base)
    if opened is None:
        raise UsageError(
            f"{found.reference} is of PEFT type {kind}, whose change of a weight needs the base; "
            f"add --base={named or 'BASE'}."
        )
    rank = session.options.rank
    modules: dict[str, LowRank] = {}
    kept: dict[str, float] = {}
    with session.stage("convert"):
        for path, delta in _deltas(opened, found.path, config):
            modules[path], kept[path] = _cut(path, delta, rank, keep)
    source = Source(found.reference, found.path, found.commit)
    adapter = adapter_of(reference.short, modules, base_model=named, source=source)
    worst = min(kept, key=lambda path: kept[path])
    told = (
        f"{kind} became LoRA: {kept[worst]:.4%} of the energy of its change is kept in {worst}, "
        "and no module keeps less."
    )
    rows = [
        Measurement("kept_energy", (adapter.name,), share, path, rank=modules[path].rank)
        for path, share in kept.items()
    ]
    return adapter, told, rows


def _deltas(base: Base, place: Path, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each module's change of its weight, [out, in] in float32, by its path in the base."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    for key in ("modules_to_save", "trainable_token_indices", "bias"):
        if config.get(key) not in (None, "none", [], {}):
            raise UnsupportedAdapter(
                f"{place / CONFIG} sets {key}: a LoRA made of its other modules would lose that; "
                "merge it into its base with peft."
            )
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(load_model(base), str(place), adapter_name=NAME)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise AdapterError(
                f"peft cannot load {place} on {base.reference} ({why}); check --base."
            ) from None
    if lost := [w for w in told if "missing adapter keys" in str(w.message)]:
        raise AdapterError(
            f"{place} does not fit {base.reference} ({str(lost[0].message)[:200]}); check --base."
        )
    _check_keys(model, place)
    layers: Iterable[tuple[str, Any]] = model.named_modules()
    for name, layer in layers:
        if not isinstance(layer, BaseTunerLayer):
            continue
        inner: Any = layer.get_base_layer()
        transposed = type(inner).__name__ == "Conv1D"  # GPT-2's layer with a weight [in, out]
        if not transposed and not isinstance(inner, torch.nn.Linear):
            raise UnsupportedAdapter(
                f"{place} changes {name}, a {type(inner).__name__}, which only a linear layer's "
                "LoRA can express; merge it into its base with peft."
            )
        # Some changes depend on the weight (HiRA, MiSS), so the adapter is merged into it.
        given = inner.weight.data
        inner.weight.data = given.to(torch.float32, copy=True)
        layer.merge(adapter_names=[NAME])
        delta = inner.weight.data - given.float()
        inner.weight.data = given
        yield name.removeprefix(PREFIX), delta.T if transposed else delta


def _check_keys(model: Any, place: Path) -> None:
    """Raises AdapterError for tensors of the file that no module of the model takes."""
    from peft import get_peft_model_state_dict, load_peft_weights

    taken = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    if unused := load_peft_weights(str(place), device="cpu").keys() - taken.keys():
        raise AdapterError(
            f"{place} holds {min(unused)}, which fits no module of the base; check --base, and "
            f"that {SAFETENSORS} or {PICKLE} belongs to {CONFIG}."
        )


@torch.no_grad()
def _cut(
    path: str, delta: Float[Tensor, "out in"], rank: int | Literal["auto"], keep: float
) -> tuple[LowRank, float]:
    """The best factors of a rank, and the share of ||delta||_F^2 that they keep."""
    if not torch.isfinite(delta).all():
        raise AdapterError(f"Module {path} holds NaN or Inf; its training failed.")
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    energies = s.double().square().cumsum(0)
    total = float(energies[-1]) or 1.0
    shares = energies / total if float(energies[-1]) else torch.ones_like(energies)
    wanted = max(1 - CUT_ENERGY, keep) if rank == "auto" else keep
    enough = int((shares < wanted).sum()) + 1
    taken = min(enough if rank == "auto" else rank, len(s))
    share = float(shares[taken - 1])
    if share < keep:
        raise CompatibilityError(
            f"Rank {taken} keeps {share:.1%} of the energy of {path}, less than --keep-energy="
            f"{keep:g}; take --rank={enough}, or a lower --keep-energy."
        )
    return LowRank(vh[:taken].contiguous(), (u[:, :taken] * s[:taken]).contiguous(), 1.0), share
