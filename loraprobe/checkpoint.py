"""Reads weight files from untrusted sources: headers and single tensors.

safetensors files are read by key. Pickled state dicts (`.bin`) are loaded onto the CPU with
weights_only, so that they run no code, and memory-mapped if their format allows it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraprobe import untrusted
from loraprobe.cache import cached_hash
from loraprobe.errors import BaseError, LoraprobeError
from loraprobe.formatting import listing
from loraprobe.untrusted import check_link, error_line, is_unicode, read_json, unique_keys

_PLAIN = re.compile(r"[^/\\:\0]+")  # a file name without a directory or drive

# Name of a type in safetensors -> dtype. Other types are not supported.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# The files of a model beside its weights and its config.json.
BESIDE_WEIGHTS = frozenset(
    "generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json vocab.txt merges.txt tokenizer.model spiece.model "
    "sentencepiece.bpe.model chat_template.jinja chat_template.json tekken.json "
    "preprocessor_config.json processor_config.json".split()
)
# The pages of a mapped file that were read count as memory of this process until it is unmapped.
MAPPED_BYTES = 1 << 22


def _shards_of(index: Path, reference: str, raises: type[LoraprobeError] = BaseError) -> list[str]:
    """The sorted names of the weight files in an index of shards.

    Raises `raises` for an entry that is not a plain file name, such as a path to another directory.
    """
    shards = read_json(index, reference, raises).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise raises(
            f"{index.name} of {reference} has no 'weight_map' from tensors to weight files; "
            "download it again."
        )
    for key, name in shards.items():
        if not isinstance(name, str) or name in (".", "..") or not _PLAIN.fullmatch(name):
            raise raises(
                f"{index.name} of {reference} puts the tensor {key!r} into {name!r:.200}, which is "
                "not the name of a file beside it; do not use this model."
            )
    return sorted(set(shards.values()))


def weight_names(
    has: Callable[[str], bool],
    get: Callable[[str], Path],
    reference: str,
    raises: type[LoraprobeError] = BaseError,
) -> list[str]:
    """The names of a model's weight files in one format, safetensors first, behind their index.

    has: whether a file of this name exists; get: its path. Empty if the model has no weights.
    Raises `raises` if the index names a file that does not exist.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = f"{stem}.{suffix}.index.json"
        if has(index):
            names = _shards_of(get(index), reference, raises)
            if lost := [name for name in names if not has(name)]:
                raise raises(
                    f"{reference} lacks the weight file {listing(lost[:3])} that {index} names; "
                    "download the model again, or ask its author to upload what is missing."
                )
            return [index, *names]
        if has(f"{stem}.{suffix}"):
            return [f"{stem}.{suffix}"]
    return []


