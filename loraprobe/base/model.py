"""A base model's directory: config, single weights and hashes, which are read when needed."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.names import local_name
from loraprobe.base.declared import check_sizes, check_types, tokenizer_size
from loraprobe.base.naming import HEADS, model_without_weights, names_in_memory
from loraprobe.cache import cached_hash, hash_in_name
from loraprobe.checkpoint import TensorFile, open_weights, weight_names
from loraprobe.errors import BaseError
from loraprobe.records import BaseSummary
from loraprobe.untrusted import read_json

WeightKind = Literal["linear", "conv1d", "embedding"]

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
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
INDEX_ENDING = ".index.json"  # the end of the name of an index of weight files
HASH_WITHOUT_ASKING = 2**30  # bytes; a summary does not hash larger files
# The endings of files that are not read, or that `weight_files` lists.
NOT_READ = frozenset(
    ".md .rst .pdf .png .jpg .safetensors .bin .pt .pth .ckpt .h5 .msgpack .onnx .gguf".split()
)


@dataclass(frozen=True)
class Weight:
    """The place and format of one weight. `shape` is as stored, not yet [out, in]."""

    file: TensorFile
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: a type that torch does not have
    kind: WeightKind

    @property
    def oriented(self) -> tuple[int, int]:
        """(out, in) as in a torch Linear.

        For an embedding this is (hidden size, vocabulary). A convolution's [out, in, *kernel] is
        flattened after its first dimension.
        """
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        return (rows, columns) if self.kind == "linear" else (columns, rows)


def weight_kind(config: Mapping[str, Any], path: str) -> WeightKind:
    """The kind of layer of a module, by its name and the model's type."""
    name = path.rpartition(".")[2]
    if config.get("model_type") in CONV1D_MODELS and name in CONV1D_NAMES:
        return "conv1d"
    return "embedding" if EMBEDDING.search(name) else "linear"


