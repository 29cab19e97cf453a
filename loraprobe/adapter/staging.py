"""An output directory that appears whole or not at all, and replaces only what is our own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
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
    """Raises OutputError if the target is in the way or holds what is not an adapter's.

    Only an empty directory or one that holds the files of an adapter or of a saved composition and
    nothing else is ever replaced, so that --overwrite never takes a folder of other things with it.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputError(f"{target} is a file; give a directory.")
    if not overwrite:
        raise OutputError(f"{target} exists already; choose another name or add --overwrite.")
    composed = (target / COMPOSITION).is_file()
    foreign = _foreign_to_composition(target) if composed else _foreign(target, OWN_FILES)
    if foreign:
        raise OutputError(
            f"{target} holds more than {'a composition' if composed else 'an adapter'} "
            f"({foreign[0]}) and is not overwritten; choose another directory."
        )


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
    moved aside first, comes back if the renaming fails, and is deleted last.
    """

    def __init__(self, target: Path, overwrite: bool = False) -> None:
        self.target, self.overwrite = Path(os.path.abspath(target)), overwrite

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.staging = self._beside()
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {error.strerror}.") from None
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
        if isinstance(error, OSError):
            raise OutputError(f"{self.target} cannot be written: {error.strerror}.") from None
        if type(error).__name__ == "SafetensorError":  # what its writer makes of a full disk
            raise OutputError(f"{self.target} cannot be written: {error}.") from None

    def _publish(self) -> None:
        mask = _umask()  # mkdtemp and safetensors let nobody but the owner read
        for file in [*self.staging.rglob("*"), self.staging]:
            file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
            _to_disk(file)
        check_output(self.target, self.overwrite)
        if not self.target.exists():
            os.rename(self.staging, self.target)
        elif not _exchanged(self.staging, self.target):
            self._swap()
        _to_disk(self.target.parent)

    def _swap(self) -> None:
        """The old one aside, the new one in, where the system cannot exchange them in one step."""
        aside = self._beside()
        os.rename(self.target, aside / "old")
        try:
            os.rename(self.staging, self.target)
        except OSError:
            os.rename(aside / "old", self.target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _beside(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))


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
