"""Writes outputs that are complete or absent, and that never replace foreign files or inputs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from loraprobe.errors import OutputError

OWN_FILES = frozenset(
    "adapter_config.json adapter_model.safetensors adapter_model.bin README.md .gitattributes "
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja training_args.bin".split()
)

# The files of a saved composition, which also has folders of adapters (pipeline/saved.py).
COMPOSITION = "composition.json"
PEFT_FILES = frozenset({"arrow.json", "prototypes.safetensors"})
COMPOSITION_FILES = frozenset({COMPOSITION, "router.safetensors", "README.md", ".gitattributes"})


def check_output(target: Path, overwrite: bool) -> None:
    """Raises OutputError if an output directory cannot be written or replaced.

    --overwrite replaces only a directory that is empty or holds nothing but the files of an adapter
    or of a saved composition. A link to a directory counts as that directory.
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
    composed = (target / COMPOSITION).is_file()
    foreign = _foreign_to_composition(target) if composed else _foreign(target, OWN_FILES)
    if foreign:
        raise OutputError(
            f"{target} holds more than {'a composition' if composed else 'an adapter'} "
            f"({foreign[0]}) and is not overwritten; choose another directory."
        )


def check_place(target: Path, cure: str = "choose another place") -> None:
    """Raises OutputError if no file or directory can be created or replaced at `target`.

    Reasons are a name that is too long, a path through a file, no permission, a read-only disk.
    """
    try:
        real = Path(os.path.realpath(target))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            real.lstat()  # raises an OSError that says what is wrong with the name
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from None
    above = next((place for place in real.parents if os.path.lexists(place)), real)
    if not above.is_dir():
        raise OutputError(f"{target} cannot be written, since {above} is no directory; {cure}.")
    held = (place for place in (above, real) if os.path.lexists(place))
    closed = [place for place in held if not os.access(place, os.R_OK | os.W_OK)]
    if closed:
        raise OutputError(
            f"{target} cannot be written, since {closed[0]} is read-only for you; {cure}."
        )


def check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raises OutputError if the output equals, contains or lies inside one of the sources.

    Paths are compared by device and inode, so that links, bind mounts and relative paths do not
    matter. A source that does not exist is ignored here.
    """
    own, around = _places(target)
    for source in sources:
        its, above = _places(source)
        if its and (its == own or its in around or own in above):
            how = "is" if its == own else "lies inside" if its in around else "contains"
            raise OutputError(
                f"The output {target} {how} {source}, which is read; choose another place for it."
            )


def _places(path: Path) -> tuple[tuple[int, int] | None, set[tuple[int, int] | None]]:
    """Device and inode of a path (None if it does not exist) and those of all its parents."""
    real = Path(os.path.realpath(path))
    return _inode(real), {found for place in real.parents if (found := _inode(place))}


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _foreign(folder: Path, own: Collection[str]) -> list[str]:
    """The names in a folder that are not in `own`, and all directories."""
    held = sorted(entry.name for entry in folder.iterdir())
    return [n for n in held if n not in own or (folder / n).is_dir()]


def _foreign_to_composition(target: Path) -> list[str]:
    """The paths in a composition's directory that are not part of a composition."""
    found = []
    for name in _foreign(target, COMPOSITION_FILES):
        folder = target / name
        if name == "experts" and folder.is_dir():
            for expert in sorted(folder.iterdir()):
                inside = _foreign(expert, OWN_FILES) if expert.is_dir() else [""]
                found += [f"experts/{expert.name}/{n}".rstrip("/") for n in inside]
        elif name == "peft" and folder.is_dir():
            found += [f"peft/{n}" for n in _foreign(folder, PEFT_FILES)]
        else:
            found.append(name)
    return found


class StagedDirectory:
    """A context manager that yields a temporary directory and moves it to the target at the end.

    The temporary directory has the same parent as the target. It is flushed to the disk and
    exchanged with the old target, which is deleted last. If the block or the move fails, the old
    target stays. A target that is a link counts as the directory that it points to.
    """

    def __init__(self, target: Path, overwrite: bool = False) -> None:
        self.named, self.overwrite = target, overwrite
        self.target = Path(os.path.realpath(target))
        self.missing = [place for place in self.target.parents if not place.exists()]

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.staging = self._temporary()
        except OSError as error:
            raise _unwritable(self.named, error) from None
        return self.staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            if error is None:
                self._publish()
        except OSError as failure:
            error = failure
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)
            _remove_empty(self.missing)
        # safetensors raises its own error for a full disk.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise _unwritable(self.named, error) from None
        if isinstance(error, OutputError):  # may name the temporary directory
            message = str(error).replace(str(self.staging), str(self.named))
            raise OutputError(message) from None

    def _publish(self) -> None:
        for file in [*self.staging.rglob("*"), self.staging]:
            _publishable(file)
        check_output(self.target, self.overwrite)
        if not self.target.exists():
            os.rename(self.staging, self.target)
        elif not _exchanged(self.staging, self.target):
            self._swap()
        _to_disk(self.target.parent)

    def _swap(self) -> None:
        """Moves the old target away and the new one in, if the system cannot exchange them."""
        aside = self._temporary()
        try:
            os.rename(self.target, aside / "old")
            try:
                os.rename(self.staging, self.target)
            except OSError:
                os.rename(aside / "old", self.target)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _temporary(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=_prefix(self.target), dir=self.target.parent))


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yields the path of a temporary file and moves that file to the target at the end.

    Raises OutputError if it cannot be written.
    """
    real, staging = Path(os.path.realpath(target)), None
    missing = [place for place in real.parents if not place.exists()]
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(real), dir=real.parent)
        os.close(handle)
        staging = Path(name)
        yield staging
        _publishable(staging)
        os.replace(staging, real)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)
        _remove_empty(missing)


def _remove_empty(places: Iterable[Path]) -> None:
    """Removes the empty directories that were created for an output that failed."""
    with contextlib.suppress(OSError):
        for place in places:
            place.rmdir()


def _prefix(target: Path) -> str:
    """The start of a temporary name for the target; short enough for any file system."""
    return f".{target.name[:32]}."


def _unwritable(target: Path, error: BaseException | None) -> OutputError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    # safetensors says "Error while serializing: I/O error: No space left (os error 28)"
    why = re.sub(r"^.*I/O error: |\s*\(os error \d+\)", "", why or "no reason was given")
    return OutputError(f"{target} cannot be written: {why}; choose another place.")


def _publishable(file: Path) -> None:
    """Flushes a file to the disk and gives it the permissions that the umask allows.

    Files of mkdtemp and safetensors are readable by their owner only.
    """
    file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
