"""A base model: its files, which are read when needed, and the model that is loaded from them."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe import memory
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.paths import local_name
from loraprobe.base.declared import check_sizes, check_tokenizer, check_types, tokenizer_size
from loraprobe.base.naming import (
    FLOATS,
    TOKEN_EMBEDDINGS,
    Weight,
    kind_of,
    model_without_weights,
    names_in_memory,
    tied_head,
)
from loraprobe.base.quiet import quiet, silenced
from loraprobe.checkpoint import BESIDE_WEIGHTS, open_weights, weight_names
from loraprobe.errors import BaseError, OutOfMemory, UsageError
from loraprobe.file_hashes import cached_hash, hash_in_name
from loraprobe.formatting import listing
from loraprobe.records import BaseSummary
from loraprobe.untrusted import check_link, first_line, read_json

HASH_WITHOUT_ASKING = 2**30  # bytes; a summary does not hash larger files
# The endings of files that are not read, or that `weight_files` lists.
NOT_READ = frozenset(
    ".md .rst .pdf .png .jpg .safetensors .bin .pt .pth .ckpt .h5 .msgpack .onnx .gguf".split()
)
# Memory for activations and the key-value cache, as a share of the weights. Batches shrink to fit.
OVERHEAD = 0.1
# Estimated bytes per weight if bitsandbytes quantises while loading, except embeddings and norms.
BYTES = {"8bit": 1.2, "4bit": 0.7}
# Quantised weights are loaded as stored.
PACKED = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2}

Quantize = Literal["none", "4bit", "8bit"]
DeviceMap = Literal["none", "auto"]


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model in memory (eval mode, gradients off) and its tokenizer."""

    model: Any
    tokenizer: Any
    base: Base


