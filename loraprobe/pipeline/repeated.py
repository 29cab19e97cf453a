"""A verdict that is kept for the command that makes the measured composition again.

The latest evaluation of the same adapters counts: one that ends otherwise leaves nothing to find.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from loraprobe._version import __version__
from loraprobe.cache import VERDICTS, keep, read_kept
from loraprobe.formatting import count, gained, listing
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import NOTHING, STEPS, Audit, Verdict, called, plain
from loraprobe.results import as_plain, digest
from loraprobe.verdict.evidence import FORM
from loraprobe.verdict.reasons import reason_of


@dataclass(frozen=True)
class KeptVerdict:
    """A `likely` verdict: the choices that make its composition, and what was asked of which base.

    It holds what may be published, and nothing else.
    """

    made: str
    base: str
    tasks: tuple[str, ...]
    verdict: Verdict


def keep_verdict(inputs: Inputs, audit: Audit, made: Mapping[str, Any] | None) -> None:
    """Keeps the verdict of an evaluation, if a composition that gains is advised.

    made: how that is made, as its card says; None where nothing is.
    """
    verdict, base, held = audit.verdict, audit.base, b""
    if made and base and verdict and verdict.gain and _gains(verdict):
        tasks = tuple(task.name for task in inputs.tasks)
        bare = replace(verdict, reasons=(), next=NOTHING)
        row = KeptVerdict(_choices(made), base.reference, tasks, bare)
        held = json.dumps(as_plain(plain(row))).encode()
    keep(VERDICTS, _name(inputs), held)


def repeated_verdict(inputs: Inputs, audit: Audit, made: Mapping[str, Any]) -> Verdict | None:
    """The verdict that was measured on what was made now, with what it measured as its reason.

    None where nothing is kept, or where the base that was given is another one.
    """
    found = None
    with contextlib.suppress(ValidationError):
        held = read_kept(VERDICTS, _name(inputs))
        found = TypeAdapter(KeptVerdict).validate_json(held) if held else None
    if found is None or found.made != _choices(made) or not _gains(found.verdict):
        return None
    if audit.base is not None and audit.base.reference != found.base:
        return None
    gain = found.verdict.gain
    assert gain is not None
    reason = reason_of(
        "measured-before",
        gain.difference,
        found.verdict.margin,
        gain=gained(gain.difference, gain.ci95),
        system=called(gain.system) + (f", {FORM[STEPS]}," if gain.form == STEPS else ""),
        against=called(gain.against),
        asked=count(gain.n, "question"),
        tasks=listing(found.tasks),
        decisive=True,
    )
    return replace(found.verdict, reasons=(reason,))


def _gains(verdict: Verdict) -> bool:
    """Whether a verdict advises the very composition that it says to gain."""
    gain = verdict.gain
    likely = verdict.decision == "likely" and verdict.composes
    return likely and gain is not None and gain.system == verdict.system


def _choices(made: Mapping[str, Any]) -> str:
    """All that makes a composition of its adapters, which go by `_name`; not the base, which a
    merge does without."""
    return digest({key: held for key, held in made.items() if key not in ("base", "sources")})


def _name(inputs: Inputs) -> str:
    """What the adapters are, by content and in their order."""
    files = [[one.sha256 for one in (*adapter.below, adapter)] for adapter in inputs.adapters]
    return digest([__version__, files])