def tied_head(weights: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """lm_head -> the weight of the token embedding, if the model ties them."""
    if (
        any(path.startswith(HEADS) for path in weights)
        or config.get("tie_word_embeddings") is False
    ):
        return {}
    for path, weight in weights.items():
        if path.rpartition(".")[2] in TOKEN_EMBEDDINGS:
            return {"lm_head": replace(weight, kind="linear")}
    return {}


@dataclass(frozen=True, eq=False)
class Base:
    """A base model's directory, whose files are read when needed.

    Every attribute raises BaseError if its files are missing or broken.
    """

    reference: str
    path: Path
    commit: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reference, self.path, self.commit)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json, with checked types."""
        config = read_json(self.path / "config.json", self.reference)
        check_types(config, self.reference)
        return config

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def architecture(self) -> str:
        """The model's class, such as LlamaForCausalLM."""
        return str((self.config.get("architectures") or [self.model_type])[0])

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The quantization_config of a base whose stored weights are quantised, else None."""
        return self.config.get("quantization_config") or None

    @cached_property
    def vocab_size(self) -> int | None:
        """The rows of the token embedding; without one, the vocab_size of the config."""
        text = self.config.get("text_config") or {}
        declared = self.config.get("vocab_size", text.get("vocab_size"))
        tables = (
            weight.shape[0]
            for path, weight in self.weights.items()
            if path.rpartition(".")[2] in TOKEN_EMBEDDINGS and weight.dtype in FLOATS
        )
        return next(tables, None) or declared

    @cached_property
    def tokenizer_size(self) -> int | None:
        """One more than the largest token id of tokenizer.json; None if there is none."""
        return tokenizer_size(self.path, self.reference)

    @cached_property
    def indexed_weights(self) -> list[str]:
        """The names of the weight files, behind that of their index if they have one."""
        names = weight_names(
            lambda name: (self.path / name).is_file(), self.path.joinpath, self.reference
        )
        if names:
            return names
        raise BaseError(
            f"{self.reference} holds neither model.safetensors nor pytorch_model.bin (nor their "
            "index); save the model with save_pretrained."
        )

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files if there are any, else pytorch_model.bin; shards in order."""
        names = self.indexed_weights
        return tuple(self.path / name for name in names[names[0].endswith(INDEX_ENDING) :])

    @cached_property
    def stored(self) -> Mapping[str, Weight]:
        """Name in the files -> Weight of every tensor, from the headers.

        Raises BaseError for a broken file and for a config that declares far more than they hold.
        """
        tensors: dict[str, Weight] = {}
        for file in self.weight_files:
            opened = open_weights(file, self.reference)
            for key, shape in opened.shapes.items():
                kind = weight_kind(self.config, key.rpartition(".")[0])
                tensors[key] = Weight(opened, key, shape, opened.dtypes[key], kind)
        check_sizes(self.config, tensors, self.reference)
        return tensors

    @cached_property
    def tensors(self) -> Mapping[str, Weight]:
        """Name in the loaded model (`model.norm.weight`) -> Weight of every tensor."""
        parts = {key: key.rpartition(".") for key in self.stored}
        paths = list(dict.fromkeys(path for path, _, _ in parts.values()))
        names = names_in_memory(paths, self.path, self.config)
        return {
            f"{names.get(path, path)}.{what}": self.stored[key]
            for key, (path, _, what) in parts.items()
        }

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Path of a module in the loaded model -> its `.weight` of two or more dimensions."""
        weights = {
            name.removesuffix(".weight"): weight
            for name, weight in self.tensors.items()
            if name.endswith(".weight") and len(weight.shape) >= 2
        }
        return weights | tied_head(weights, self.config)

    @cached_property
    def tied(self) -> tuple[str, str] | None:
        """The names of embedding and head in the loaded model, where both are one parameter."""
        head, model = "lm_head", self.skeleton
        table = next((p for p in self.weights if p.rpartition(".")[2] in TOKEN_EMBEDDINGS), None)
        same = f"{head}.weight" not in self.tensors and head in self.weights
        if model is not None and (output := model.get_output_embeddings()) is not None:
            embedding = model.get_input_embeddings()
            paths = {module: path for path, module in model.named_modules()}
            same, table, head = output.weight is embedding.weight, paths[embedding], paths[output]
        return (f"{table}.weight", f"{head}.weight") if same and table else None

    @cached_property
    def module_paths(self) -> frozenset[str]:
        """The paths of all modules that have a tensor, whatever its form, or share one."""
        return frozenset((*(name.rpartition(".")[0] for name in self.tensors), *self.weights))

    @cached_property
    def skeleton(self) -> Any:
        """The model without weights (on the meta device); None for an unknown architecture."""
        if not self.stored:  # which raises BaseError where the config declares more than they hold
            return None
        try:
            return model_without_weights(self.path)
        except Exception:  # transformers may raise anything
            return None

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module path -> (out, in), oriented as in a torch Linear, also for Conv1D.

        An embedding is (dim, vocab), the transpose of its weight, like an adapter's delta. Packed
        weights are left out: they are quantised in a format whose shape is not that of the weight.
        """
        return {
            path: weight.oriented
            for path, weight in self.weights.items()
            if weight.dtype in FLOATS or (weight.dtype != torch.uint8 and min(weight.shape) > 1)
        }

    def weight(self, module_path: str) -> Tensor:
        """One weight, [out, in] as in `shapes`, float32; no other tensor is read.

        Raises BaseError for an unknown path, with the nearest one, and for a quantised weight.
        """
        weight = self._find(module_path, self.weights, "weight for module")
        stored = self._read(weight, module_path).flatten(1)
        return stored if weight.kind == "linear" else stored.mT.contiguous()

    def parameter(self, name: str) -> Tensor:
        """One parameter by its name in the loaded model, in its stored shape, float32.

        Raises BaseError like `weight`.
        """
        module, _, what = name.rpartition(".")
        if what == "weight" and module in self.weights:  # also finds a tied head
            return self._read(self.weights[module], name)
        return self._read(self._find(name, self.tensors, "parameter"), name)

    def _find(self, name: str, among: Mapping[str, Weight], what: str) -> Weight:
        if name not in among:
            close = difflib.get_close_matches(name, among, 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise BaseError(f"{self.reference} has no {what} {name!r}{hint}")
        return among[name]

    def _read(self, weight: Weight, name: str) -> Tensor:
        if weight.dtype not in FLOATS:
            raise BaseError(
                f"{self.reference} stores {name} quantised ({weight.dtype}); give the unquantised "
                "base model instead."
            )
        return weight.file.read(weight.key).to(torch.float32)

    @cached_property
    def sha256(self) -> str:
        """The hash of the weight file; with shards, the hash of lines "sha256  name".

        The name of a file in the Hub's cache gives its hash; other files are read once, which
        takes seconds per gigabyte.
        """
        hashes = [(cached_hash(file), file.name) for file in self.weight_files]
        if len(hashes) == 1:
            return hashes[0][0]
        lines = "".join(f"{digest}  {name}\n" for digest, name in hashes)
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The config and the sha256 of every file that may change the model's answers.

        These are the weights, tokenizer, chat template, generation settings and code. Weights of
        other formats and documentation are left out.
        """
        others = [f for f in sorted(self.path.iterdir()) if f.suffix not in NOT_READ]
        files = {f.name: cached_hash(f) for f in others if f.is_file() and f.name[0] != "."}
        return files | {"config.json": self.config, "weights": self.sha256}

    def summary(self) -> BaseSummary:
        """The summary for reports; the hash of large local files only if it is known."""
        cheap = "sha256" in self.__dict__ or all(
            hash_in_name(file) or file.stat().st_size < HASH_WITHOUT_ASKING
            for file in self.weight_files
        )
        reference = self.reference if self.commit else local_name(self.reference)
        return BaseSummary(reference, self.commit, self.sha256 if cheap else None)


def open_base(path: str | Path, reference: str | None = None, commit: str | None = None) -> Base:
    """Opens a base model's directory; no weight is read. Raises BaseError if it is none."""
    path = Path(path)
    reference = reference or str(path)
    if not path.is_dir():
        raise BaseError(
            f"{reference} is not a directory; --base takes a base model's directory or a Hub id."
        )
    if not (path / "config.json").is_file():
        if (path / CONFIG).is_file():
            config = read_json(path / CONFIG, reference)
            named = config.get("base_model_name_or_path") or "auto"
            raise BaseError(f"{reference} is an adapter, not a base model; pass --base={named}.")
        raise BaseError(
            f"{reference} has no config.json; --base takes a directory as save_pretrained writes "
            "it."
        )
    base = Base(reference, path, commit)
    _ = base.config
    return base
