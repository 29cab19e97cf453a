"""The base model: its geometry and single weights without loading it, and loading it whole.

Geometry comes from the headers of the weight files, so a 70B model is described in milliseconds.
Module paths are those of the model in memory (and of adapters): a checkpoint that was saved
without its head, as gpt2's is, gets the prefix back that transformers gives it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe.checkpoint import (
    file_hash,
    first_line,
    hash_in_name,
    read_header,
    read_json,
    read_tensor,
)
from loraprobe.errors import BaseError, UsageError
from loraprobe.records import BaseSummary

WeightKind = Literal["linear", "conv1d", "embedding"]

# The prefixes that transformers' causal models give to the body under the head.
BODIES = ("model.", "transformer.", "gpt_neox.", "backbone.", "biogpt.", "roberta.", "bert.")
BODY_OF = {"gpt2": "transformer", "bloom": "transformer", "gpt_neox": "gpt_neox", "opt": "model"}
EMBEDDING = re.compile(
    r"(embed_tokens|embed_positions|wte|wpe|embed_in|tok_embeddings|tokens_embed|positions_embed"
    r"|(word|position|token_type)_embeddings|embedding|embeddings|shared)$"
)
CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
FLOATS = {"F64", "F32", "F16", "BF16"}
HASH_WITHOUT_ASKING = 2**30  # bytes; larger files are hashed only on demand


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
        """(out, in) as a torch Linear has it; an embedding maps vocabulary to hidden size."""
        rows, columns = self.shape
        return (rows, columns) if self.kind == "linear" else (columns, rows)


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
        """config.json as it stands."""
        return read_json(self.path / "config.json", self.reference)

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
        for path, weight in self.weights.items():
            name = path.rpartition(".")[2]
            position = re.search(r"position|wpe|token_type", name)
            if weight.kind == "embedding" and not position and weight.dtype in FLOATS:
                return weight.shape[0]
        text = self.config.get("text_config") or {}
        return self.config.get("vocab_size", text.get("vocab_size"))

    @cached_property
    def tokenizer_size(self) -> int | None:
        """One more than the largest token id of tokenizer.json; None where there is none."""
        if not (self.path / "tokenizer.json").is_file():
            return None
        tokenizer = read_json(self.path / "tokenizer.json", self.reference)
        vocab = (tokenizer.get("model") or {}).get("vocab") or {}
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in tokenizer.get("added_tokens") or [] if "id" in token]
        return max(ids) + 1 if ids else None

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """safetensors where there are any, else pytorch_model.bin; shards in their order."""
        for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
            index = self.path / f"{stem}.{suffix}.index.json"
            if index.is_file():
                names = set(read_json(index, self.reference).get("weight_map", {}).values())
                files = tuple(self.path / name for name in sorted(names))
                lost = [file.name for file in files if not file.is_file()]
                if lost or not files:
                    raise BaseError(f"{self.reference} lacks the weight file "
                                    f"{', '.join(lost) or 'list'} that {index.name} names; "
                                    f"download the model again.")  # fmt: skip
                return files
            if (self.path / f"{stem}.{suffix}").is_file():
                return (self.path / f"{stem}.{suffix}",)
        raise BaseError(f"{self.reference} holds neither model.safetensors nor pytorch_model.bin "
                        f"(nor their index); save the model with save_pretrained.")  # fmt: skip

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every two-dimensional `.weight` by the path of its module in the model in memory."""
        found: dict[str, Weight] = {}
        for file in self.weight_files:
            for key, (dtype, shape) in read_header(file, self.reference).items():
                if key.endswith(".weight") and len(shape) == 2:
                    path = key.removesuffix(".weight")
                    found[path] = Weight(file, key, shape, dtype, self._kind(path))
        body = self._missing_body(found)
        found = {
            path if path.startswith(("lm_head", "score")) else body + path: weight
            for path, weight in found.items()
        }
        return found | self._tied_head(found)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module path -> (out, in), oriented as in a torch Linear, also for Conv1D.

        An embedding is (dim, vocab): the transpose of its weight, as an adapter's delta has it.
        Weights that are stored packed (quantised) have no such shape and are left out.
        """
        return {
            path: weight.oriented
            for path, weight in self.weights.items()
            if weight.dtype in FLOATS or (weight.dtype != "U8" and min(weight.shape) > 1)
        }

    def weight(self, module_path: str) -> Tensor:
        """One weight, [out, in] as `shapes` has it, float32; nothing else is read.

        Raises BaseError for an unknown path, with the nearest one, and for a quantised weight.
        """
        if module_path not in self.weights:
            close = difflib.get_close_matches(module_path, self.weights, 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise BaseError(f"{self.reference} has no weight for module {module_path!r}{hint}")
        found = self.weights[module_path]
        if found.dtype not in FLOATS:
            raise BaseError(f"{self.reference} stores {module_path} quantised ({found.dtype}); "
                            f"give the unquantised base model instead.")  # fmt: skip
        stored = read_tensor(found.file, found.key, self.reference).to(torch.float32)
        return stored if found.kind == "linear" else stored.mT.contiguous()

    @cached_property
    def sha256(self) -> str:
        """Of the weight file; with shards, of the lines "sha256  name" in the order of names.

        A file in the Hub's cache that is named by its sha256 is taken at its name; others are
        read through, which takes seconds per gigabyte.
        """
        hashes = [(file_hash(file), file.name) for file in self.weight_files]
        if len(hashes) == 1:
            return hashes[0][0]
        lines = "".join(f"{digest}  {name}\n" for digest, name in hashes)
        return hashlib.sha256(lines.encode()).hexdigest()

    def summary(self) -> BaseSummary:
        """What the report says of the base; the hash of large local files only if known."""
        cheap = "sha256" in self.__dict__ or all(
            hash_in_name(file) or file.stat().st_size < HASH_WITHOUT_ASKING
            for file in self.weight_files
        )
        return BaseSummary(self.reference, self.commit, self.sha256 if cheap else None)

    def load(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> LoadedBase:
        """The model and its tokenizer, ready to score: eval mode, no gradients, nothing printed.

        Code of a repository runs only with trust_remote_code=True. Raises BaseError where the
        architecture is unknown, the tokenizer is missing or weights are absent from the files.
        """
        self._refuse_own_code(trust_remote_code)
        with _quiet():
            tokenizer = self._load_tokenizer(trust_remote_code)
            model = self._load_model(dtype, trust_remote_code)
        model.requires_grad_(False)
        return LoadedBase(model.to(device).eval(), tokenizer, self)

    def _kind(self, path: str) -> WeightKind:
        name = path.rpartition(".")[2]
        if self.model_type in CONV1D_MODELS and name in CONV1D_NAMES:
            return "conv1d"
        return "embedding" if EMBEDDING.search(name) else "linear"

    def _missing_body(self, found: Mapping[str, Weight]) -> str:
        """The prefix that the model in memory has and this checkpoint lacks, with its dot."""
        if not found or any(path.startswith(BODIES) for path in found):
            return ""
        body = BODY_OF.get(self.model_type) or _body_of(self.config)
        return f"{body}." if body and not any(p.startswith(f"{body}.") for p in found) else ""

    def _tied_head(self, found: Mapping[str, Weight]) -> dict[str, Weight]:
        """lm_head under its own path where it shares the token embedding's matrix."""
        if "lm_head" in found or self.config.get("tie_word_embeddings") is False:
            return {}
        for path, weight in found.items():
            name = path.rpartition(".")[2]
            if name in ("embed_tokens", "wte", "word_embeddings", "tok_embeddings"):
                return {"lm_head": Weight(weight.file, weight.key, weight.shape, weight.dtype,
                                          "linear")}  # fmt: skip
        return {}

    def _refuse_own_code(self, trusted: bool) -> None:
        if trusted or not self.config.get("auto_map"):
            return
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if self.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise BaseError(f"{self.reference} needs code of its own repository to run; if you "
                            f"trust it, pass --trust-remote-code.")  # fmt: skip

    def _load_tokenizer(self, trusted: bool) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self.path), trust_remote_code=trusted, local_files_only=True
            )
        except Exception as error:
            raise BaseError(f"{self.reference} has no tokenizer that loads ({first_line(error)}); "
                            f"save the tokenizer beside the model.") from error  # fmt: skip
        if tokenizer.pad_token_id is None:  # batches need one; it is masked wherever it stands
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def _load_model(self, dtype: torch.dtype, trusted: bool) -> Any:
        from transformers import AutoModelForCausalLM

        _ = self.weight_files  # says which file is missing before transformers does
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(self.path),
                dtype=dtype,
                trust_remote_code=trusted,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise BaseError(f"{self.reference} ({self.model_type}) does not load as a causal "
                            f"language model: {first_line(error)}") from error  # fmt: skip
        model, report = loaded
        if report.get("missing_keys"):
            lost = sorted(report["missing_keys"])
            raise BaseError(f"{self.reference} lacks {len(lost)} weights of {self.architecture}, "
                            f"{lost[0]} among them, which would be random; it is not a complete "
                            f"causal language model.")  # fmt: skip
        return model


