"""Reads the tensors of an adapter's file by key: safetensors lazily, pickles with weights_only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe import limits
from loraprobe.checkpoint import DTYPES, broken, check_header, check_link, unpickle
from loraprobe.errors import AdapterError
from loraprobe.file_hashes import cached_hash
from loraprobe.json_types import is_unicode

SAFETENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


class TensorFile:
    """A file of tensors: shapes and dtypes are known at once, tensors are read when needed."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype | None]  # None: a type that torch does not have
    metadata: Mapping[str, str] = {}  # from the header of a safetensors file

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        raise NotImplementedError


# The pages of a mapped file that were read count as memory of this process until it is unmapped.
MAPPED_BYTES = 1 << 22


class SafetensorsFile(TensorFile):
    """A memory-mapped safetensors file; tensors are read when needed.

    The file is mapped again after every `MAPPED_BYTES` read, so that a pass over the file keeps
    only a few pages in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: tuple[int, ...] = ()
        slices = self._open()
        check_count(path, len(slices))
        self.shapes = {key: tuple(s.get_shape()) for key, s in slices.items()}
        self.dtypes = {key: DTYPES.get(s.get_dtype()) for key, s in slices.items()}

    def read(self, key: str) -> Tensor:
        """One tensor. Raises AdapterError if the file has changed since it was opened."""
        if self._mapped > MAPPED_BYTES:
            self._open()
        tensor = self._file.get_tensor(key)
        self._mapped += tensor.nbytes
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_file, (self.path, cached_hash(self.path))

    def _open(self) -> dict[str, Any]:
        """Maps the file and returns a handle for each key."""
        from safetensors import SafetensorError, safe_open

        before = self._state
        try:
            self._state = _state(self.path)
            if before and self._state != before:
                raise AdapterError(f"{self.path} changed while it was being read; run again.")
            self._file = safe_open(str(self.path), framework="pt")
            self._mapped = 0
            if before:
                return {}
            check_header(self.path)
            self.metadata = self._file.metadata() or {}
            return {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise broken(self.path, str(self.path.parent), error, AdapterError) from None


def _same_file(path: Path, sha256: str) -> SafetensorsFile:
    """The file of another process, opened here. Raises AdapterError where it is not the same."""
    if not path.is_file() or cached_hash(path) != sha256:
        raise AdapterError(
            f"{path} is another file on a machine of the cluster, or missing there; give paths "
            "that every machine shares, or references with a commit."
        )
    return SafetensorsFile(path)


class ShardedFile(TensorFile):
    """Several safetensors files that together hold an adapter, as large models are saved.

    peft does not load them. Raises AdapterError if one is missing or holds a tensor of another.
    """

    def __init__(self, directory: Path, shards: Sequence[Path]) -> None:
        self.path = directory / SAFETENSORS  # which there is none of
        wanted = shards[0].stem.rpartition("-of-")[2]
        if f"{len(shards):05}" != wanted:
            raise AdapterError(
                f"{directory} holds {len(shards)} files of weights that end in -of-{wanted}; "
                "download it again."
            )
        self.files: dict[str, SafetensorsFile] = {}
        self.shapes, self.dtypes = {}, {}
        for shard in shards:
            check_link(shard, str(directory), AdapterError)
            file = SafetensorsFile(shard)
            if twice := sorted(file.shapes.keys() & self.shapes.keys()):
                raise AdapterError(
                    f"{directory} has {twice[0]} in two of its shards; save it again."
                )
            self.files |= dict.fromkeys(file.shapes, file)
            self.shapes |= file.shapes
            self.dtypes |= file.dtypes
        check_count(directory, len(self.shapes))

    def read(self, key: str) -> Tensor:
        return self.files[key].read(key)


class PickleFile(TensorFile):
    """A pickled adapter_model.bin, read onto the CPU without running any code in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            state = unpickle(path)
        except Exception as error:  # torch.load raises many types, pickle errors among them
            raise broken(path, str(path.parent), error, AdapterError) from None
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and is_unicode(key) and isinstance(value, Tensor)
            for key, value in state.items()
        ):
            raise AdapterError(
                f"{path} holds no plain state dict of tensors; save it again as {SAFETENSORS}."
            )
        check_count(path, len(state))
        for key, tensor in state.items():  # strides of zero repeat what is stored
            size = tensor.numel() * tensor.element_size()
            if size > max(tensor.untyped_storage().nbytes(), 1):
                raise AdapterError(
                    f"{path} declares {key} as {list(tensor.shape)}, more numbers than it holds; "
                    f"save the trained factors themselves, as {SAFETENSORS}."
                )
        self._state: dict[str, Tensor] = state
        self.shapes = {key: tuple(t.shape) for key, t in state.items()}
        self.dtypes = {key: t.dtype for key, t in state.items()}

    def read(self, key: str) -> Tensor:
        return self._state[key]


def _state(path: Path) -> tuple[int, ...]:
    """Device, inode, size and time of a file, which change when it is written or replaced."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_count(path: Path, tensors: int) -> None:
    """Raises AdapterError if the file holds more tensors than the limit."""
    if tensors > limits.TENSORS:
        raise AdapterError(
            f"{path} holds {tensors:,} tensors, beyond the {limits.TENSORS:,} that are read; no "
            "known adapter has so many."
        )


def disagreement(directory: Path) -> str | None:
    """The difference between the safetensors file and the pickle of a directory; None if equal.

    peft and loraprobe read the safetensors file, but older tools read the pickle.
    """
    if not ((directory / SAFETENSORS).is_file() and (directory / PICKLE).is_file()):
        return None
    ours = SafetensorsFile(directory / SAFETENSORS)
    try:
        theirs = PickleFile(directory / PICKLE)
    except AdapterError:
        return f"{PICKLE} cannot be read"
    if ours.shapes.keys() != theirs.shapes.keys():
        return f"{sorted(ours.shapes.keys() ^ theirs.shapes.keys())[0]} is in one of them only"
    for key in ours.shapes:
        one, other = ours.read(key), theirs.read(key)
        if one.shape != other.shape or not torch.equal(one.to(other.dtype), other):
            return f"{key} differs"
    return None


def open_tensors(directory: Path) -> TensorFile:
    """Opens the weights of an adapter, safetensors first. Raises AdapterError if there are none."""
    for name in (SAFETENSORS, PICKLE):
        check_link(directory / name, str(directory), AdapterError)
    if (directory / SAFETENSORS).is_file():
        return SafetensorsFile(directory / SAFETENSORS)
    if (directory / PICKLE).is_file():
        return PickleFile(directory / PICKLE)
    if shards := sorted(directory.glob("adapter_model-*-of-*.safetensors")):
        return ShardedFile(directory, shards)
    raise AdapterError(
        f"{directory} has an adapter_config.json but neither {SAFETENSORS} nor {PICKLE}; "
        "give the directory that save_pretrained wrote."
    )
