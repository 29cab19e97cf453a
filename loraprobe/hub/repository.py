"""Downloads files of one commit into the cache of the Hub's client.

The revision is resolved to a commit once, and every file comes from that commit. If the Hub cannot
be reached, a complete cached copy is used, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe import limits
from loraprobe.adapters import Adapter, Source
from loraprobe.cache import cache_directory
from loraprobe.errors import HubError, LoraprobeError
from loraprobe.file_hashes import file_hash
from loraprobe.hub.client import explain, is_offline, is_transient, quiet_client
from loraprobe.hub.reference import Reference
from loraprobe.untrusted import check_link

log = logging.getLogger("loraprobe.hub")
CARD = "README.md"
COMMIT = re.compile(r"[0-9a-f]{40}")
WORKERS = 4
# (names of all files, function that downloads one of them) -> names of the needed files
Choose = Callable[[Collection[str], Callable[[str], Path]], list[str]]


@dataclass(frozen=True)
class Snapshot:
    """The local folder of a reference and, for the Hub, its commit."""

    path: Path
    reference: str
    commit: str | None = None


@quiet_client()
def fetch(reference: Reference, anchor: str, choose: Choose, *, verify: bool) -> Snapshot:
    """Downloads the files that `choose` names, all of one commit; returns the reference's folder.

    anchor: a file that every usable copy has; it identifies the repository in the cache. verify:
    compare each file with the hash that the Hub gives it, and make no request for a cached commit.
    Without verify the Hub is asked for the list of files, because another program may have cached
    only some of them. Raises HubError.
    """
    root = cached(reference, anchor)
    names = None if root is None else _needed(root, choose)
    if not (names and verify and COMMIT.fullmatch(reference.revision or "")):
        try:
            _, files = _listing(reference)
        except Exception as error:
            why = explain(error, reference)
            if not is_transient(error):
                raise why from None
            if not (root and names):
                told = str(why).replace("The Hub at", "the Hub at", 1)
                raise HubError(
                    f"There is no directory {reference.text!r} (check the path), and {told}"
                ) from None
            _warn(why, root.name)
        else:
            commit = ""
            if anchor in files:  # downloaded by the revision, which gives the commit
                file = _get(reference, anchor, reference.revision, verify)
                root = file.parents[anchor.count("/")]
                commit = root.name
            names = choose(files, lambda name: _get(reference, name, commit, verify))
    assert root is not None and names is not None
    held = () if verify else {name for name in names if (root / name).is_file()}
    download(reference, root.name, [name for name in names if name not in held], verify)
    return Snapshot(root / reference.folder, reference.text, root.name)


@quiet_client()
def list_files(reference: Reference) -> tuple[str, list[str]]:
    """The commit of the revision and the names of all its files.

    The list is kept for its commit, and for when the Hub cannot be reached. Raises HubError.
    """
    revision = reference.revision or "main"
    kept: tuple[str, list[str]] | None = None
    with contextlib.suppress(OSError, ValueError):
        commit, *names = json.loads(_kept_list(reference, revision).read_text(encoding="utf-8"))
        kept = commit, names
    if kept and COMMIT.fullmatch(revision):
        return kept
    try:
        commit, names = _listing(reference)
    except Exception as error:
        why = explain(error, reference)
        if kept is None or not is_transient(error):
            raise why from None
        _warn(why, kept[0])
        return kept
    for name in (revision, commit):
        place = _kept_list(reference, name)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps([commit, *names]), encoding="utf-8")
    return commit, names


def _kept_list(reference: Reference, revision: str) -> Path:
    """The file in loraprobe's cache for the list of files at a revision."""
    name = f"{reference.kind}/{reference.repo}@{revision}"
    return cache_directory() / "listings" / hashlib.sha256(name.encode()).hexdigest()


