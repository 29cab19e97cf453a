"""The last verdict on adapters, for commands that make the composition that it advises, and for
evaluations of these adapters and one more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from loraprobe._version import __version__
from loraprobe.adapters import Adapter
from loraprobe.cache import VERDICTS, keep, read_kept
from loraprobe.formatting import count, gained, listing
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import NOTHING, STEPS, Audit, Reason, Verdict, display_name, plain
from loraprobe.results import as_plain, digest
from loraprobe.verdict.evidence import FORM
from loraprobe.verdict.reasons import reason_of

if TYPE_CHECKING:  # a merge needs none of it
    from loraprobe.evaluation import System


@dataclass(frozen=True)
class MeasuredVerdict:
    """A verdict on what a base answered. It holds what may be published, and nothing else.

    content: of the composition that is advised (`System.content`), "" where none is shown to gain.
    asked: a digest of the questions. verdict: its only reason says what was measured.
    """

    content: str
    base: str
    asked: str
    verdict: Verdict


def keep_verdict(inputs: Inputs, audit: Audit, compositions: Iterable[System]) -> None:
    """Keeps the verdict on compositions in the place of the one before on the same adapters.

    That of `inspect` takes the place only where it advises a composition, which is made next: else
    an evaluation may have told more.
    """
    verdict, base = audit.verdict, audit.base
    if verdict is None or base is None:
        return
    content, reasons, gain = "", list[Reason](), verdict.gain
    advised = verdict.decision == "likely" and verdict.composes
    if advised and gain is not None and gain.system == verdict.system:
        content = next(one.content for one in compositions if one.name == gain.system)
        reason = reason_of(
            "measured-before",
            gain.difference,
            verdict.margin,
            gain=gained(gain.difference, gain.ci95, threshold=verdict.margin),
            system=display_name(gain.system) + (f", {FORM[STEPS]}," if gain.form == STEPS else ""),
            against=display_name(gain.against),
            asked=count(gain.n, "question"),
            tasks=listing(task.name for task in inputs.tasks),
            decisive=True,
        )
        reasons.append(reason)
    if content or audit.command != "inspect":
        shortened = replace(verdict, reasons=tuple(reasons), next=NOTHING)
        row = plain(MeasuredVerdict(content, base.reference, _asked(inputs), shortened))
        keep(VERDICTS, _name(inputs.adapters), json.dumps(as_plain(row)).encode())


def measured_before(inputs: Inputs, content: str) -> Verdict | None:
    """The verdict that advises the composition of this content; None where none is kept, or where
    the base that was given is another one."""
    record = _kept(inputs.adapters)
    if record is None or record.content != content:
        return None
    here = inputs.base is None or inputs.base.summary().reference == record.base
    return record.verdict if here else None


def added_in_vain(inputs: Inputs, verdict: Verdict) -> str:
    """The adapter without which the last evaluation of the same questions gave the same advice; ""
    where there was none."""
    adapters, asked = inputs.adapters, _asked(inputs)
    for at, added in reversed(list(enumerate(adapters))):
        record = _kept([*adapters[:at], *adapters[at + 1 :]])
        if record and (record.asked, record.verdict.action) == (asked, verdict.action):
            return added.name
    return ""


def _asked(inputs: Inputs) -> str:
    """The questions, by content."""
    return digest([digest(task.items) for task in inputs.tasks])


def _kept(adapters: Sequence[Adapter]) -> MeasuredVerdict | None:
    """The last verdict on adapters; None where none is kept that can be read."""
    row = read_kept(VERDICTS, _name(adapters))
    with contextlib.suppress(ValidationError):
        return TypeAdapter(MeasuredVerdict).validate_json(row) if row else None
    return None


def _name(adapters: Sequence[Adapter]) -> str:
    """What the adapters are, by content and in their order."""
    return digest([__version__, [adapter.sha256 for adapter in adapters]])
