"""Where a run keeps its results as they come, so that --resume repeats nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapter import Adapter
from loraprobe.base import Base
from loraprobe.options import Options
from loraprobe.pipeline.session import Session

if TYPE_CHECKING:
    from loraprobe.evaluation import Ledger
    from loraprobe.tasks import Task


def open_ledger(
    adapters: Sequence[Adapter],
    base: Base,
    tasks: Sequence[Task],
    options: Options,
    session: Session,
    chat_template: bool,
) -> tuple[Ledger, str]:
    """The ledger of exactly this call, and a note if earlier results are used."""
    from loraprobe.evaluation import Ledger

    identity = {
        "adapters": {a.name: a.sha256 for a in adapters},
        "order": [a.name for a in adapters],  # which weights go by
        "base": base_identity(base),
        "tasks": {task.name: task.sha256 for task in tasks},
        "device": session.device,
        "dtype": session.dtype,
        "template": chat_template,
        "settings": {k: _plain(v) for k, v in options.fingerprint().items()},
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    directory = options.state or state_directory() / digest
    ledger = Ledger(directory, options.resume, fingerprint=identity, overwrite=not options.resume)
    kept = len(ledger)
    if not (options.resume and kept):
        return ledger, ""
    return ledger, f"{kept} results of an earlier run of this call were kept."


def state_directory() -> Path:
    """LORAPROBE_CACHE, else loraprobe/runs below the user's cache directory."""
    if own := os.environ.get("LORAPROBE_CACHE"):
        return Path(own) / "runs"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "loraprobe" / "runs"


def base_identity(base: Base) -> Mapping[str, Any]:
    """What tells one base from another without hashing gigabytes."""
    if base.commit:
        return {"reference": base.reference, "commit": base.commit}
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in base.weight_files]
    return {"path": str(base.path.resolve()), "files": [list(map(str, file)) for file in files]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
