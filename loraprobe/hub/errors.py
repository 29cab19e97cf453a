"""Turns exceptions of the Hub's client into one sentence with a cure and without tokens."""

from __future__ import annotations

import errno
import re

from loraprobe.errors import HubError, LoraprobeError
from loraprobe.hub.reference import Reference
from loraprobe.secrets import scrub

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
UNREACHABLE = re.compile(
    r"(Connect|Read|Write|Proxy|Protocol|Close|Network|Pool|RemoteProtocol|Transport)"
    r"(Error|Timeout)|UnsupportedProtocol"
)


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


def neither(why: LoraprobeError, reference: Reference) -> HubError:
    """The error about a name that is no directory, where the Hub could not be asked about it."""
    told = str(why).replace("The Hub at", "the Hub at", 1)
    return HubError(f"There is no directory {reference.text!r} (check the path), and {told}")


def endpoint() -> str:
    """The address of the Hub in use."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _sentence(error: BaseException, ref: Reference) -> str:
    from huggingface_hub import errors

    hub, where = f"the Hub at {endpoint()}", f"{ref.repo}@{ref.revision or 'main'}"
    page = f"datasets/{ref.repo}" if ref.kind == "dataset" else ref.repo
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{ref.repo} is gated: ask for access on its page at {endpoint()}/{page}, then set "
            "HF_TOKEN to a token of that account."
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"{ref.repo} has been disabled on {hub}; use another one."
    if isinstance(error, errors.RepositoryNotFoundError):
        revision = f" (or no revision {ref.revision!r} in it)" if ref.revision else ""
        what, local = "repository", ", or write ./ before a local directory"
        if ref.kind == "dataset":
            what, local = "data set", ""
        return (
            f"There is no {what} {ref.repo}{revision} on {hub}; check the name, or set HF_TOKEN if "
            f"it is private{local}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{ref.repo} has no revision {ref.revision or 'main'!r}; give a branch, a tag or a "
            "commit of it."
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        if is_offline():
            return (
                f"{where} is not in the local cache and HF_HUB_OFFLINE is set; unset it once to "
                "download it."
            )
        return f"{where} could not be downloaded from {hub}; check the network and try again."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{where} lost a file while it was read on {hub}; try again."
    status = status_of(error)
    if status is not None:
        return _of_status(error, status, ref.repo)
    return _of_transfer(error, where)


def _of_status(error: BaseException, status: int, repo: str) -> str:
    hub = f"The Hub at {endpoint()}"
    headers = getattr(getattr(error, "response", None), "headers", {})
    if status == 429:
        reset = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
        wait = headers.get("retry-after") or (reset and reset[1])
        pause = f"in {wait} seconds" if wait else "later"
        return (
            f"{hub} limits the rate of requests; try again {pause}, or set HF_TOKEN for a higher "
            "limit."
        )
    if status == 401:
        return f"{hub} rejects the token; set HF_TOKEN to a valid one or unset it."
    if status == 403:
        return f"{hub} forbids access to {repo}; use a token that may read it."
    if status >= 500:
        return f"{hub} has trouble (status {status}); try again later."
    return f"{hub} answers {repo} with status {status}; check the reference and HF_ENDPOINT."


def _of_transfer(error: BaseException, where: str) -> str:
    hub, kind = f"The Hub at {endpoint()}", type(error).__name__
    text = (str(error).strip() or kind).splitlines()[0].rstrip(".")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where} does not fit on the disk of the cache; free space or set HF_HOME."
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return f"The cache cannot be written ({error.filename}); set HF_HOME to a folder of yours."
    if "onsistency check" in text or kind in ("RemoteProtocolError", "ReadError"):
        return f"The download of {where} broke off before its end; try again."
    if kind == "HFValidationError":
        return f"{where} cannot be a name on the Hub; a repository is owner/name."
    if is_transient(error):
        return (
            f"{hub} cannot be reached ({text}); check the network and HF_ENDPOINT, or set "
            "HF_HUB_OFFLINE=1 to use what is cached."
        )
    if isinstance(error, ValueError):
        return (
            f"{hub} sends a response about {where} that is not the Hub's ({text}); check "
            "HF_ENDPOINT and proxies."
        )
    return f"{where} could not be read: {text}."


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def status_of(error: BaseException) -> int | None:
    """The status of a response that the client raised as an error."""
    return getattr(getattr(error, "response", None), "status_code", None)
