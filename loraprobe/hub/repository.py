"""Downloads files of one commit into the cache of the Hub's client, and uploads a directory.

The revision is resolved to a commit once, and every file comes from that commit. If the Hub cannot
be reached, a complete cached copy is used, with a warning. What the client raises becomes one
sentence with a cure and without tokens.

An upload is private unless asked otherwise. The Hub keeps what has arrived: a second upload of the
same files sends only the others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe import limits
from loraprobe.adapters import Adapter, Source
from loraprobe.cache import cache_directory
from loraprobe.errors import HubError, LoraprobeError, UsageError
from loraprobe.file_hashes import file_hash
from loraprobe.hub.reference import Reference
from loraprobe.secrets import scrub
from loraprobe.untrusted import check_link

log = logging.getLogger("loraprobe.hub")
COMMIT = re.compile(r"[0-9a-f]{40}")
WORKERS = 4
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
UNREACHABLE = re.compile(
    r"(Connect|Read|Write|Proxy|Protocol|Close|Network|Pool|RemoteProtocol|Transport)"
    r"(Error|Timeout)|UnsupportedProtocol"
)

# (names of all files, function that downloads one of them) -> names of the needed files
Choose = Callable[[Collection[str], Callable[[str], Path]], list[str]]


@dataclass(frozen=True)
class Snapshot:
    """The local folder of a reference and, for the Hub, its commit."""

    path: Path
    reference: str
    commit: str | None = None


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Suppresses the warnings of the Hub's client; loraprobe reports errors itself."""
    from huggingface_hub.utils import logging as client

    level = client.get_verbosity()
    client.set_verbosity_error()
    try:
        yield
    finally:
        client.set_verbosity(level)


@quiet_client()
def fetch(
    reference: Reference, anchor: str, choose: Choose, *, verify: bool, ask: bool = True
) -> Snapshot:
    """Downloads the files that `choose` names, all of one commit; returns the reference's folder.

    anchor: a file that every usable copy has; it identifies the repository in the cache. verify:
    compare each file with the hash that the Hub gives it, and make no request for a cached commit.
    Without verify the Hub is asked for the list of files, because another program may have cached
    only some of them. ask: whether the Hub may be asked, with verify. Raises HubError.
    """
    root = cached(reference, anchor)
    names = None if root is None else _needed(root, choose)
    if not ask:
        if root is None or names is None:
            raise HubError(f"{reference.text} is not in the cache; load it first.")
        reference = replace(reference, revision=root.name)
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
    """The text of an adapter's README.md, downloaded if it is on the Hub; None if there is none."""
    return beside(adapter.source, "README.md")


def beside(source: Source, name: str) -> str | None:
    """The text of a file of an adapter or a base, or of its repository; None if there is none."""
    file = None if source.path is None else source.path / name
    if source.commit is not None and not (file and file.is_file()):
        reference = replace(Reference.parse(source.reference), revision=source.commit)
        file = fetch_first(reference, [reference.inside(name), name])
    return read_card(file, source.public) if file else None


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


def is_transient(error: BaseException) -> bool:
    """Whether a cached copy may be used instead: no network, offline, rate limit, server down."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = status_of(error)
    return (
        isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError))
        or bool(UNREACHABLE.fullmatch(type(error).__name__))
        or status == 429
        or (status is not None and status >= 500)
    )


def explain(error: BaseException, reference: Reference) -> LoraprobeError:
    """The error to raise instead of the client's; a LoraprobeError is returned as it is."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LoraprobeError):
        return error
    vague = isinstance(error, LocalEntryNotFoundError) or type(error) is ValueError
    if vague and error.__cause__ is not None:
        error = error.__cause__  # the cause says why the Hub could not be asked
    return HubError(scrub(_sentence(error, reference)))


