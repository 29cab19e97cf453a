"""The last verdict on adapters, kept for commands that make the measured composition again, and for
evaluations of these adapters and one more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from loraprobe._version import __version__
from loraprobe.adapters import Adapter
from loraprobe.cache import VERDICTS, keep, read_kept
from loraprobe.formatting import count, gained, listing
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import STEPS, Audit, Reason, Verdict, display_name, plain
from loraprobe.results import as_plain, digest
from loraprobe.verdict.evidence import FORM
from loraprobe.verdict.reasons import reason_of


@dataclass(frozen=True)
class KeptVerdict:
    """A verdict on what was measured, and what was asked of which base.

    It holds what may be published, and nothing else. made: the choices that make the composition
    that is advised, as a digest; "" where none is. asked: a digest of the questions.
    """

    made: str
    base: str
    tasks: tuple[str, ...]
    asked: str
    verdict: Verdict


def keep_verdict(inputs: Inputs, audit: Audit, made: Mapping[str, Any] | None) -> None:
    """Keeps the verdict of an evaluation in the place of the one before on the same adapters.

    made: how the composition that is advised is made, as its card says; None where none is.
    """
    verdict, base = audit.verdict, audit.base
    if verdict is None or base is None:
        return
    tasks, choices = tuple(task.name for task in inputs.tasks), _choices(made) if made else ""
    row = plain(KeptVerdict(choices, base.reference, tasks, _asked(inputs), verdict))
    row["verdict"] |= {"reasons": [], "next": ""}  # which hold for that run alone
    keep(VERDICTS, _name(inputs.adapters), json.dumps(as_plain(row)).encode())


def added_in_vain(inputs: Inputs, verdict: Verdict) -> str:
    """The adapter without which the last evaluation of the same questions gave the same advice; ""
    where there was none."""
    adapters, asked = inputs.adapters, _asked(inputs)
    for at in reversed(range(len(adapters))):
        found = _kept([*adapters[:at], *adapters[at + 1 :]])
        if found and (found.asked, found.verdict.action) == (asked, verdict.action):
            return adapters[at].name
    return ""


def repeated_verdict(inputs: Inputs, made: Mapping[str, Any]) -> tuple[Verdict, Reason] | None:
    """The verdict that was measured on what was made now, and its reason: what it measured.

    None where nothing is kept, or where the base that was given is another one.
    """
    found = _kept(inputs.adapters)
    if found is None or found.made != _choices(made) or not _gains(found.verdict):
        return None
    if inputs.base is not None and inputs.base.summary().reference != found.base:
        return None
    gain = found.verdict.gain
    assert gain is not None
    reason = reason_of(
        "measured-before",
        gain.difference,
        found.verdict.margin,
        gain=gained(gain.difference, gain.ci95, threshold=found.verdict.margin),
        system=display_name(gain.system) + (f", {FORM[STEPS]}," if gain.form == STEPS else ""),
        against=display_name(gain.against),
        asked=count(gain.n, "question"),
        tasks=listing(found.tasks),
        decisive=True,
    )
    return found.verdict, reason


def _gains(verdict: Verdict) -> bool:
    """Whether a verdict advises the very composition that it says to gain."""
    gain = verdict.gain
    likely = verdict.decision == "likely" and verdict.composes
    return likely and gain is not None and gain.system == verdict.system


def _choices(made: Mapping[str, Any]) -> str:
    """All that makes a composition of its adapters, which go by `_name`; not the base, which a
    merge does without."""
    return digest({key: held for key, held in made.items() if key not in ("base", "sources")})


def _asked(inputs: Inputs) -> str:
    """The questions, by content."""
    return digest([digest(task.items) for task in inputs.tasks])


def _kept(adapters: Sequence[Adapter]) -> KeptVerdict | None:
    """The last verdict on adapters; None where none is kept that can be read."""
    held = read_kept(VERDICTS, _name(adapters))
    with contextlib.suppress(ValidationError):
        return TypeAdapter(KeptVerdict).validate_json(held) if held else None
    return None


def _name(adapters: Sequence[Adapter]) -> str:
    """What the adapters are, by content and in their order."""
    files = [adapter.sha256 for adapter in adapters]
    return digest([__version__, files])
