"""A base model's directory: what it is, single weights of it, and the model itself."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe.adapters.paths import local_name
from loraprobe.base.declared import check_sizes, check_types
from loraprobe.base.geometry import (
    FLOATS,
    Weight,
    stored_tensors,
    tensors_in_memory,
    vocabulary,
    weights_in_memory,
)
from loraprobe.base.quiet import quiet
from loraprobe.base.tokenizer import load_tokenizer, tokenizer_size
from loraprobe.checkpoint import (
    check_link,
    hash_in_name,
    kept_hash,
    read_json,
    read_tensor,
    shards_of,
)
from loraprobe.errors import BaseError
from loraprobe.formatting import listing
from loraprobe.records import BaseSummary

Quantize = Literal["none", "4bit", "8bit"]
DeviceMap = Literal["none", "auto"]

HASH_WITHOUT_ASKING = 2**30  # bytes; larger files are hashed only on demand
# Endings of files beside a model that nothing here reads, or that `weight_files` names.
NOT_READ = frozenset(
    ".md .rst .pdf .png .jpg .safetensors .bin .pt .pth .ckpt .h5 .msgpack .onnx .gguf".split()
)


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model in memory: in eval mode, gradients off, beside its tokenizer."""

    model: Any
    tokenizer: Any
    base: Base


