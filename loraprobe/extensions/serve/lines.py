"""The lines of an answer about servers."""

from __future__ import annotations

from collections.abc import Iterator

from loraprobe.extensions.serve import SERVE
from loraprobe.extensions.serve.part import ServeCommands
from loraprobe.formatting import listing
from loraprobe.records import Audit, Verdict, by_severity
from loraprobe.report.limits import clause, problems
from loraprobe.report.parts import Line


def lines_of(audit: Audit) -> Iterator[Line]:
    """What servers do not read as it is, each cure once, and which servers read it; of what was
    measured, what they cannot run, or which of them run what is advised."""
    verdict = audit.verdict
    asked = verdict is not None and verdict.evidence not in ("weights", "probes")
    if verdict is not None and asked and "measured-before" not in {r.code for r in verdict.reasons}:
        yield "servers", _about_systems(audit, verdict)
        return
    found = [one for one in audit.compatibility.issues if one.code.startswith(SERVE)]
    yield from problems([one for one in by_severity(found) if one.severity != "note"])
    fit = [issue for issue in found if issue.severity == "note"]
    yield "reads it", listing(issue.message.partition(" reads it")[0] for issue in fit)


def _about_systems(audit: Audit, verdict: Verdict) -> str:
    """What the servers of the user cannot run; else which servers run what is advised.

    Beside commands that serve it the latter is said of a router, whose requests name an adapter.
    """
    served = audit.of_extension(ServeCommands).serve and verdict.action.kind != "route"
    return clause(verdict, "not-servable") or ("" if served else clause(verdict, "servable"))
