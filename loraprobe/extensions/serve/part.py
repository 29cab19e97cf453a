"""The part of an audit that says what servers read, and how its result is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loraprobe.extension import AuditPart
from loraprobe.extensions.serve import SERVE
from loraprobe.formatting import listing
from loraprobe.records import Audit, Command, by_severity


@dataclass(frozen=True)
class ServeCommands:
    """The commands that serve what was made or what the verdict advises."""

    serve: tuple[Command, ...] = ()


class ServePart(AuditPart):
    """The lines about servers; the commands stand behind the next one."""

    record = ServeCommands
    findings = SERVE
    unfit = "Not every server named reads it as it is."

    def lines(self, audit: Audit) -> Iterator[tuple[str, str | Command]]:
        """What servers do not read as it is, each cure once, and which servers read it.

        Of what was measured: what they cannot run, or which of them run what is advised. Beside
        commands that serve it the latter is said of a router, whose requests name an adapter.
        """
        from loraprobe.report.limits import clause, problems

        verdict = audit.verdict
        asked = verdict is not None and verdict.evidence not in ("weights", "probes")
        if verdict is not None and asked and "measured-before" not in verdict.codes:
            served = audit.of_extension(ServeCommands).serve and verdict.action.kind != "route"
            advised = "" if served else clause(verdict, "servable")
            yield "servers", clause(verdict, "not-servable") or advised
            return
        found = [one for one in audit.compatibility.issues if one.code.startswith(SERVE)]
        yield from problems([one for one in by_severity(found) if one.severity != "note"])
        fit = [issue for issue in found if issue.severity == "note"]
        yield "reads it", listing(issue.message.partition(" reads it")[0] for issue in fit)

    def commands(self, audit: Audit) -> Iterable[tuple[str, Command]]:
        return [("serve", command) for command in audit.of_extension(ServeCommands).serve]