@dataclass(frozen=True, eq=False)
class Base:
    """A base model's directory. Everything but the paths is read when asked for.

    Raises BaseError, in one sentence, where the directory cannot give what is asked.
    """

    reference: str
    path: Path
    commit: str | None = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json as it stands; the types of what is read here are checked."""
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
        """Rows of the token embedding; what the config says where no embedding is found."""
        text = self.config.get("text_config") or {}
        said = self.config.get("vocab_size", text.get("vocab_size"))
        return vocabulary(self.weights) or said

    @cached_property
    def tokenizer_size(self) -> int | None:
        """One more than the largest token id of tokenizer.json; None where there is none."""
        return tokenizer_size(self.path, self.reference)

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """safetensors where there are any, else pytorch_model.bin; shards in their order."""
        for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
            index = self.path / f"{stem}.{suffix}.index.json"
            if index.is_file():
                files = tuple(self.path / name for name in shards_of(index, self.reference))
                lost = [file.name for file in files if not file.is_file()]
                if lost:
                    raise BaseError(
                        f"{self.reference} lacks the weight file {listing(lost[:3])} that "
                        f"{index.name} names; download the model again."
                    )
                return files
            if (self.path / f"{stem}.{suffix}").is_file():
                return (self.path / f"{stem}.{suffix}",)
        raise BaseError(
            f"{self.reference} holds neither model.safetensors nor pytorch_model.bin "
            f"(nor their index); save the model with save_pretrained."
        )

    @cached_property
    def stored(self) -> Mapping[str, Weight]:
        """Every tensor of the files by its name there, from headers alone.

        Raises BaseError for a broken file, and where the config declares far more than they hold.
        """
        found = stored_tensors(self.weight_files, self.config, self.reference)
        check_sizes(self.config, found, self.reference)
        return found

    @cached_property
    def tensors(self) -> Mapping[str, Weight]:
        """Every tensor of the files by its name in the model in memory (`model.norm.weight`)."""
        return tensors_in_memory(self.stored, self.path, self.config)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every `.weight` of two or more dimensions by the path of its module in memory."""
        return weights_in_memory(self.tensors, self.config)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module path -> (out, in), oriented as in a torch Linear, also for Conv1D.

        An embedding is (dim, vocab): the transpose of its weight, as an adapter's delta has it.
        Weights that are stored packed (quantised) have no such shape and are left out.
        """
        return {p: weight.oriented for p, weight in self.weights.items() if not weight.is_packed}

    def weight(self, module_path: str) -> Tensor:
        """One weight, [out, in] as `shapes` has it, float32; nothing else is read.

        Raises BaseError for an unknown path, with the nearest one, and for a quantised weight.
        """
        found = self._find(module_path, self.weights, "weight for module")
        stored = self._read(found, module_path).flatten(1)
        return stored if found.kind == "linear" else stored.mT.contiguous()

    def parameter(self, name: str) -> Tensor:
        """One parameter by its name in memory (`model.norm.weight`), as stored, float32.

        Raises BaseError like `weight`.
        """
        module, _, what = name.rpartition(".")
        if what == "weight" and module in self.weights:  # a tied head has no name of its own
            return self._read(self.weights[module], name)
        return self._read(self._find(name, self.tensors, "parameter"), name)

    def _find(self, name: str, among: Mapping[str, Weight], what: str) -> Weight:
        if name not in among:
            close = difflib.get_close_matches(name, among, 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise BaseError(f"{self.reference} has no {what} {name!r}{hint}")
        return among[name]

    def _read(self, found: Weight, name: str) -> Tensor:
        if found.dtype not in FLOATS:
            raise BaseError(
                f"{self.reference} stores {name} quantised ({found.dtype}); "
                f"give the unquantised base model instead."
            )
        return read_tensor(found.file, found.key, self.reference).to(torch.float32)

    @cached_property
    def sha256(self) -> str:
        """Of the weight file; with shards, of the lines "sha256  name" in the order of names.

        A file in the Hub's cache that is named by its sha256 is taken at its name; others are
        read through once, which takes seconds per gigabyte.
        """
        hashes = [(kept_hash(file), file.name) for file in self.weight_files]
        if len(hashes) == 1:
            return hashes[0][0]
        lines = "".join(f"{digest}  {name}\n" for digest, name in hashes)
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What decides how the model answers: its config, and the sha256 of its weights and of
        every other file beside them that may be read with it (tokenizer, chat template, generation
        settings, code). Weights of other formats and documentation are left out.
        """
        beside = [f for f in sorted(self.path.iterdir()) if f.suffix not in NOT_READ]
        files = {f.name: kept_hash(f) for f in beside if f.is_file() and f.name[0] != "."}
        return files | {"config.json": self.config, "weights": self.sha256}

    def summary(self) -> BaseSummary:
        """What the report says of the base; the hash of large local files only if known."""
        cheap = "sha256" in self.__dict__ or all(
            hash_in_name(file) or file.stat().st_size < HASH_WITHOUT_ASKING
            for file in self.weight_files
        )
        reference = self.reference if self.commit else local_name(self.reference)
        return BaseSummary(reference, self.commit, self.sha256 if cheap else None)

    def load(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        quantize: Quantize = "none",
        device_map: DeviceMap = "none",
    ) -> LoadedBase:
        """The model and its tokenizer, ready to score: eval mode, no gradients, nothing printed.

        Code of a repository runs only with trust_remote_code=True. quantize: "4bit" (NF4) or
        "8bit" (LLM.int8) by bitsandbytes while loading, computing in `dtype`; device_map: "auto"
        spreads the model over what accelerate finds, and `device` is not used then. Raises
        BaseError where the architecture is unknown, the tokenizer is missing, weights are absent
        from the files, or a package that is needed is not installed; OutOfMemory where it cannot
        fit.
        """
        from loraprobe.base.loading import load_model, refuse_own_code

        refuse_own_code(self, trust_remote_code)
        for file in self.path.iterdir():  # transformers follows links wherever they lead
            check_link(file, self.reference)
        _ = self.stored
        with quiet():
            tokenizer = load_tokenizer(self.path, self.reference, trust_remote_code)
            model = load_model(self, device, dtype, trust_remote_code, quantize, device_map)
        model.requires_grad_(False)
        return LoadedBase(model.eval(), tokenizer, self)


def open_base(path: str | Path, reference: str | None = None, commit: str | None = None) -> Base:
    """A base model's directory, checked to be one; no weight is read. Raises BaseError."""
    path = Path(path)
    reference = reference or str(path)
    if not path.is_dir():
        raise BaseError(
            f"{reference} is not a directory; --base takes a base model's directory or a Hub id."
        )
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            config = read_json(path / "adapter_config.json", reference)
            named = config.get("base_model_name_or_path") or "auto"
            raise BaseError(f"{reference} is an adapter, not a base model; pass --base {named}.")
        raise BaseError(
            f"{reference} has no config.json; --base takes a directory as "
            f"save_pretrained writes it."
        )
    base = Base(reference, path, commit)
    _ = base.config
    return base
