"""The tensors of a file that are not low-rank factors.

DoRA magnitudes, whole modules, trained biases, biases of lora_B and trained token rows are used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.lazy import Tensors, TokenRows
from loraprobe.adapters.paths import VOCABULARY
from loraprobe.adapters.tensors import TensorFile, open_tensors
from loraprobe.adapters.types import Adapter, Extra, ModuleInfo
from loraprobe.errors import AdapterError

# Extras that are read through an adapter's `magnitudes`, `whole`, `offsets` and `token_rows`.
WRITTEN = frozenset({"dora_magnitude", "modules_to_save", "bias", "lora_bias", "token_delta"})
# Kind of extra -> the config key without which peft does not load it.
FLAGS = {"dora_magnitude": "use_dora", "lora_bias": "lora_bias"}


def as_peft_reads(
    extras: Sequence[Extra], infos: Mapping[str, ModuleInfo], config: Mapping[str, Any]
) -> tuple[list[Extra], list[Extra]]:
    """The extras that peft would load, and those that it leaves out.

    peft saves copies of the base's embeddings and heads. A copy of another base weight gets the
    kind base_weight, because peft would overwrite the base's weight with it. Rows of tokens that
    the config does not tell, or of an embedding that also has factors, get the kind unclear_tokens.
    """
    kept, unused = [], []
    for extra in extras:
        flag = FLAGS.get(extra.kind)
        if flag and not (config.get(flag) and extra.module in infos):
            unused.append(extra)
        elif extra.kind == "base_copy" and not _is_vocabulary(extra.module or "", infos):
            kept.append(replace(extra, kind="base_weight"))
        elif extra.kind == "token_delta" and not _tokens_are_clear(extra, infos, config):
            kept.append(replace(extra, kind="unclear_tokens"))
        else:
            kept.append(extra)
    return kept, unused


def _is_vocabulary(module: str, infos: Mapping[str, ModuleInfo]) -> bool:
    """Whether a module is an embedding or a head, whose weight peft saves with its factors."""
    info = infos.get(module)
    embedding = info is not None and info.kind == "embedding"
    return embedding or module.rpartition(".")[2] in VOCABULARY


def _tokens_are_clear(
    extra: Extra, infos: Mapping[str, ModuleInfo], config: Mapping[str, Any]
) -> bool:
    """Whether trained rows have one token each; peft runs them beside no factors of the module."""
    tokens = tokens_of(config, extra.module or "")
    fits = tokens is not None and len(extra.shape) == 2 and extra.shape[0] == len(tokens)
    floating = extra.dtype.startswith(("float", "bfloat"))
    return fits and floating and 0 not in extra.shape and extra.module not in infos


def tokens_of(config: Mapping[str, Any], path: str) -> tuple[int, ...] | None:
    """The ids whose rows of a module the config says to be trained; None if it is not clear.

    A list is that of the input embedding; otherwise a name selects the modules that end with it.
    """
    given = config.get("trainable_token_indices")
    if isinstance(given, Mapping):
        found = [ids for name, ids in given.items() if path.endswith(str(name))]
        given = found[0] if len(found) == 1 else None
    if not isinstance(given, (list, tuple)) or not given:
        return None
    sound = all(type(token) is int and token >= 0 for token in given)
    return tuple(given) if sound and len(set(given)) == len(given) else None


def copied_weight(adapter: Adapter, extra: Extra) -> Tensor:
    """The base weight that peft saved with an adapter (kind base_copy), as it is stored.

    Raises AdapterError where it cannot be read, as for an adapter without a file.
    """
    if adapter.weights_file is None:
        raise AdapterError(f"Adapter {adapter.name} has no file that holds {extra.key}.")
    return open_tensors(adapter.weights_file.parent).read(extra.key)


def same_weight(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same weight, up to the rounding of the coarser dtype."""
    coarse = min(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    return one.shape == other.shape and bool(
        torch.equal(one.to(coarse), other.to(one.device, coarse))
    )


def extra_tensors(
    file: TensorFile, extras: Sequence[Extra], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of `Adapter` for what is no factor; tensors are read when needed."""
    magnitudes, whole, offsets, token_rows = {}, {}, {}, {}
    for extra in extras:
        if extra.module is None:
            continue
        if extra.kind == "dora_magnitude":
            magnitudes[extra.module] = extra.key
        elif extra.kind == "lora_bias":
            offsets[extra.module] = extra.key
        elif extra.kind in ("modules_to_save", "bias"):
            whole[f"{extra.module}.{extra.key.rpartition('.')[2]}"] = extra.key
        elif extra.kind == "token_delta":
            tokens = tokens_of(config, extra.module) or ()
            token_rows[extra.module] = TokenRows(tokens, functools.partial(file.read, extra.key))
    return {
        "magnitudes": _read(file, magnitudes, flat=True),
        "whole": _read(file, whole),
        "offsets": _read(file, offsets, flat=True),
        "token_rows": token_rows,
    }


def _read(file: TensorFile, keys: Mapping[str, str], flat: bool = False) -> Tensors:
    """Reads tensors by name. flat: reshape to [out]; peft stores some with dimensions of size 1."""

    def read(name: str) -> Tensor:
        tensor = file.read(keys[name])
        return tensor.reshape(-1) if flat else tensor

    return Tensors(keys, read)


def keys_of_extras(adapter: Adapter) -> Iterator[tuple[str, str, str, Tensor]]:
    """(kind of extra, key without prefix, module, tensor) of all tensors but factors."""
    for path, magnitude in adapter.magnitudes.items():
        yield "dora_magnitude", f"{path}.lora_magnitude_vector", path, magnitude
    for name, tensor in adapter.whole.items():
        module, _, what = name.rpartition(".")
        alone = what == "bias" and f"{module}.weight" not in adapter.whole
        # peft stores the bias of an adapted layer under its `base_layer`.
        key = f"{module}.base_layer.{what}" if module in adapter.layout else name
        yield "bias" if alone else "modules_to_save", key, module, tensor
    for path, bias in adapter.offsets.items():
        yield "lora_bias", f"{path}.lora_B.bias", path, bias
    for path, rows in adapter.token_rows.items():
        yield "token_delta", f"{path}.token_adapter.trainable_tokens_delta", path, rows.values


def extras_of(adapter: Adapter) -> tuple[Extra, ...]:
    """The tensors of an adapter in memory that are not factors, as a file of it lists them."""
    return tuple(
        Extra(kind, PREFIX + key, path, tuple(held.shape), str(held.dtype).partition(".")[2])
        for kind, key, path, held in keys_of_extras(adapter)
    )
