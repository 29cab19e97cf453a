"""Maps the tensors of a checkpoint to the module paths of the loaded model, from headers alone.

Most checkpoints use the names of the model. A checkpoint saved without its head, such as gpt2's,
lacks the prefix of the body, which a small table gives. Others, mostly multimodal ones, are renamed
while loading; transformers gives their names, with a model on the meta device (without weights).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loraprobe.base.quiet import quiet

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
    """The place and format of one weight. `shape` is as stored, not yet [out, in]."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # as in safetensors headers: F32, BF16, U8 ...
    kind: WeightKind

    @property
    def oriented(self) -> tuple[int, int]:
        """(out, in) as in a torch Linear.

        For an embedding this is (hidden size, vocabulary). A convolution's [out, in, *kernel] is
        flattened after its first dimension.
        """
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (rows, columns) if self.kind == "linear" else (columns, rows)

    @property
    def is_packed(self) -> bool:
        """Whether it is quantised in a format whose shape is not that of the weight."""
        return self.dtype == "U8" or (self.dtype not in FLOATS and min(self.shape) == 1)


def kind_of(config: Mapping[str, Any], path: str) -> WeightKind:
    """The kind of layer of a module, by its name and the model's type."""
    name = path.rpartition(".")[2]
    if config.get("model_type") in CONV1D_MODELS and name in CONV1D_NAMES:
        return "conv1d"
    return "embedding" if EMBEDDING.search(name) else "linear"


def names_in_memory(paths: list[str], directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Path in the files -> path in memory, for the paths that differ."""
    nested = bool(config.get("text_config"))
    if not nested and (not paths or any(path.startswith(BODIES) for path in paths)):
        return {}
    body = BODY_OF.get(str(config.get("model_type")))
    if body and not nested:
        return {path: f"{body}.{path}" for path in paths if not path.startswith(HEADS)}
    return _ask_transformers(paths, directory)


def _ask_transformers(paths: list[str], directory: Path) -> dict[str, str]:
    """The renaming that transformers does while loading; {} for an unknown model.

    It comes from internal tables of the library. If a version of transformers has other tables,
    the names stay as stored.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        model = model_without_weights(directory)
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


def model_without_weights(directory: Path) -> Any:
    """The causal language model of a config, on the meta device.

    Raises what transformers raises for an architecture that it does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def tied_head(found: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """lm_head -> the weight of the token embedding, if the model ties them."""
    if any(path.startswith(HEADS) for path in found) or config.get("tie_word_embeddings") is False:
        return {}
    for path, weight in found.items():
        if path.rpartition(".")[2] in TOKEN_EMBEDDINGS:
            return {"lm_head": replace(weight, kind="linear")}
    return {}