class TensorFile:
    """A file of tensors: shapes and dtypes are known at once, tensors are read when needed."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype | None]  # None: a type that torch does not have
    metadata: Mapping[str, str] = {}  # from the header of a safetensors file

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        raise NotImplementedError


def open_weights(
    file: Path, reference: str, raises: type[LoraprobeError] = BaseError
) -> TensorFile:
    """Opens a weight file of `reference`: a pickle if its name ends in .bin, else safetensors.

    Raises `raises` for a file that is empty, incomplete, no weight file, or a Git LFS pointer.
    """
    check_link(file, reference, raises)
    return (PickleFile if file.suffix == ".bin" else SafetensorsFile)(file, reference, raises)


class SafetensorsFile(TensorFile):
    """A memory-mapped safetensors file; tensors are read when needed.

    The file is mapped again after every `MAPPED_BYTES` read, so that a pass over the file keeps
    only a few pages in memory.
    """

    def __init__(self, path: Path, reference: str, raises: type[LoraprobeError]) -> None:
        self.path, self.reference, self.raises = path, reference, raises
        self._state: tuple[int, ...] = ()
        slices = self._open()
        check_count(path, len(slices), raises)
        self.shapes = {key: tuple(s.get_shape()) for key, s in slices.items()}
        self.dtypes = {key: DTYPES.get(s.get_dtype()) for key, s in slices.items()}

    def read(self, key: str) -> Tensor:
        """One tensor. Raises `raises` if the file has changed since it was opened."""
        if self._mapped > MAPPED_BYTES:
            self._open()
        tensor = self._file.get_tensor(key)
        self._mapped += tensor.nbytes
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_file, (self.path, self.reference, self.raises, cached_hash(self.path))

    def _open(self) -> dict[str, Any]:
        """Maps the file and returns a handle for each key."""
        before = self._state
        try:
            self._state = _state(self.path)
            if before and self._state != before:
                raise self.raises(f"{self.path} changed while it was being read; run again.")
            self._file = safe_open(str(self.path), framework="pt")
            self._mapped = 0
            if before:
                return {}
            check_header(self.path)
            self.metadata = self._file.metadata() or {}
            return {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise broken(self.path, self.reference, error, self.raises) from None


def _same_file(
    path: Path, reference: str, raises: type[LoraprobeError], sha256: str
) -> SafetensorsFile:
    """The file of another process, opened here. Raises `raises` where it is not the same."""
    if not path.is_file() or cached_hash(path) != sha256:
        raise raises(
            f"{path} is another file on a machine of the cluster, or missing there; give paths "
            "that every machine shares, or references with a commit."
        )
    return SafetensorsFile(path, reference, raises)


class PickleFile(TensorFile):
    """A pickled state dict, read onto the CPU without running any code in it."""

    def __init__(self, path: Path, reference: str, raises: type[LoraprobeError]) -> None:
        self.path = path
        try:
            state = unpickle(path)
        except Exception as error:  # torch.load raises many types, pickle errors among them
            raise broken(path, reference, error, raises) from None
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and is_unicode(key) and isinstance(value, Tensor)
            for key, value in state.items()
        ):
            raise raises(
                f"{path} holds no plain state dict of tensors; save it again as safetensors."
            )
        check_count(path, len(state), raises)
        for key, tensor in state.items():  # strides of zero repeat what is stored
            size = tensor.numel() * tensor.element_size()
            if size > max(tensor.untyped_storage().nbytes(), 1):
                raise raises(
                    f"{path} declares {key} as {list(tensor.shape)}, more numbers than it holds; "
                    "save the trained tensors themselves, as safetensors."
                )
        self.shapes = {key: tuple(t.shape) for key, t in state.items()}
        self.dtypes = {key: t.dtype for key, t in state.items()}

    def read(self, key: str) -> Tensor:
        return unpickle(self.path)[key]


def _state(path: Path) -> tuple[int, ...]:
    """Device, inode, size and time of a file, which change when it is written or replaced."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_count(path: Path, tensors: int, raises: type[LoraprobeError]) -> None:
    """Raises `raises` if the file holds more tensors than the limit."""
    if tensors > untrusted.TENSORS:
        raise raises(
            f"{path} holds {tensors:,} tensors, beyond the {untrusted.TENSORS:,} that are read; no "
            "known adapter or model has so many."
        )


def check_header(file: Path) -> None:
    """Raises ValueError for a key that stands twice in the header of a safetensors file.

    The safetensors library takes the last of the two, and other readers may take the first.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        json.loads(stream.read(length), object_pairs_hook=unique_keys)


def unpickle(file: Path) -> dict[str, Tensor]:
    """A pickled state dict, loaded with weights_only and memory-mapped if possible.

    The last file is cached, because callers ask for one tensor after the other. Raises ValueError
    for a sparse tensor.
    """
    return _unpickle(file, file.stat().st_mtime_ns)


def check_inflation(file: Path) -> None:
    """Raises ValueError for a compressed pickle that would unpack to many times its size.

    torch does not compress its archives, so such a file is probably hostile.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed, times = file.stat().st_size, untrusted.INFLATION
    if unpacked > times * packed + (1 << 20):
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}, which torch never writes")


@functools.lru_cache(maxsize=1)
def _unpickle(file: Path, _changed: int) -> dict[str, Tensor]:
    check_inflation(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        state = torch.load(file, map_location="cpu", weights_only=True)
    for key, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise ValueError(f"its tensor {key!r:.100} is sparse")
    return state


def broken(
    file: Path, reference: str, error: BaseException, raises: type[LoraprobeError] = BaseError
) -> LoraprobeError:
    """The error for a weight file that cannot be read."""
    if _start(file, 40).startswith(b"version https://git-lfs"):
        return raises(
            f"{file.name} of {reference} is a Git LFS pointer, not the weights; run git lfs pull, "
            "or download the file."
        )
    if file.is_file() and file.stat().st_size == 0:
        return raises(f"{file.name} of {reference} is empty; download it again.")
    declared = int.from_bytes(_start(file, 8), "little")
    if "header too large" in str(error) and declared < file.stat().st_size:
        return raises(
            f"{file.name} of {reference} has a header beyond the 100 MB that safetensors reads; "
            "it names too many tensors, or too long ones."
        )
    return raises(
        f"{file.name} of {reference} is broken or incomplete ({error_line(error)}); download it "
        "again."
    )


def _start(file: Path, size: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return stream.read(size)
    return b""
