"""What servers can run of the systems of a run, and the commands that serve what it advises."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprobe import hub
from loraprobe.adapters import Adapter, local_name, with_below
from loraprobe.compatibility.serving import (
    SERVERS,
    as_written,
    refusing,
    servers_named,
    serving_commands,
    serving_issues,
)
from loraprobe.merging import Merged
from loraprobe.options import Options
from loraprobe.pipeline.examination import Examination, with_issues
from loraprobe.pipeline.inputs import Inputs, reference_of
from loraprobe.records import KINDS, ChainHop, Command, Reason, Verdict
from loraprobe.session import Session
from loraprobe.verdict.evidence import SWITCH, Unserved
from loraprobe.verdict.reasons import about_servers

if TYPE_CHECKING:
    from loraprobe.evaluation import System
    from loraprobe.pipeline.systems import SystemBuilder
    from loraprobe.routing._saved import Routed

RUNNING = [name for name, known in SERVERS.items() if known.once or known.start]  # not peft
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+$")  # of the Hub, as servers take it
BY_CLIENT = {
    "chain": "a chain, which its client asks",
    SWITCH: "adapters, of which a client names one",
}
CONVERT = "loraprobe convert"  # how the cure of a file begins that can be written for servers


def with_files(compositions: Sequence[System], builder: SystemBuilder) -> list[System]:
    """The compositions, the merges among them with the adapter that a server loads."""
    return [
        replace(system, merged=builder.merge(system.spec))
        if system.kind == "merge" and system.merged is None
        else system
        for system in compositions
    ]


def unserved_systems(
    options: Options, inputs: Inputs, compositions: Sequence[System]
) -> dict[str, Unserved]:
    """The systems that the servers of --serve cannot run, by name; none without the option.

    compositions: merges with their files. No server weighs adapters by the text, so none runs a
    router. An adapter that `loraprobe convert` rewrites for the servers counts as served.
    """
    if not options.serve:
        return {}
    named, place = tuple(servers_named(options.serve)), config_of_base(inputs, options)
    files = {adapter.name: adapter for adapter in inputs.given}
    files |= {system.name: written(system.merged, None) for system in compositions if system.merged}
    unserved = {
        system.name: Unserved(named) for system in compositions if not KINDS[system.kind].served
    }
    for name, adapter in files.items():
        for part in with_below([adapter]):
            errors = [
                i for i in serving_issues(part, options.serve, place) if i.severity == "error"
            ]
            lasting = [issue for issue in errors if not issue.cure.startswith(CONVERT)]
            if lasting:
                servers = tuple(refusing(part, options.serve, place))
                unserved[name] = Unserved(servers, lasting[0].message, lasting[0].cure)
    return unserved


def with_serving(
    verdict: Verdict,
    options: Options,
    inputs: Inputs,
    chain: Sequence[ChainHop],
    made: Merged | Routed | None,
    target: Path | None,
    full: Path | None = None,
) -> tuple[Verdict, tuple[Command, ...]]:
    """The verdict with the servers that can run what it advises, and the commands that serve it.

    The commands are those of the servers of --serve, or, where a merge is written to `target`, of
    the first that reads it. made: what the verdict's composition is saved as. full: where a merge
    is written as a full model alone, which all servers run.
    """
    if verdict.composes and isinstance(made, Merged) and full is not None:
        reason = about_servers(RUNNING, verdict.system or made.name)
        return _with(verdict, reason), _serving_full(full, options)
    head, _, single = verdict.action.partition(":")
    members = {"use-single": [single], "chain": [hop.adapter for hop in chain], "use-base": []}
    members[SWITCH] = [adapter.name for adapter in inputs.given]
    if verdict.composes and isinstance(made, Merged):
        files = {made.name: written(made, target)}
    elif head in members:
        files = {one.name: one for one in inputs.given if one.name in members[head]}
    elif verdict.composes:
        what = f"{verdict.system}, which weighs adapters by the text"
        return _with(verdict, about_servers((), what)), ()
    else:
        return verdict, ()
    read = readers(inputs, options, files)
    what = (verdict.system if verdict.composes else single) or BY_CLIENT.get(head, "the base")
    wanted = (
        [*servers_named(options.serve)] if options.serve else read[:1] if made and target else []
    )
    return _with(verdict, about_servers(read, what)), commands(wanted, options, inputs, files)


def _with(verdict: Verdict, reason: Reason) -> Verdict:
    return replace(verdict, reasons=(*verdict.reasons, reason))


def served_merge(
    merged: Merged, examined: Examination, inputs: Inputs, session: Session
) -> tuple[Examination, tuple[Command, ...]]:
    """The examination of a merge with what the servers of --serve do not read in it, and the
    commands that serve it, without --serve those of the first server that reads it.

    All of them run a full model.
    """
    options, target = session.options, session.target
    if session.only_full is not None:
        return examined, _serving_full(session.only_full, options)
    files = {merged.name: written(merged, target)}
    read = readers(inputs, options, files)
    if not options.serve:
        return examined, commands(read[:1], options, inputs, files)
    warnings = serving_issues(files[merged.name], options.serve, config_of_base(inputs, options))
    # The merge is made where a server cannot read it: that is no failure here.
    warnings = [
        replace(issue, severity="warning") for issue in warnings if issue.severity == "error"
    ]
    findings = with_issues(examined.compatibility, warnings)
    wanted = [name for name in servers_named(options.serve) if name in read]
    examined = replace(examined, compatibility=findings)
    return examined, commands(wanted, options, inputs, files)


def _serving_full(place: Path, options: Options) -> tuple[Command, ...]:
    """The commands that serve a full model: by the servers of --serve, or by the first of all."""
    wanted = [*servers_named(options.serve)] if options.serve else RUNNING[:1]
    each = (serving_commands(server, local_name(str(place)), {}) for server in wanted)
    return tuple(itertools.chain(*each))


def written(merged: Merged, target: Path | None) -> Adapter:
    """A merge as the file that --output writes, or that will stand in "DIR"."""
    return as_written(merged.written, "DIR" if target is None else local_name(str(target)))


def readers(inputs: Inputs, options: Options, files: Mapping[str, Adapter]) -> list[str]:
    """The servers, those of --serve in their versions, that read all of these files as they are."""
    wanted, base = [*RUNNING, *options.serve], config_of_base(inputs, options)
    parts = with_below([*files.values()])
    bad = {one for adapter in parts for one in refusing(adapter, wanted, base)}
    return [server for server in RUNNING if server not in bad]


def commands(
    servers: Sequence[str], options: Options, inputs: Inputs, files: Mapping[str, Adapter]
) -> tuple[Command, ...]:
    """The commands by which servers serve adapters beside their base."""
    declared = next((adapter.base_model for adapter in inputs.given), None)
    base = declared if inputs.base is None else inputs.base.summary().reference
    ranks = [sum(one.rank_range[1] for one in with_below([file])) for file in files.values()]
    rank = max(ranks, default=0)
    found = list[Command]()
    for server in (one for one in servers if one in RUNNING):
        places = dict[str, str]()
        for name, adapter in files.items():
            made = adapter.source.path is None  # by this run, at the place of its reference
            place = adapter.source.reference if made else reference_of(adapter)
            loads = not SERVERS[server].each and REPOSITORY.match(place)  # from the Hub itself
            remote = adapter.source.commit is not None and not loads
            places[name] = place
            if adapter.below:  # which one file has to hold too
                places[name] = f"{name}-served"
                found.append(Command("merge", (place,), (("-o", places[name]),)))
            elif remote or server not in readers(inputs, options, {name: adapter}):
                places[name] = f"{name}-served"
                found.append(Command("convert", (place,), (("-o", places[name]),)))
        found += serving_commands(server, base, places, rank)
    return tuple(dict.fromkeys(found))  # several servers prepare the base alike


def config_of_base(inputs: Inputs, options: Options) -> Path | None:
    """The directory of the base's config, whose class a server loads; None where none is known."""
    if inputs.base is not None:
        return inputs.base.path
    declared = next((adapter.base_model for adapter in inputs.given), None)
    return hub.base_directory(declared) if options.serve else None