@quiet_client()
def download(
    reference: Reference, commit: str, names: Iterable[str], verify: bool = True
) -> list[Path]:
    """Downloads files of a commit that are not in the cache. Raises HubError.

    verify: each is compared with its hash on the Hub, and downloaded again if it is damaged.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda name: _get(reference, name, commit, verify), names))


@quiet_client()
def fetch_first(reference: Reference, names: Iterable[str]) -> Path | None:
    """Downloads the first of these files that the repository has; None if it has none.

    If the Hub cannot be reached, only the cache is searched. Raises HubError for other errors.
    """
    try:
        _, files = _listing(reference)
    except Exception as error:
        if not is_transient(error):
            raise explain(error, reference) from None
        roots = ((cached(reference, name), name) for name in names)
        return next((root / name for root, name in roots if root is not None), None)
    wanted = next((name for name in names if name in files), None)
    return _get(reference, wanted, reference.revision, verify=False) if wanted else None


def model_card(adapter: Adapter) -> str | None:
    """The text of an adapter's card, downloaded if it is on the Hub; None if there is none."""
    return beside(adapter.source, CARD)


def beside(source: Source, name: str) -> str | None:
    """The text of a file of an adapter or a base, or of its repository; None if there is none."""
    file = held_beside(source, name)
    if file is None and source.commit is not None:
        reference = replace(Reference.parse(source.reference), revision=source.commit)
        file = fetch_first(reference, [reference.inside(name), name])
    return read_card(file, source.public) if file else None


def held_beside(source: Source, name: str) -> Path | None:
    """A file of an adapter or a base, or of its repository, that is on this machine."""
    folders = [] if source.path is None else [source.path, *source.path.parents]
    own = [f for f in folders if f == source.path or (source.commit and source.commit in f.parts)]
    return next((f / name for f in own if (f / name).is_file()), None)


def read_card(file: Path, reference: str, raises: type[LoraprobeError] = HubError) -> str | None:
    """The text of a model card, up to the limit; None if the file does not exist.

    Raises `raises` for a link that leads out of its repository.
    """
    if not file.is_file():
        return None
    check_link(file, reference, raises)
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read(limits.CARD)


def _listing(reference: Reference) -> tuple[str, list[str]]:
    """The commit of the revision and the names of all its files, from the Hub."""
    from huggingface_hub import HfApi

    revision = reference.revision or "main"
    info: Any = HfApi().repo_info(reference.repo, revision=revision, repo_type=reference.kind)
    return info.sha or "", [sibling.rfilename for sibling in info.siblings or ()]


def _warn(why: LoraprobeError, commit: str) -> None:
    """Tells why the copy in the cache is used, unless that was asked for."""
    if not is_offline():
        log.warning("%s Using the copy in the cache, commit %s.", why, commit[:12])


def _get(reference: Reference, name: str, revision: str | None, verify: bool) -> Path:
    from huggingface_hub import hf_hub_download

    for again in (False, True):
        try:
            file = Path(
                hf_hub_download(
                    reference.repo,
                    name,
                    revision=revision,
                    repo_type=reference.kind,
                    force_download=again,
                )
            )
        except Exception as error:
            why = explain(error, reference)
            if again:
                why = HubError(
                    f"The cached {name} of {reference.repo} is damaged and could not "
                    f"be downloaded again: {why}"
                )
            raise why from None
        if not verify or is_whole(file):
            return file
    raise HubError(
        f"{name} of {reference.repo} does not match the hash that the Hub gives for it, downloaded "
        "twice; tell its author, or try again later."
    )


def cached(reference: Reference, anchor: str) -> Path | None:
    """The cached folder of the revision, if it holds the anchor."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(reference.repo, anchor, revision=reference.revision)
    except Exception:  # an impossible name: the request will say so
        return None
    return Path(found).parents[anchor.count("/")] if isinstance(found, str) else None


def _needed(root: Path, choose: Choose) -> list[str] | None:
    """The needed files of a cached folder; None if it lacks one."""
    held = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    try:
        names = choose(held, root.joinpath)
    except LoraprobeError:
        return None
    return names if set(names) <= set(held) else None


def is_whole(file: Path) -> bool:
    """Whether the content of a cached file matches the hash in the file's name.

    Large files are named by their sha256, small ones by git's hash of the blob (some mirrors use
    the plain sha1). A file with another name, as in a cache without links, counts as whole.
    """
    name = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return file_hash(file) == name
    if COMMIT.fullmatch(name):
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return name in (blob, hashlib.sha1(content).hexdigest())
    return True
