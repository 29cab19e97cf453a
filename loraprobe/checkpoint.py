"""Reads weight files and JSON files from untrusted sources: headers and single tensors.

safetensors files are read by key. Pickled state dicts (`.bin`) are loaded onto the CPU with
weights_only, so that they run no code, and memory-mapped if their format allows it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from loraprobe import limits
from loraprobe.errors import BaseError, LoraprobeError
from loraprobe.formatting import listing

_PLAIN = re.compile(r"[^/\\:\0]+")  # a file name without a directory or drive
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it
_SURROGATES = re.compile("[\ud800-\udfff]")

Header = dict[str, tuple[str, tuple[int, ...]]]  # key -> (dtype as safetensors has it, shape)

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
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_json(
    path: Path,
    reference: str,
    raises: type[LoraprobeError] = BaseError,
    largest: int | None = None,
) -> dict[str, Any]:
    """Reads a JSON object from a file of `reference`. Raises `raises` if that is impossible.

    largest: bytes that such a file may have; `limits.CONFIG` unless given.
    """
    check_link(path, reference, raises)
    size, allowed = path.stat().st_size if path.is_file() else 0, largest or limits.CONFIG
    if size > allowed:
        raise raises(
            f"{path.name} of {reference} has {size:,} bytes, beyond the {allowed:,} that "
            "are read of such a file; get another copy from its author."
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise raises(
            f"{path.name} of {reference} cannot be read as JSON ({first_line(error)}); download it "
            "again."
        ) from None
    if not isinstance(content, dict):
        raise raises(f"{path.name} of {reference} must hold a JSON object.")
    if _SURROGATE.search(text) and _SURROGATES.search(json.dumps(content, ensure_ascii=False)):
        raise raises(
            f"{path.name} of {reference} holds half of a surrogate pair, which is no "
            "character; download it again."
        )
    return content


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


def read_header(file: Path, reference: str) -> Header:
    """Key -> (dtype, shape) of all tensors of a base's weight file, without their data.

    Raises BaseError for a file that is empty, incomplete, not a weight file, or a Git LFS pointer.
    """
    check_link(file, reference)
    try:
        if file.suffix == ".bin":
            return {
                key: (NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape))
                for key, value in unpickle(file).items()
                if isinstance(value, Tensor)
            }
        with safe_open(file, framework="pt") as stream:
            check_header(file)
            slices = {key: stream.get_slice(key) for key in stream.keys()}  # noqa: SIM118
            return {key: (s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except Exception as error:
        raise broken(file, reference, error) from None


def read_tensor(file: Path, key: str, reference: str) -> Tensor:
    """One tensor of a base's weight file, in its own dtype, on the CPU. Raises BaseError."""
    check_link(file, reference)
    try:
        if file.suffix == ".bin":
            return unpickle(file)[key]
        with safe_open(file, framework="pt") as stream:
            return stream.get_tensor(key)
    except Exception as error:
        raise broken(file, reference, error) from None


def check_header(file: Path) -> None:
    """Raises ValueError for a key that stands twice in the header of a safetensors file.

    The safetensors library takes the last of the two, and other readers may take the first.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        json.loads(stream.read(length), object_pairs_hook=unique_keys)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`. Raises ValueError for a key that it has twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"it names {key!r:.100} twice")
        made[key] = value
    return made


def unpickle(file: Path) -> dict[str, Tensor]:
    """A pickled state dict, loaded with weights_only and memory-mapped if possible.

    The last file is cached, because callers ask for one tensor after the other. Raises ValueError
    for a sparse tensor.
    """
    return _unpickle(file, file.stat().st_mtime_ns)


def check_link(file: Path, reference: str, raises: type[LoraprobeError] = BaseError) -> None:
    """Raises `raises` if a file is a symbolic link that leads out of its repository.

    A repository is the file's directory, its git work tree, or a repository in the Hub's cache,
    whose snapshots are links to its blobs.
    """
    if not file.is_symlink():
        return
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):  # Python before 3.13 raises the latter for a circle of links
        raise raises(
            f"{file.name} of {reference} is a link that leads to no file; copy the file there."
        ) from None
    if not any(target.is_relative_to(root) for root in _repositories(file)):
        raise raises(
            f"{file.name} of {reference} is a link that leads out of it; copy the file there."
        )


def _repositories(file: Path) -> list[Path]:
    place = file.parent.resolve()
    work_trees = [above for above in (place, *place.parents) if (above / ".git").exists()]
    roots = [place, *work_trees[:1]]
    if "snapshots" in place.parts:
        index = len(place.parts) - 1 - place.parts[::-1].index("snapshots")
        roots.append(Path(*place.parts[:index]))
    return roots


def check_inflation(file: Path) -> None:
    """Raises ValueError for a compressed pickle that would unpack to many times its size.

    torch does not compress its archives, so such a file is probably hostile.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    packed, times = file.stat().st_size, limits.INFLATION
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
        f"{file.name} of {reference} is broken or incomplete ({first_line(error)}); download it "
        "again."
    )


def _start(file: Path, size: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        return stream.read(size)
    return b""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
