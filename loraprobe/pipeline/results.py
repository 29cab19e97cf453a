"""The results of a run, which --resume uses again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, public_value
from loraprobe.base import Base
from loraprobe.cache import NAME, as_plain, changes, digest, names_in, read_fingerprint
from loraprobe.evaluation import Ledger
from loraprobe.file_hashes import cache_directory
from loraprobe.options import Options
from loraprobe.pipeline.inputs import read_prompts
from loraprobe.pipeline.session import Session
from loraprobe.tasks import Task

# Beside the results: the weights that were learned, and hidden states of single adapters.
LEARNED, STATES = "learned.jsonl", "states"


def open_ledger(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], session: Session
) -> tuple[Ledger, str]:
    """The ledger of this run, and a note on the results that --resume found, or why none.

    With `--chat-template auto` it also holds the answers that choose the form of prompts, which
    follows from them.
    """
    options = session.options
    decides = identity(adapters, base, tasks, options) | {
        "device": session.device,
        "dtype": session.dtype,
        "template": options.chat_template,
    }
    runs = cache_directory() / "runs"
    place = session.state or runs / digest(decides)
    ledger = Ledger(place, session.resume, fingerprint=decides)
    if not session.resume:
        return ledger, ""
    if len(ledger):
        return ledger, f"{len(ledger)} results of an earlier run of this call were kept."
    return ledger, _what_changed(runs, decides)


def identity(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], options: Options
) -> dict[str, Any]:
    """Everything on which the result of an item depends; results of an equal identity are reused.

    Paths in configs are left out but for their last part, because the files are known by hash.
    Batch size and threads are left out. They change only the order of sums, which matters only
    between two equally likely tokens (docs/determinism.md), and a run that ran out of memory
    continues with a smaller batch.
    """
    packages = ["torch", "transformers", "tokenizers"]
    packages += ["bitsandbytes"] if options.quantize != "none" else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "adapters": {
            a.name: {"config": public_value(dict(a.config)), "weights": a.sha256} for a in adapters
        },
        "order": [a.name for a in adapters],  # which weights go by
        "versions": {"loraprobe": __version__, **versions},
        "base": public_value(dict(base.identity)),
        "tasks": {task.name: digest(task.items) for task in tasks},
        "router_prompts": {
            name: digest(read_prompts(Path(file))) for name, file in options.router_prompts
        },
        "options": options.fingerprint(),
    }


def _what_changed(runs: Path, decides: Mapping[str, Any]) -> str:
    """The differences of this run to the most similar stored one of the same adapters and tasks.

    "" where there is no such run.
    """
    new = as_plain(decides)
    found: Iterable[dict[str, Any] | None] = map(read_fingerprint, sorted(runs.glob(f"*/{NAME}")))
    alike = [
        changes(old, new)
        for old in found
        if old and all(names_in(old, key) == names_in(new, key) for key in ("adapters", "tasks"))
    ]
    nearest = min((phrases for phrases in alike if phrases), key=len, default=None)
    if nearest is None:
        return ""
    more = f" and {len(nearest) - 4} more" if len(nearest) > 4 else ""
    return f"Kept results were not used, for this run differs: {'; '.join(nearest[:4])}{more}."
