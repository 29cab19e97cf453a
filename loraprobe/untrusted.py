"""Files and JSON documents from untrusted sources: what may be read, and what is wrong with it.

A file beyond a limit is refused by name. The safetensors library itself limits headers to 100 MB.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from loraprobe.errors import BaseError, LoraprobeError

DEEPEST = 50  # levels of lists and objects in a config
CONFIG = 10_000_000  # bytes of an adapter's or a base's config, and of an index of shards
TOKENIZER = 200_000_000  # bytes of a tokenizer.json
CARD = 5_000_000  # bytes of a model card
TENSORS = 2_000_000  # tensors in one weight file
MODULES = 500_000  # modules of one adapter
LINE = 1_000_000  # bytes of one line of a task or probe file
ITEMS = 2_000_000_000  # bytes of a task or probe file
ROWS = 500_000  # rows of a task
CHOICES = 1_000  # of one item
HOPS = 1_000  # of one item
UNPACKED = 1_000_000_000  # bytes to which a Parquet file may unpack
INFLATION = 4  # the largest factor by which unpacking may enlarge a weight file
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON escapes it
_SURROGATES = re.compile("[\ud800-\udfff]")
STRICT = ConfigDict(strict=True)  # nothing is converted, and true is no number
WORDS = {
    "missing": "it is missing",
    "unexpected_keyword_argument": "there is no such field",
    "extra_forbidden": "there is no such key",
    "model_type": "it should be an object",
}


def read_json(
    path: Path,
    reference: str,
    raises: type[LoraprobeError] = BaseError,
    largest: int | None = None,
) -> dict[str, Any]:
    """Reads a JSON object from a file of `reference`. Raises `raises` if that is impossible.

    largest: bytes that such a file may have; `CONFIG` unless given.
    """
    check_link(path, reference, raises)
    size, allowed = path.stat().st_size if path.is_file() else 0, largest or CONFIG
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
            f"{path.name} of {reference} cannot be read as JSON ({error_line(error)}); download it "
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


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`. Raises ValueError for a key that it has twice."""
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"it names {key!r:.100} twice")
        document[key] = value
    return document


def document_model(name: str, types: Mapping[Any, str]) -> type[BaseModel]:
    """A model that checks a JSON object: type of a value -> the keys that have this type.

    A key may be absent; other keys may have any value.
    """
    fields: dict[str, Any] = {key: (kind, None) for kind in types for key in types[kind].split()}
    return create_model(name, __config__=STRICT, **fields)


def first_problem(error: ValidationError) -> str:
    """The first problem of a document, behind its place as in `evaluation[0].ci95`."""
    first = error.errors(include_url=False, include_input=False)[0]
    problem = WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    steps = (f"[{step}]" if isinstance(step, int) else f".{step:.60}" for step in first["loc"])
    place = "".join(steps).lstrip(".") or "the document"
    return f"{place}: {problem.replace('Input should', 'it should')}"


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON and pickles may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def is_endless(file: Path) -> bool:
    """Whether a path is a pipe, a socket or a device, whose reading may wait or never end."""
    try:
        mode = file.stat().st_mode
    except OSError:  # which reading it tells
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def error_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def nested_values(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(dotted path of keys, value, depth) of every value in a JSON object, without recursion.

    Values deeper than DEEPEST + 1 levels are left out.
    """
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth:
            yield key, value, depth
        if depth > DEEPEST:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{k}".lstrip("."), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, depth + 1) for v in value]


@contextlib.contextmanager
def deadline(seconds: float, error: LoraprobeError) -> Iterator[None]:
    """Raises `error` inside the block when it has run for `seconds`.

    It uses the system's timer. In other threads than the main one, on Windows, or while another
    timer runs, the block has no limit.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets the block allocate `size` more bytes; more raises MemoryError.

    It uses the kernel's limit on the address space, which applies to all threads. On macOS and
    Windows the block has no limit.
    """
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            taken = int(stream.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = taken + size
    known = [bound for bound in (allowed, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
