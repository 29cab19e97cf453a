"""Resolves data sets of the Hub to the files of one split at one commit.

The library `datasets` says which files of a repository a split has. It gets the repository's card
and empty files of the same names, no Python file: it loads nothing and cannot run a script. Then
only the files of the split are downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loraprobe import untrusted
from loraprobe.cache import keep, read_kept
from loraprobe.errors import BadReference, HubError
from loraprobe.extensions.data_sets import DATASET
from loraprobe.formatting import nearest, shortly
from loraprobe.front_matter import read_front_matter
from loraprobe.hub.client import CARD, Repository
from loraprobe.hub.reference import ON_HUB, Reference
from loraprobe.untrusted import error_line, nested_values

EXTRA = "pip install 'loraprobe[datasets]'"
LISTINGS = "listings"  # the folder of the cache with the names of a commit's files
MOST_FILES = 100_000  # of one repository
PLAIN = ("default", "main")  # names of a configuration that tell nothing


@dataclass(frozen=True)
class DatasetSplit:
    """The files of one split in the cache, and the reference that names its commit."""

    name: str
    reference: str
    commit: str
    files: tuple[Path, ...]


def resolve_dataset(text: str) -> DatasetSplit:
    """Downloads the split of `hf://datasets/owner/name[@revision][:configuration/split]`.

    Without a split it is "test", or the only one. Raises BadReference for another text, HubError
    where the Hub has no such files.
    """
    match = ON_HUB.fullmatch(text.removeprefix(DATASET))
    if not match or "/" not in match["repo"]:
        raise BadReference(
            f"{text} names no data set; write hf://datasets/owner/name, and after it @revision or "
            ":configuration/split where needed."
        )
    repo, wanted = match["repo"], match["folder"] or ""
    reference = Reference(text, None, None, repo, match["revision"], kind="dataset")
    repository = Repository(reference)

    with repository.choosing():
        card = ""
        if CARD in repository.files:
            card = repository.get(CARD).read_text("utf-8", "replace")[: untrusted.CARD]
        config, split, names = _split_files(repo, wanted, _all_files(repository), card)
        files, commit = repository.get_all(names), repository.commit
    name = PurePosixPath(repo).name
    return DatasetSplit(
        name if config in (*PLAIN, name) else f"{name}-{config}",
        f"{DATASET}{repo}@{commit}:{config}/{split}",
        commit,
        tuple(files),
    )


def _all_files(repository: Repository) -> list[str]:
    """The names of all files of a commit, which are kept for when the Hub cannot be reached."""
    name = f"{repository.reference.repo}@{repository.commit}"
    key = hashlib.sha256(name.encode()).hexdigest()
    if not repository.unreachable:
        keep(LISTINGS, key, json.dumps(repository.files).encode())
    elif (stored := read_kept(LISTINGS, key)) is not None:
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(stored)
            if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
                return listed
    return repository.files


def _split_files(
    repo: str, wanted: str, files: Collection[str], card: str
) -> tuple[str, str, list[str]]:
    """(configuration, split, names of its files) of what a reference names after its colon."""
    try:
        import datasets
    except ImportError:
        raise HubError(
            f"{DATASET}{repo} is a data set, which the package datasets reads:", f"{EXTRA}."
        ) from None
    _check_card(repo, card)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        _lay_out(place, repo, files, card)
        cache = place / ".cache"
        datasets.utils.logging.set_verbosity_error()
        try:
            known = datasets.get_dataset_config_names(str(place), cache_dir=str(cache))
            config, split = _named(repo, wanted, known)
            builder = datasets.load_dataset_builder(str(place), config, cache_dir=str(cache))
            data_files: Mapping[str, list[str]] = {
                str(key): [str(file) for file in value]
                for key, value in (builder.config.data_files or {}).items()
            }
        except HubError:
            raise
        except Exception as error:
            why = error_line(error).replace(str(place), repo)
            raise HubError(
                f"The package datasets finds no data files in {repo} ({why}); give a data set of "
                "Parquet, CSV or JSON files, without a script."
            ) from None
        split = _split(repo, config, split, data_files)
        paths = [Path(file).resolve() for file in data_files[split]]
    if not all(path.is_relative_to(place) for path in paths):
        raise _outside(repo)
    names = [path.relative_to(place).as_posix() for path in paths]
    if not set(names) <= set(files):
        raise _outside(repo)
    return config, split, names


def _check_card(repo: str, card: str) -> None:
    """Raises HubError for a card that names data files elsewhere, which would be asked for."""
    configs = read_front_matter(card).get("configs")
    for _, value, _ in nested_values({"configs": configs}):
        if isinstance(value, str) and re.search(r"://|^[/~\\]|(^|[/\\])\.\.([/\\]|$)", value):
            raise _outside(repo)


def _outside(repo: str) -> HubError:
    return HubError(f"The card of {repo} names files outside it; take another data set.")


def _lay_out(place: Path, repo: str, files: Collection[str], card: str) -> None:
    """Writes the card and an empty file for each other name that is no Python file."""
    if len(files) > MOST_FILES:
        raise HubError(f"{repo} has {len(files):,} files, at most {MOST_FILES:,} are listed.")
    for name in files:
        path = PurePosixPath(name)
        if path.suffix == ".py" or path.is_absolute() or ".." in path.parts or "\\" in name:
            continue
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(card if name == CARD else "", encoding="utf-8")


def _named(repo: str, wanted: str, known: Collection[str]) -> tuple[str, str]:
    """The configuration and the split ("" for none) that a reference names."""
    config, slash, split = wanted.partition("/")
    if not slash and config not in known:
        config, split = "", config
    if not config:
        config = next(iter(known), "") if len(known) == 1 else "default"
    if config not in known:
        raise HubError(
            f"{repo} has no configuration {config!r}; name one of {shortly(known)} and a split, as "
            f"in {DATASET}{repo}:{next(iter(known), 'default')}/{split or 'test'}."
        )
    return config, split


def _split(repo: str, config: str, split: str, splits: Collection[str]) -> str:
    """The split, or without one "test" or the only one."""
    if not split and len(splits) == 1:
        return next(iter(splits))
    if (split or "test") in splits:
        return split or "test"
    hint = nearest(split, splits) if split else f"there are {shortly(splits)}."
    raise HubError(f"{repo} has no split {split or 'test'!r} in {config!r}:", hint)
