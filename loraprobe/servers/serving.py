"""What servers can run of the systems of a run, and the commands that serve what it advises."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loraprobe import hub
from loraprobe.adapters import Adapter, local_name, with_below
from loraprobe.base import Base
from loraprobe.hub import reference_of
from loraprobe.merging import Merged
from loraprobe.records import KINDS, ChainHop, Command, Issue, Verdict
from loraprobe.servers.rules import (
    SERVERS,
    as_written,
    refusing,
    servers_named,
    serving_commands,
    serving_issues,
)
from loraprobe.verdict.evidence import SWITCH, Unserved
from loraprobe.verdict.reasons import about_servers

if TYPE_CHECKING:
    from loraprobe.evaluation import System

RUNNING = [name for name, known in SERVERS.items() if known.once or known.start]  # not peft
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+$")  # of the Hub, as servers take it
BY_CLIENT = {
    "chain": "a chain, which its client asks",
    SWITCH: "adapters, of which a client names one",
}
CONVERT = "loraprobe convert"  # how the cure of a file begins that can be written for servers
ReadBy = tuple[list[str], tuple[Command, ...]]  # servers that read files, commands that serve them


@dataclass(frozen=True)
class Serving:
    """The servers of a run.

    wanted: those of --serve; none: any. given: the adapters of the run. base: the base; None for
    the one that they name. target: the directory that gets what is made. full: that of a full model
    where no adapter is written, which all servers run.
    """

    wanted: Sequence[str]
    given: Sequence[Adapter]
    base: Base | None = None
    target: Path | None = None
    full: Path | None = None

    @property
    def named(self) -> list[str]:
        """The servers of --serve."""
        return [*servers_named(self.wanted)] if self.wanted else []

    @property
    def declared(self) -> str | None:
        """The base that the adapters name."""
        return next((adapter.base_model for adapter in self.given), None)

    @cached_property
    def config(self) -> Path | None:
        """The directory of the base's config, whose class a server loads; None if unknown."""
        if self.base is not None:
            return self.base.path
        return hub.base_directory(self.declared) if self.wanted else None

    def unserved(self, compositions: Sequence[System]) -> dict[str, Unserved]:
        """The systems that the servers of --serve cannot run, by name; none without the option.

        compositions: merges with their files. No server weighs adapters by the text, so none runs a
        router. An adapter that `loraprobe convert` rewrites for the servers counts as served.
        """
        if not self.wanted:
            return {}
        files = {adapter.name: adapter for adapter in self.given}
        files |= {
            one.name: as_written(one.merged.written, "DIR") for one in compositions if one.merged
        }
        by_kind = Unserved(tuple(self.named))
        unserved = {one.name: by_kind for one in compositions if not KINDS[one.kind].served}
        for name, adapter in files.items():
            for part in with_below([adapter]):
                lasting = [i for i in self.errors(part) if not i.cure.startswith(CONVERT)]
                if lasting:
                    servers = tuple(refusing(part, self.wanted, self.config))
                    unserved[name] = Unserved(servers, lasting[0].message, lasting[0].cure)
        return unserved

    def warnings(self, merged: Merged) -> list[Issue]:
        """What the servers of --serve do not read in a merge."""
        errors = [] if self.full is not None else self.errors(self.written(merged))
        return [replace(issue, severity="warning") for issue in errors]

    def issues(self, adapter: Adapter) -> list[Issue]:
        """What the servers of --serve do with a file."""
        return serving_issues(adapter, self.wanted, self.config) if self.wanted else []

    def errors(self, adapter: Adapter) -> list[Issue]:
        """What the servers of --serve refuse or misread in a file."""
        return [issue for issue in self.issues(adapter) if issue.severity == "error"]

    def advised(
        self, verdict: Verdict, chain: Sequence[ChainHop], made: Merged | None
    ) -> tuple[Verdict, tuple[Command, ...]]:
        """The verdict with the servers that can run what it advises; the commands that serve that.

        made: the verdict's composition, where that is a merge.
        """
        head, _, single = verdict.action.partition(":")
        members = {"use-single": [single], "chain": [hop.adapter for hop in chain], "use-base": []}
        members[SWITCH] = [adapter.name for adapter in self.given]
        if verdict.composes and made is not None:
            what, (readers, commands) = verdict.system or made.name, self.of_merge(made)
        elif head in members:
            files = {one.name: one for one in self.given if one.name in members[head]}
            what, readers = single or BY_CLIENT.get(head, "the base"), self.readers(files)
            commands = self.commands(self.named, files)
        elif verdict.composes:
            what, readers, commands = f"{verdict.system}, which weighs adapters by the text", [], ()
        else:
            return verdict, ()
        reasons = (*verdict.reasons, about_servers(readers, what))
        return replace(verdict, reasons=reasons), commands

    def of_merge(self, merged: Merged) -> ReadBy:
        """The servers that read a merge as it is written, and the commands that serve it.

        The commands are those of the servers of --serve, or, where it is written, of the first
        server that reads it.
        """
        if self.full is not None:
            place = local_name(str(self.full))
            each = (serving_commands(one, place, {}) for one in self.named or RUNNING[:1])
            return RUNNING, tuple(itertools.chain(*each))
        files = {merged.name: self.written(merged)}
        read = self.readers(files)
        first = read[:1] if self.target is not None else []
        chosen = [name for name in self.named if name in read] if self.wanted else first
        return read, self.commands(chosen, files)

    def of_file(self, adapter: Adapter) -> tuple[Command, ...]:
        """The commands of the servers of --serve, by default of all, that read a file as it is."""
        files = {adapter.name: adapter}
        read = self.readers(files)
        return self.commands([name for name in self.named or RUNNING if name in read], files)

    def written(self, merged: Merged) -> Adapter:
        """A merge as the file that --output writes, or that will stand in "DIR"."""
        return as_written(merged.written, local_name(str(self.target or "DIR")))

    def readers(self, files: Mapping[str, Adapter]) -> list[str]:
        """The servers, those of --serve in their versions, that read all of these files as they
        are."""
        wanted, parts = [*RUNNING, *self.wanted], with_below([*files.values()])
        bad = {one for adapter in parts for one in refusing(adapter, wanted, self.config)}
        return [server for server in RUNNING if server not in bad]

    def commands(self, servers: Sequence[str], files: Mapping[str, Adapter]) -> tuple[Command, ...]:
        """The commands by which servers serve adapters beside their base."""
        base = self.declared if self.base is None else self.base.summary().reference
        ranks = [sum(one.rank_range[1] for one in with_below([file])) for file in files.values()]
        found = list[Command]()
        for server in (one for one in servers if one in RUNNING):
            places = dict[str, str]()
            for name, adapter in files.items():
                made = adapter.source.path is None  # by this run, at the place of its reference
                place = adapter.source.reference if made else reference_of(adapter)
                loads = not SERVERS[server].each and REPOSITORY.match(place)  # from the Hub itself
                remote = adapter.source.commit is not None and not loads
                # One file has to hold what is below an adapter too.
                misread = remote or server not in self.readers({name: adapter})
                prepared = "merge" if adapter.below else "convert" if misread else ""
                places[name] = f"{name}-served" if prepared else place
                if prepared:
                    found.append(Command(prepared, (place,), (("-o", places[name]),)))
            found += serving_commands(server, base, places, max(ranks, default=0))
        return tuple(dict.fromkeys(found))  # several servers prepare the base alike