def open_base(path: str | Path, reference: str | None = None, commit: str | None = None) -> Base:
    """A base model's directory, checked to be one; no weight is read. Raises BaseError."""
    path = Path(path)
    reference = reference or str(path)
    if not path.is_dir():
        raise BaseError(f"{reference} is not a directory; --base takes a base model's directory "
                        f"or a Hub id.")  # fmt: skip
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            config = read_json(path / "adapter_config.json", reference)
            named = config.get("base_model_name_or_path") or "auto"
            raise BaseError(f"{reference} is an adapter, not a base model; pass "
                            f"--base {named}.")  # fmt: skip
        raise BaseError(f"{reference} has no config.json; --base takes a directory as "
                        f"save_pretrained writes it.")  # fmt: skip
    base = Base(reference, path, commit)
    _ = base.config
    return base


def pick_device(text: str) -> torch.device:
    """The device of `--device auto|cpu|cuda[:n]|mps`. Raises UsageError where it is absent."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise UsageError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {text!r}.")
    device = torch.device(text)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {text}: torch sees no CUDA device here; use --device cpu.")
    if (device.index or 0) >= count:
        raise UsageError(f"--device {text}: there are only {count} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Metal device here; use --device cpu.")
    return device


def pick_dtype(text: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of `--dtype auto|float32|bfloat16|float16`.

    auto is float32 on the CPU and Metal, on CUDA bfloat16 where the card has it, else float16.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if text not in named:
        raise UsageError(f"--dtype must be auto, {', '.join(named)}, not {text!r}.")
    return named[text]


def _body_of(config: Mapping[str, Any]) -> str | None:
    """base_model_prefix of the causal model that transformers has for this config."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
    return getattr(getattr(transformers, name), "base_model_prefix", None) if name else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and advice; its settings come back afterwards."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
