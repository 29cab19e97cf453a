"""Writes outputs that are complete or absent, and that never replace foreign files or inputs."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from loraprobe.checkpoint import BESIDE_WEIGHTS
from loraprobe.errors import OutputError, unwritable
from loraprobe.front_matter import read_front_matter
from loraprobe.wiring import extensions

# What an output directory may hold that --overwrite replaces, as patterns of paths in it; those of
# folders end with a slash.
CARD = ["README.md", ".gitattributes"]
ADAPTER = [
    *CARD,
    *"adapter_config.json adapter_model.safetensors adapter_model.bin training_args.bin".split(),
    *(name for one in extensions() for name in one.foreign_weights),
    *"tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json".split(),
    *"vocab.json merges.txt tokenizer.model chat_template.jinja".split(),
]
COMPOSITION = [  # as routing/_saved.py writes it
    *CARD,
    *"composition.json router.safetensors router.json experts/ experts/*/ peft/".split(),
    *"peft/arrow.json peft/prototypes.safetensors".split(),
    *(f"experts/*/{name}" for name in ADAPTER),
]
MODEL = [
    *CARD,
    *"config.json model.safetensors model.safetensors.index.json *-of-*.safetensors".split(),
    *BESIDE_WEIGHTS,
]


def check_output(target: Path, overwrite: bool) -> None:
    """Raises OutputError if an output directory cannot be written or replaced.

    --overwrite replaces only a directory that is empty or holds nothing but the files of an
    adapter, of a saved composition or of a full model that loraprobe wrote. A link to a directory
    counts as that directory.
    """
    check_place(target)
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        what = "a link to nothing" if not target.exists() else "a file"
        raise OutputError(f"{target} is {what}; give a directory.")
    if not overwrite:
        raise OutputError(f"{target} exists already; choose another name or add --overwrite.")
    if os.path.ismount(target):
        raise OutputError(
            f"{target} is a mount point, which cannot be replaced; give a directory "
            f"in it, such as {target / 'adapter'}."
        )
    what, layout = "an adapter", ADAPTER
    if (target / "composition.json").is_file():
        what, layout = "a composition", COMPOSITION
    elif (target / "config.json").is_file() and _is_ours(target / "README.md"):
        what, layout = "a full model", MODEL
    for entry in sorted(target.rglob("*")):
        path = entry.relative_to(target).as_posix() + "/" * entry.is_dir()
        at_depth = (known for known in layout if known.count("/") == path.count("/"))
        if not any(fnmatch.fnmatchcase(path, known) for known in at_depth):
            raise OutputError(
                f"{target} holds more than {what} ({path}) and is not overwritten; choose another "
                "directory."
            )


def _is_ours(card: Path) -> bool:
    """Whether a card says that loraprobe wrote it."""
    try:
        return "loraprobe" in read_front_matter(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def check_place(target: Path, cure: str = "choose another place") -> None:
    """Raises OutputError if no file or directory can be created or replaced at `target`.

    Reasons are a name that is too long, a path through a file, no permission, a read-only disk.
    """
    try:
        real = Path(os.path.realpath(target))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            real.lstat()  # raises an OSError that says what is wrong with the name
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from None
    above = next((place for place in real.parents if os.path.lexists(place)), real)
    if not above.is_dir():
        raise OutputError(f"{target} cannot be written, since {above} is no directory; {cure}.")
    existing = (place for place in (above, real) if os.path.lexists(place))
    closed = [place for place in existing if not os.access(place, os.R_OK | os.W_OK)]
    if closed:
        raise OutputError(
            f"{target} cannot be written, since {closed[0]} is read-only for you; {cure}."
        )


def check_file(file: Path, is_ours: Callable[[TextIO], bool], why: str) -> None:
    """Raises OutputError for a file that cannot be written, or is there and none of loraprobe's.

    The folder of a file is not made. is_ours: tells it from the beginning of an existing file;
    `why` says what it is not.
    """
    check_place(file)
    if not file.absolute().parent.is_dir():
        raise OutputError(f"There is no folder {file.parent} for {file.name}; create it first.")
    if not os.path.lexists(file):
        return
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as stream:
            if is_ours(stream):
                return
    raise OutputError(f"{file} exists and {why}; choose another name.")


def check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raises OutputError if the output equals, contains or lies inside one of the sources.

    Paths are compared by device and inode, so that links, bind mounts and relative paths do not
    matter. A source that does not exist is ignored here.
    """
    output = Path(os.path.realpath(target))
    for source in sources:
        its = Path(os.path.realpath(source))
        inside = any(_same(place, its) for place in (output, *output.parents))
        if inside or any(_same(place, output) for place in its.parents):
            how = "is" if _same(output, its) else "lies inside" if inside else "contains"
            raise OutputError(
                f"The output {target} {how} {source}, which is read; choose another place for it."
            )


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or directory; False where one does not exist."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def staged_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory, which takes the place of the target at the end.

    It is flushed to the disk first, and the old target is deleted last. If the block or the move
    fails, the old target stays. Raises OutputError if it cannot be written.
    """
    with _staged(target) as (staging, real):
        yield staging
        for file in [*staging.rglob("*"), staging]:
            _publish(file, staging)
        check_output(real, overwrite)
        if not real.exists():
            os.rename(staging, real)
        elif not _exchanged(staging, real):
            old = staging.with_suffix(".old")
            os.rename(real, old)
            try:
                os.rename(staging, real)
            except OSError:
                os.rename(old, real)
                raise
            shutil.rmtree(old, ignore_errors=True)
        _to_disk(real.parent)


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yields the path of a temporary file and moves that file to the target at the end.

    Raises OutputError if it cannot be written.
    """
    with _staged(target) as (staging, real):
        yield staging / "file"
        _publish(staging / "file", staging)
        os.replace(staging / "file", real)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a new directory beside the target, and the target with its links resolved.

    At the end the directory is removed, as are empty parents that were created for it. Errors of
    the system become an OutputError.
    """
    real = Path(os.path.realpath(target))
    # The name is short enough for any file system.
    staging = real.with_name(f".{real.name[:32]}.{uuid.uuid4().hex[:8]}")
    missing = [place for place in real.parents if not place.exists()]
    try:
        staging.mkdir(parents=True)
        yield staging, real
    except OutputError as error:  # may name the temporary directory
        raise OutputError(str(error).replace(str(staging), str(target))) from None
    except Exception as error:
        # safetensors raises its own error for a full disk.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise unwritable(target, error) from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()


def _publish(file: Path, staging: Path) -> None:
    """Flushes a file to the disk and gives it the permissions that the umask allows.

    safetensors makes files that only their owner may read. The new directory has what the umask
    allows; the umask itself can be read only by setting it, also for other threads.
    """
    allowed = staging.stat().st_mode & 0o777
    file.chmod(allowed if file.is_dir() else allowed & 0o666)
    _to_disk(file)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two directories in one step by Linux's renameat2 with RENAME_EXCHANGE.

    Returns False if the system or the file system does not support it.
    """
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
