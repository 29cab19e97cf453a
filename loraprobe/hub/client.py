"""The Hub's client: its address, its silence, and its errors.

What it raises becomes one sentence with a cure and without tokens.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from loraprobe.errors import HubError, LoraprobeError
from loraprobe.hub.reference import Reference
from loraprobe.secrets import scrub

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
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