@dataclass(frozen=True, eq=False)
class Base:
    """A base model's directory, whose files are read when needed, and `load`.

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
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files if there are any, else pytorch_model.bin; shards in order."""
        names = weight_names(
            lambda name: (self.path / name).is_file(), self.path.joinpath, self.reference
        )
        if names:
            return tuple(self.path / name for name in names if not name.endswith(".json"))
        raise BaseError(
            f"{self.reference} holds neither model.safetensors nor pytorch_model.bin (nor their "
            "index); save the model with save_pretrained."
        )

    @cached_property
    def stored(self) -> Mapping[str, Weight]:
        """Name in the files -> Weight of every tensor, from the headers.

        Raises BaseError for a broken file and for a config that declares far more than they hold.
        """
        found: dict[str, Weight] = {}
        for file in self.weight_files:
            opened = open_weights(file, self.reference)
            for key, shape in opened.shapes.items():
                kind = kind_of(self.config, key.rpartition(".")[0])
                found[key] = Weight(opened, key, shape, opened.dtypes[key], kind)
        check_sizes(self.config, found, self.reference)
        return found

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
        found = {
            name.removesuffix(".weight"): weight
            for name, weight in self.tensors.items()
            if name.endswith(".weight") and len(weight.shape) >= 2
        }
        return found | tied_head(found, self.config)

    @cached_property
    def tied(self) -> tuple[str, str] | None:
        """The names of embedding and head in the loaded model, where both are one parameter."""
        head, model = "lm_head", self.skeleton
        table = next((p for p in self.weights if p.rpartition(".")[2] in TOKEN_EMBEDDINGS), None)
        same = f"{head}.weight" not in self.tensors and head in self.weights
        if model is not None and (own := model.get_output_embeddings()) is not None:
            embedding = model.get_input_embeddings()
            paths = {module: path for path, module in model.named_modules()}
            same, table, head = own.weight is embedding.weight, paths[embedding], paths[own]
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
        (quantised) weights are left out.
        """
        return {p: weight.oriented for p, weight in self.weights.items() if not weight.is_packed}

    def weight(self, module_path: str) -> Tensor:
        """One weight, [out, in] as in `shapes`, float32; no other tensor is read.

        Raises BaseError for an unknown path, with the nearest one, and for a quantised weight.
        """
        found = self._find(module_path, self.weights, "weight for module")
        stored = self._read(found, module_path).flatten(1)
        return stored if found.kind == "linear" else stored.mT.contiguous()

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

    def _read(self, found: Weight, name: str) -> Tensor:
        if found.dtype not in FLOATS:
            raise BaseError(
                f"{self.reference} stores {name} quantised ({found.dtype}); give the unquantised "
                "base model instead."
            )
        return found.file.read(found.key).to(torch.float32)

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

    @property
    def small_files(self) -> list[Path]:
        """The files of tokenizer, processors, chat template and generation settings, and code."""
        endings = {".py"} if self.config.get("auto_map") else set[str]()
        held = (file for file in sorted(self.path.iterdir()) if file.is_file())
        return [file for file in held if file.name in BESIDE_WEIGHTS or file.suffix in endings]

    def summary(self) -> BaseSummary:
        """The summary for reports; the hash of large local files only if it is known."""
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
        """Loads the model (eval mode, no gradients) and its tokenizer without any output.

        The repository's code runs only with trust_remote_code=True. quantize: "4bit" (NF4) or
        "8bit" (LLM.int8) by bitsandbytes while loading, computing in `dtype`. device_map: "auto"
        lets accelerate choose the devices and ignores `device`. Raises BaseError if the
        architecture is unknown, the tokenizer, weights or a package are missing; OutOfMemory if
        the model does not fit.
        """
        self._check(trust_remote_code)
        with quiet():
            tokenizer = load_tokenizer(self.path, self.reference, trust_remote_code)
            model = _load(self, device, dtype, trust_remote_code, quantize, device_map)
        return LoadedBase(model, tokenizer, self)

    def load_dequantised(self) -> Any:
        """The model of a quantised base in floating point, in the dtype of its config.

        Raises what transformers raises where it cannot dequantise.
        """
        from transformers import AutoModelForCausalLM
        from transformers.quantizers.auto import AutoQuantizationConfig

        self._check(trusted=False)
        config: Any = AutoQuantizationConfig.from_dict(dict(self.quantization or {}))
        while_loading = hasattr(config, "dequantize")
        if while_loading:
            config.dequantize = True
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self.path), dtype="auto", local_files_only=True, quantization_config=config
            )
            return model if while_loading else model.dequantize()

    def load_model(self) -> Any:
        """The model alone, in float32 on the CPU, as `load` loads it."""
        self._check(trusted=False)
        with quiet():
            return _load(self, "cpu", torch.float32, False, "none", "none")

    def _check(self, trusted: bool) -> None:
        """Raises BaseError for links out of the directory, and for code that is not trusted."""
        if not trusted and self.config.get("auto_map"):
            from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

            if self.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                raise BaseError(
                    f"{self.reference} needs code of its own repository to run; if you trust it, "
                    "pass --trust-remote-code=True."
                )
        for file in self.path.iterdir():  # transformers would follow any link
            check_link(file, self.reference)
        _ = self.stored


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


def load_tokenizer(directory: Path, reference: str, trusted: bool) -> Any:
    """The tokenizer, with a padding token. Raises BaseError if it cannot be loaded."""
    from transformers import AutoTokenizer

    check_tokenizer(directory, reference)
    try:
        with silenced():
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), trust_remote_code=trusted, local_files_only=True
            )
            tokenizer(["a"])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        raise BaseError(
            f"{reference} has no tokenizer that loads ({first_line(error)}); "
            "save the tokenizer beside the model."
        ) from error
    if tokenizer.pad_token_id is None:  # batches need one, which is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _load(
    base: Base,
    device: str | torch.device,
    dtype: torch.dtype,
    trusted: bool,
    quantize: Quantize,
    device_map: DeviceMap,
) -> Any:
    """The causal language model, on its device or devices.

    Raises BaseError if it cannot be loaded or is incomplete, OutOfMemory if it does not fit.
    """
    from transformers import AutoModelForCausalLM

    placement = _placement(base, device, dtype, quantize, device_map)
    if device_map == "none":  # accelerate may also use the disk
        _check_room(base, dtype, str(device), quantize)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(base.path),
            dtype=dtype,
            trust_remote_code=trusted,
            local_files_only=True,
            output_loading_info=True,
            **placement,
        )
        model, report = loaded
        model = model if placement else model.to(device)
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise OutOfMemory(
                f"The memory of {device} ran out while {base.reference} was loaded; use "
                "--dtype=bfloat16, --quantize=4bit, a smaller base model, or another --device."
            ) from error
        if "mismatched_sizes" in str(error):  # the message refers to a report that is not shown
            raise BaseError(
                f"config.json of {base.reference} declares other sizes than the tensors of its "
                "weight files have; download the model again."
            ) from error
        raise BaseError(
            f"{base.reference} ({base.model_type}) does not load as a causal language model "
            f"({first_line(error)}); give a complete one of an architecture that transformers "
            "knows."
        ) from error
    if report.get("missing_keys"):
        lost = sorted(report["missing_keys"])
        raise BaseError(
            f"{base.reference} lacks {len(lost)} weights of {base.architecture}, {lost[0]} among "
            "them, which would be random; it is not a complete causal language model."
        )
    return model.requires_grad_(False).eval()


def _placement(
    base: Base,
    device: str | torch.device,
    dtype: torch.dtype,
    quantize: Quantize,
    device_map: DeviceMap,
) -> dict[str, Any]:
    """Arguments of from_pretrained for placement and quantisation; {} for a plain device."""
    chosen: dict[str, Any] = {}
    if device_map == "auto":
        _need(["accelerate"], "--device-map=auto", "give --device instead")
        chosen["device_map"] = "auto"
    if quantize == "none":
        stored = bool(base.quantization) and find_spec("accelerate") is not None
        return {"device_map": {"": str(device)}} | chosen if stored else chosen
    if base.quantization:
        raise BaseError(f"{base.reference} is stored quantised already; leave --quantize out.")
    _need(["bitsandbytes", "accelerate"], f"--quantize={quantize}", "leave it out")
    from transformers import BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    chosen["quantization_config"] = (
        BitsAndBytesConfig(load_in_4bit=True, **four)
        if quantize == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"device_map": {"": str(device)}} | chosen


def _need(packages: list[str], option: str, otherwise: str) -> None:
    """Raises BaseError if a package is not installed."""
    lost = [name for name in packages if find_spec(name) is None]
    if lost:
        raise BaseError(
            f"{option} needs {listing(lost)}, which {'is' if len(lost) == 1 else 'are'}"
            f" not installed: pip install {' '.join(lost)}, or {otherwise}."
        )


def weight_bytes(base: Base, dtype: torch.dtype) -> int:
    """The bytes of all tensors of the weight files loaded in a dtype, from the headers."""
    return sum(
        math.prod(stored.shape) * (1 if stored.dtype in PACKED else dtype.itemsize)
        for stored in base.stored.values()
    )


def _check_room(base: Base, dtype: torch.dtype, device: str, quantize: Quantize) -> None:
    """Raises OutOfMemory with the needed bytes and with options that need less."""
    whole = (1 + OVERHEAD) * weight_bytes(base, dtype)
    sizes = {
        "none": whole,
        "8bit": whole * BYTES["8bit"] / dtype.itemsize,
        "4bit": whole * BYTES["4bit"] / dtype.itemsize,
    }
    less = []
    if quantize == "none" and dtype.itemsize > 2:
        less.append(f"--dtype=bfloat16 needs {memory.gib(whole * 2 / dtype.itemsize)}")
    less += [
        f"--quantize={bits} about {memory.gib(sizes[bits])}"
        for bits in ("8bit", "4bit")
        if sizes[bits] < sizes[quantize]
    ]
    kind = str(dtype).removeprefix("torch.") if quantize == "none" else quantize
    instead = ", ".join(less) or "take a smaller base"
    memory.require(int(sizes[quantize]), f"{base.reference} in {kind}", instead, device)


def pick_device(text: str) -> torch.device:
    """The device for `--device auto|cpu|cuda[:n]|mps`. Raises UsageError if it is absent."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise UsageError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {text!r}.")
    device = torch.device(text)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device={text}: torch sees no CUDA device here; use --device=cpu.")
    if (device.index or 0) >= count:
        raise UsageError(f"--device={text}: there are only {count} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device=mps: torch sees no Metal device here; use --device=cpu.")
    return device


def pick_dtype(text: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype for `--dtype auto|float32|bfloat16|float16`, or fp32, bf16, fp16 for short.

    auto is float32 on the CPU and Metal; on CUDA it is bfloat16 if the card supports it, else
    float16. Raises UsageError for other names.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = named | {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if text not in known:
        raise UsageError(f"--dtype must be auto, {', '.join(named)}, not {text!r}.")
    return known[text]
