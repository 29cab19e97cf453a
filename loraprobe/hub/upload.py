"""Uploads a directory to a repository of the Hub, private unless asked otherwise.

The Hub keeps what has arrived: a second upload of the same files sends only the others.
"""

from __future__ import annotations

from pathlib import Path

from loraprobe.errors import HubError, UsageError
from loraprobe.hub.client import endpoint, explain, is_offline, quiet_client, status_of
from loraprobe.hub.reference import Reference


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
