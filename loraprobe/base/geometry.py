"""A checkpoint's weights under the paths of the model in memory, from headers alone.

Most checkpoints name their tensors as the model does. One saved without its head, as gpt2's is,
lacks the prefix of the body; others are renamed while loading (multimodal ones above all). The
former are known by a small table; for the latter transformers is asked, with a model on the meta
device, which holds no weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loraprobe.base.quiet import quiet
from loraprobe.checkpoint import read_header

WeightKind = Literal["linear", "conv1d", "embedding"]

# The prefixes that transformers' causal models give to the body under the head.
BODIES = ("model.", "transformer.", "gpt_neox.", "backbone.", "biogpt.", "roberta.", "bert.")
BODY_OF = {"gpt2": "transformer", "bloom": "transformer", "gpt_neox": "gpt_neox", "opt": "model"}
HEADS = ("lm_head", "score", "embed_out")
TOKEN_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tok_embeddings",
    "tokens_embed",
    "embed_in",
)
EMBEDDING = re.compile(
    rf"({'|'.join(TOKEN_EMBEDDINGS)}|embed_positions|wpe|positions_embed"
    r"|(position|token_type)_embeddings|embedding|embeddings|shared)$"
)
CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Weight:
    """Where one weight lies and how it is stored. `shape` is as stored, not yet [out, in]."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # as in safetensors headers: F32, BF16, U8 ...
    kind: WeightKind

    @property
    def oriented(self) -> tuple[int, int]:
        """(out, in) as a torch Linear has it; an embedding maps vocabulary to hidden size, and a
        convolution's [out, in, *kernel] is flattened behind its first dimension."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (rows, columns) if self.kind == "linear" else (columns, rows)

    @property
    def is_packed(self) -> bool:
        """Whether it is stored quantised in a form that hides its shape."""
        return self.dtype == "U8" or (self.dtype not in FLOATS and min(self.shape) == 1)


def stored_tensors(
    files: Iterable[Path], config: Mapping[str, Any], reference: str
) -> dict[str, Weight]:
    """Name of a tensor in the files -> where it lies. Raises BaseError for a broken file."""
    stored: dict[str, Weight] = {}
    for file in files:
        for key, (dtype, shape) in read_header(file, reference).items():
            stored[key] = Weight(file, key, shape, dtype, _kind(config, _module(key)))
    return stored


def tensors_in_memory(
    stored: Mapping[str, Weight], directory: Path, config: Mapping[str, Any]
) -> dict[str, Weight]:
    """Name of a parameter in memory -> where it lies, for all tensors of the files."""
    matrices = [_module(key) for key, weight in stored.items() if is_matrix(key, weight)]
    rest = [_module(key) for key in stored]
    names = _names_in_memory(list(dict.fromkeys([*matrices, *rest])), directory, config)
    return {
        f"{names.get(_module(key), _module(key))}.{key.rpartition('.')[2]}": weight
        for key, weight in stored.items()
    }


def weights_in_memory(
    tensors: Mapping[str, Weight], config: Mapping[str, Any]
) -> dict[str, Weight]:
    """Module path in memory -> every `.weight` of two or more dimensions, tied head included."""
    found = {_module(name): w for name, w in tensors.items() if is_matrix(name, w)}
    return found | _tied_head(found, config)


def is_matrix(name: str, weight: Weight) -> bool:
    """Whether a tensor is the weight of a linear layer, an embedding or a convolution."""
    return name.endswith(".weight") and len(weight.shape) >= 2


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def vocabulary(weights: Mapping[str, Weight]) -> int | None:
    """Rows of the token embedding, if one is found."""
    for path, weight in weights.items():
        if path.rpartition(".")[2] in TOKEN_EMBEDDINGS and weight.dtype in FLOATS:
            return weight.shape[0]
    return None


def _kind(config: Mapping[str, Any], path: str) -> WeightKind:
    name = path.rpartition(".")[2]
    if config.get("model_type") in CONV1D_MODELS and name in CONV1D_NAMES:
        return "conv1d"
    return "embedding" if EMBEDDING.search(name) else "linear"


def _names_in_memory(
    paths: list[str], directory: Path, config: Mapping[str, Any]
) -> dict[str, str]:
    """Path in the files -> path in memory, where they differ."""
    nested = bool(config.get("text_config"))
    if not nested and (not paths or any(path.startswith(BODIES) for path in paths)):
        return {}
    body = BODY_OF.get(str(config.get("model_type")))
    if body and not nested:
        return {path: f"{body}.{path}" for path in paths if not path.startswith(HEADS)}
    return _ask_transformers(paths, directory)


def _ask_transformers(paths: list[str], directory: Path) -> dict[str, str]:
    """The renaming that transformers does while loading; none for a model it does not know.

    Which names a checkpoint's tensors get is decided by the library's own tables, which have no
    public face; where a version lays them out in another way, the names stay as stored.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        transforms = get_model_conversion_mapping(model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        state, prefix = model.state_dict(), model.base_model_prefix
        renamed = {
            path: rename_source_key(f"{path}.weight", renamings, [], prefix, state)[0]
            for path in paths
        }
    except Exception:  # an architecture or a version of transformers that is unknown here
        return {}
    return {path: name.removesuffix(".weight") for path, name in renamed.items() if name in state}


def _tied_head(found: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """lm_head under its own path where it shares the token embedding's matrix."""
    if any(path.startswith(HEADS) for path in found) or config.get("tie_word_embeddings") is False:
        return {}
    for path, weight in found.items():
        if path.rpartition(".")[2] in TOKEN_EMBEDDINGS:
            return {"lm_head": replace(weight, kind="linear")}
    return {}
