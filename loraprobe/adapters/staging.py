"""Outputs that appear whole or not at all, replace only what is our own, and never a source."""

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

# A saved composition: its own files, and folders of adapters' (see audit/saved.py).
COMPOSITION = "composition.json"
PEFT_FILES = frozenset({"arrow.json", "prototypes.safetensors"})
COMPOSITION_FILES = frozenset({COMPOSITION, "router.safetensors", "README.md", ".gitattributes"})


def check_output(target: Path, overwrite: bool) -> None:
    """Raises OutputError if the target is in the way, cannot be made, or holds what is not ours.

    Only an empty directory or one that holds the files of an adapter or of a saved composition and
    nothing else is ever replaced, so that --overwrite never takes a folder of other things with it.
    A link to a directory stands for that directory.
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
    """Raises OutputError where the system would not let a file or directory be made or replaced
    there: a name that is too long, a path through a file, no permission, a read-only disk."""
    try:
        real = Path(os.path.realpath(target))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            real.lstat()  # tells what is wrong with the name
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
    """Raises OutputError where an output is, contains or lies inside something that is read.

    Files and directories are compared by device and inode, so that links, binds, other spellings
    and relative paths make no difference. What does not exist is left to who reads it.
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
    """Device and inode of a path, None where there is nothing, and those of what it lies in."""
    real = Path(os.path.realpath(path))
    return _inode(real), {found for place in real.parents if (found := _inode(place))}


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _foreign(folder: Path, own: Collection[str]) -> list[str]:
    """What lies in a folder and is no file of these names."""
    held = sorted(entry.name for entry in folder.iterdir())
    return [n for n in held if n not in own or (folder / n).is_dir()]


def _foreign_to_composition(target: Path) -> list[str]:
    """What lies in a composition's directory and is none of its parts."""
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
    """A directory that appears at its place whole, or not at all.

    It is filled beside the target, written through to the disk and renamed; what it replaces is
    moved aside first, comes back if the renaming fails, and is deleted last. A target that is a
    link stands for the directory that it leads to.
    """

    def __init__(self, target: Path, overwrite: bool = False) -> None:
        self.named, self.overwrite = target, overwrite
        self.target = Path(os.path.realpath(target))
        self.missing = [place for place in self.target.parents if not place.exists()]

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.staging = self._beside()
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
        # A full disk is an error of its own where safetensors writes.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise _unwritable(self.named, error) from None
        if isinstance(error, OutputError):  # of a directory within this one
            told = str(error).replace(str(self.staging), str(self.named))
            raise OutputError(told) from None

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
        """The old one aside, the new one in, where the system cannot exchange them in one step."""
        aside = self._beside()
        try:
            os.rename(self.target, aside / "old")
            try:
                os.rename(self.staging, self.target)
            except OSError:
                os.rename(aside / "old", self.target)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _beside(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=_prefix(self.target), dir=self.target.parent))


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A file that appears at its place whole, or not at all: fill the one that is given.

    Raises OutputError where it cannot be written.
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
    """Removes directories that were made for an output which then did not come about."""
    with contextlib.suppress(OSError):
        for place in places:
            place.rmdir()


def _prefix(target: Path) -> str:
    """How the name of what will become the target begins; short enough for any file system."""
    return f".{target.name[:32]}."


def _unwritable(target: Path, error: BaseException | None) -> OutputError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    # As safetensors says it: "Error while serializing: I/O error: No space left (os error 28)"
    why = re.sub(r"^.*I/O error: |\s*\(os error \d+\)", "", why or "no reason was given")
    return OutputError(f"{target} cannot be written: {why}; choose another place.")


def _publishable(file: Path) -> None:
    """Written through to the disk, with the permissions that the umask leaves: mkdtemp and
    safetensors let nobody but the owner read."""
    file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
    _to_disk(file)


def _exchanged(one: Path, other: Path) -> bool:
    """Two directories change places in one step, so that there is no moment without either.

    Linux's renameat2 with RENAME_EXCHANGE; False where the system or the file system has none.
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
