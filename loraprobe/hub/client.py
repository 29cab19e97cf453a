"""The Hub's client: files of one commit, its address, its silence, and its errors.

The revision of a reference is resolved to a commit once, and every file comes from that commit. If
the Hub cannot be reached, what the cache has of it is used, with a warning. What the client raises
becomes one sentence with a cure and without tokens.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe import untrusted
from loraprobe.adapters import Adapter, Source
from loraprobe.cache import file_hash
from loraprobe.errors import HubError, LoraprobeError
from loraprobe.hub.reference import Reference
from loraprobe.secrets import scrub
from loraprobe.untrusted import check_link, error_line

log = logging.getLogger("loraprobe.hub")
CARD = "README.md"
COMMIT = re.compile(r"[0-9a-f]{40}")
WORKERS = 4
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
# Errors of httpx, or of httpx2 in newer versions of the client.
UNREACHABLE = re.compile(
    r"(Connect|Read|Write|Proxy|Protocol|Close|Network|Pool|RemoteProtocol|Transport)"
    r"(Error|Timeout)|UnsupportedProtocol"
)


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


def explain(error: BaseException, reference: Reference, lead: str = "") -> LoraprobeError:
    """The error to raise instead of the client's; a LoraprobeError is returned as it is.

    lead: how the sentence begins, before what happened.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LoraprobeError):
        return error
    vague = isinstance(error, LocalEntryNotFoundError) or type(error) is ValueError
    if vague and error.__cause__ is not None:
        error = error.__cause__  # the cause says why the Hub could not be asked
    return HubError(scrub(lead + _sentence(error, reference, "the" if lead else "The")))