def endpoint() -> str:
    """The address of the Hub in use."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _sentence(error: BaseException, ref: Reference) -> str:
    """What happened and what to do. Some of the client's errors are kinds of others."""
    from huggingface_hub import errors

    hub, where = f"the Hub at {endpoint()}", f"{ref.repo}@{ref.revision or 'main'}"
    page, what, local = ref.repo, "repository", ", or write ./ before a local directory"
    if ref.kind == "dataset":
        page, what, local = f"datasets/{ref.repo}", "data set", ""
    revision = f" (or no revision {ref.revision!r} in it)" if ref.revision else ""
    absent = f"{where} could not be downloaded from {hub}; check the network and try again."
    if is_offline():
        absent = (
            f"{where} is not in the local cache and HF_HUB_OFFLINE is set; unset it once to "
            "download it."
        )
    status, kind, number = status_of(error), type(error).__name__, getattr(error, "errno", None)
    text = (str(error).strip() or kind).splitlines()[0].rstrip(".")
    broke_off = "onsistency check" in text or kind in ("RemoteProtocolError", "ReadError")
    headers = getattr(getattr(error, "response", None), "headers", {})
    reset = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    wait = headers.get("retry-after") or (reset and reset[1])
    pause = f"in {wait} seconds" if wait else "later"
    cases = [  # the first that fits
        (
            isinstance(error, errors.GatedRepoError),
            f"{ref.repo} is gated: ask for access on its page at {endpoint()}/{page}, then set "
            "HF_TOKEN to a token of that account.",
        ),
        (
            isinstance(error, errors.DisabledRepoError),
            f"{ref.repo} has been disabled on {hub}; use another one.",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"There is no {what} {ref.repo}{revision} on {hub}; check the name, or set HF_TOKEN if "
            f"it is private{local}.",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            f"{ref.repo} has no revision {ref.revision or 'main'!r}; give a branch, a tag or a "
            "commit of it.",
        ),
        (
            isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError),
            absent,
        ),
        (
            isinstance(error, errors.EntryNotFoundError),
            f"{where} lost a file while it was read on {hub}; try again.",
        ),
        (
            status is not None and status >= 500,
            f"{hub} has trouble (status {status}); try again later.",
        ),
        (
            status == 429,
            f"{hub} limits the rate of requests; try again {pause}, or set HF_TOKEN for a higher "
            "limit.",
        ),
        (status == 401, f"{hub} rejects the token; set HF_TOKEN to a valid one or unset it."),
        (status == 403, f"{hub} forbids access to {ref.repo}; use a token that may read it."),
        (
            status is not None,
            f"{hub} answers {ref.repo} with status {status}; check the reference and HF_ENDPOINT.",
        ),
        (
            number in (errno.ENOSPC, errno.EDQUOT),
            f"{where} does not fit on the disk of the cache; free space or set HF_HOME.",
        ),
        (
            number in NOT_WRITABLE,
            f"The cache cannot be written ({getattr(error, 'filename', None)}); set HF_HOME to a "
            "folder of yours.",
        ),
        (broke_off, f"The download of {where} broke off before its end; try again."),
        (
            kind == "HFValidationError",
            f"{where} cannot be a name on the Hub; a repository is owner/name.",
        ),
        (
            is_transient(error),
            f"{hub} cannot be reached ({text}); check the network and HF_ENDPOINT, or set "
            "HF_HUB_OFFLINE=1 to use what is cached.",
        ),
        (
            isinstance(error, ValueError),
            f"{hub} sends a response about {where} that is not the Hub's ({text}); check "
            "HF_ENDPOINT and proxies.",
        ),
        (True, f"{where} could not be read: {text}."),
    ]
    sentence = next(sentence for fits, sentence in cases if fits)
    return sentence[0].upper() + sentence[1:] if sentence.startswith("the Hub") else sentence


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """The status of a response that the client raised as an error."""
    return getattr(getattr(error, "response", None), "status_code", None)


def check_push(repository: str) -> None:
    """Raises UsageError for a name that is no OWNER/NAME, without a token, and offline."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        owner, name = repository.split("/")
    except (HFValidationError, ValueError):
        raise UsageError(
            f"--push takes a repository of the Hub as OWNER/NAME, not {repository!r}."
        ) from None
    if is_offline():
        raise UsageError(f"--push={owner}/{name}: HF_HUB_OFFLINE is set; unset it to upload.")
    if not get_token():
        raise UsageError(
            f"--push={owner}/{name} needs a token that may write; set HF_TOKEN to one."
        )


@quiet_client()
def push(directory: Path, repository: str, public: bool = False) -> str:
    """Uploads a directory; returns the address of its repository.

    The repository is made if it does not exist. Raises UsageError where it is public and `public`
    is off, HubError where the Hub refuses or the upload breaks off.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not (public or api.model_info(repository).private):
            raise UsageError(
                f"{repository} is public, so nothing was uploaded; add --public to publish there, "
                "or give another name."
            )
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message="Upload by loraprobe",
            ignore_patterns=[".cache/**", ".git/**"],
        )
    except UsageError:
        raise
    except Exception as error:  # the client raises many types
        status = status_of(error)
        why = str(explain(error, Reference(repository, repo=repository))).rstrip(".")
        if status in (401, 403, 404):
            why = f"the Hub does not let this token write to {repository} (status {status})"
        raise HubError(
            f"{directory} is written, but not uploaded: {why}; the same call with --overwrite goes "
            "on, and sends no file again that arrived."
        ) from None
    return f"{endpoint()}/{repository}"


def summary(directory: Path, repository: str, public: bool) -> str:
    """What will be uploaded, and to where, in a sentence."""
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    names = ", ".join(str(file.relative_to(directory)) for file in files[:4])
    more = f" and {len(files) - 4} more" if files[4:] else ""
    size = sum(file.stat().st_size for file in files) / 1e6
    seen = "public, unless it exists and is private" if public else "private"
    return f"Uploading {names}{more} ({size:.1f} MB) to {endpoint()}/{repository} ({seen})."