def endpoint() -> str:
    """The address of the Hub in use."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _sentence(error: BaseException, ref: Reference, the: str) -> str:
    """What happened and what to do. Some of the client's errors are kinds of others.

    the: the article of the Hub where that begins the sentence.
    """
    from huggingface_hub import errors

    hub, begin = f"the Hub at {endpoint()}", f"{the} Hub at {endpoint()}"
    where = f"{ref.repo}@{ref.revision or 'main'}"
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
    text = error_line(error)
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
            f"{begin} has trouble (status {status}); try again later.",
        ),
        (
            status == 429,
            f"{begin} limits the rate of requests; try again {pause}, or set HF_TOKEN for a higher "
            "limit.",
        ),
        (status == 401, f"{begin} rejects the token; set HF_TOKEN to a valid one or unset it."),
        (status == 403, f"{begin} forbids access to {ref.repo}; use a token that may read it."),
        (
            status is not None,
            f"{begin} answers {ref.repo} with status {status}; check the reference and "
            "HF_ENDPOINT.",
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
            isinstance(error, errors.HFValidationError),
            f"{where} cannot be a name on the Hub; a repository is owner/name.",
        ),
        (
            is_transient(error),
            f"{begin} cannot be reached ({text}); check the network and HF_ENDPOINT, or set "
            "HF_HUB_OFFLINE=1 to use what is cached.",
        ),
        (
            isinstance(error, ValueError),
            f"{begin} sends a response about {where} that is not the Hub's ({text}); check "
            "HF_ENDPOINT and proxies.",
        ),
        (True, f"{where} could not be read: {text}."),
    ]
    return next(sentence for fits, sentence in cases if fits)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """The status of a response that the client raised as an error."""
    return getattr(getattr(error, "response", None), "status_code", None)


@dataclass(frozen=True)
class Snapshot:
    """The local folder of a reference and, for the Hub, its commit."""

    path: Path
    reference: str
    commit: str | None = None


class Repository:
    """The files of a reference's repository, all of one commit.

    files: their names. Raises HubError if the Hub refuses, or cannot be reached and the cache has
    nothing of the repository.
    """

    @quiet_client()
    def __init__(self, reference: Reference) -> None:
        from huggingface_hub import HfApi, snapshot_download

        self.reference, kind = reference, reference.kind
        self.revision = reference.revision  # until the first file gives the commit
        self.unreachable: LoraprobeError | None = None
        try:
            info: Any = HfApi().repo_info(
                reference.repo, revision=reference.revision or "main", repo_type=kind
            )
            self.commit = info.sha or ""
            self.files = [sibling.rfilename for sibling in info.siblings or ()]
            return
        except Exception as error:
            why = explain(error, reference)
            # A commit never changes, so that its copy serves also where the Hub has it no longer.
            if not is_transient(error) and not COMMIT.fullmatch(reference.revision or ""):
                raise why from None
            path = f"directory {reference.text!r} (check the path)"
            lacking = path if kind == "model" else "copy here"
            self.unreachable = explain(error, reference, f"There is no {lacking}, and ")
        try:
            root = Path(
                snapshot_download(
                    reference.repo,
                    revision=reference.revision,
                    repo_type=kind,
                    local_files_only=True,
                )
            )
        except Exception:  # nothing is cached, or the name is impossible
            raise self.unreachable from None
        self.revision = self.commit = root.name
        self.files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        if not is_offline():
            log.warning("%s Using the copy in the cache, commit %s.", why, root.name[:12])

    @contextlib.contextmanager
    def choosing(self) -> Iterator[None]:
        """Files are chosen in the block; where the cache lacks some, the Hub's error is raised."""
        try:
            yield
        except LoraprobeError:
            if self.unreachable:
                raise self.unreachable from None
            raise

    def get(self, name: str, verify: bool = True) -> Path:
        """One file, as `get_all`."""
        return self.get_all([name], verify)[0]

    @quiet_client()
    def get_all(self, names: Iterable[str], verify: bool = True) -> list[Path]:
        """Files in their order, downloaded if the cache lacks them. Raises HubError.

        verify: each is compared with its hash on the Hub, and downloaded again if it is damaged.
        """
        first, *others = names
        files = [self._get(first, verify)]
        with ThreadPoolExecutor(WORKERS) as pool:
            return files + list(pool.map(lambda name: self._get(name, verify), others))

    def _get(self, name: str, verify: bool) -> Path:
        from huggingface_hub import hf_hub_download

        repo = self.reference.repo
        for again in (False, True):
            try:
                file = Path(
                    hf_hub_download(
                        repo,
                        name,
                        revision=self.revision,
                        repo_type=self.reference.kind,
                        force_download=again,
                    )
                )
            except Exception as error:
                why = explain(error, self.reference)
                if again:
                    why = HubError(
                        f"The cached {name} of {repo} is damaged and could not be downloaded "
                        f"again: {why}"
                    )
                raise why from None
            # Asking by the revision first notes in the cache which commit it is.
            self.revision = self.commit = file.parents[name.count("/")].name
            if not verify or is_whole(file):
                return file
        raise HubError(
            f"{name} of {repo} does not match the hash that the Hub gives for it, downloaded "
            "twice; tell its author, or try again later."
        )

    def snapshot(self, names: Iterable[str], verify: bool = True) -> Snapshot:
        """The folder of the reference, with these files downloaded; the first lies in it."""
        folder = self.get_all(names, verify)[0].parent
        return Snapshot(folder, self.reference.text, self.commit)


def cached(reference: Reference, name: str) -> Path | None:
    """A file of a reference's folder that is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(
            reference.repo, reference.inside(name), revision=reference.revision
        )
    except Exception:  # an impossible name: the request will say so
        return None
    return Path(file) if isinstance(file, str) else None


def model_card(adapter: Adapter) -> str | None:
    """The text of an adapter's card, downloaded if it is on the Hub; None if there is none."""
    return beside(adapter.source, CARD)


def beside(source: Source, name: str) -> str | None:
    """The text of a file of an adapter or a base, or of its repository; None if there is none."""
    file = held_beside(source, name)
    if file is None and source.commit is not None:
        reference = replace(Reference.parse(source.reference), revision=source.commit)
        repository = Repository(reference)
        names = [n for n in (reference.inside(name), name) if n in repository.files]
        file = repository.get(names[0], verify=False) if names else None
    return read_card(file, source.public) if file else None


def held_beside(source: Source, name: str) -> Path | None:
    """A file of an adapter or a base, or of its repository, that is on this machine."""
    folders = [] if source.path is None else [source.path, *source.path.parents]
    inside = [
        f for f in folders if f == source.path or (source.commit and source.commit in f.parts)
    ]
    return next((f / name for f in inside if (f / name).is_file()), None)


def read_card(file: Path, reference: str, raises: type[LoraprobeError] = HubError) -> str | None:
    """The text of a model card, up to the limit; None if the file does not exist.

    Raises `raises` for a link that leads out of its repository.
    """
    if not file.is_file():
        return None
    check_link(file, reference, raises)
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read(untrusted.CARD)


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
