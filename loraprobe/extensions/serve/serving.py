"""What servers can run: of a file by the rules of servers.toml, of a run by its systems; and the
commands that serve a file, a merge, or what a run advises.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraprobe import hub
from loraprobe.adapters import Adapter, Source, local_name, public_name
from loraprobe.adapters.config import PEFT_DEFAULT
from loraprobe.adapters.files import open_tensors
from loraprobe.adapters.names import VOCABULARY, root
from loraprobe.adapters.saving import config_of
from loraprobe.base import Base, module_names
from loraprobe.errors import BaseError, UsageError
from loraprobe.extensions.serve import SERVE
from loraprobe.formatting import listing
from loraprobe.hub import reference_of
from loraprobe.merging import Merged
from loraprobe.records import (
    BY_PROMPT,
    BY_TEXT,
    ChainHop,
    Command,
    Issue,
    Reason,
    Severity,
    Verdict,
    display_name,
    kinds,
)
from loraprobe.verdict.evidence import SWITCH, Exclusion
from loraprobe.verdict.reasons import reason_of

if TYPE_CHECKING:
    from loraprobe.evaluation import System


# refuses: the file is not loaded. misreads: it is loaded as another function, without an error.
# may refuse: it depends on the base model.
Effect = Literal["refuses", "misreads", "may refuse"]


@dataclass(frozen=True)
class KnownServer:
    """A server, the version whose source was read, and when.

    `ranks` are the values of its limit on the rank, the default first; () for none. The others are
    parts of the commands that serve adapters (servers.toml). `address`: where the server listens by
    default, if a request names an adapter as its model there.
    """

    version: str
    checked: str
    source: str
    ranks: tuple[int, ...] = ()
    once: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    start: str = ""
    loras: str = ""
    adapter: str = ""
    alone: tuple[str, ...] = ()
    address: str = ""


@dataclass(frozen=True)
class Feature:
    """What a file may have that a server does not read: its name in a sentence, and its cure.

    `consequence` says what follows where a server reads the file without it. `marks`: what an
    adapter has one of that has the feature, as codes of extras and issues and kinds of layers.
    """

    what: str
    cure: str
    consequence: str = ""
    marks: tuple[str, ...] = ()


_READ = tomllib.loads(Path(__file__).with_name("servers.toml").read_text(encoding="utf-8"))
SERVERS: Mapping[str, KnownServer] = {
    name: KnownServer(**{**row, **{k: tuple(v) for k, v in row.items() if isinstance(v, list)}})
    for name, row in _READ["servers"].items()
}
FEATURES: Mapping[str, Feature] = {
    name: Feature(**{**row, "cure": _READ["cures"].get(row["cure"], row["cure"])})
    for name, row in _READ["features"].items()
}
CONVERTIBLE = {  # codes of what `loraprobe convert` writes as servers read it
    f"{SERVE}{name}"
    for name, row in _READ["features"].items()
    if row["cure"] in ("convert", "like")
}
# (feature, servers, effect, the first version that reads it or "") of what servers do not read.
RULES: Sequence[tuple[str, Sequence[str], Effect, str]] = [
    (feature, names, effect, fixed[0] if fixed else "")
    for feature, names, effect, *fixed in _READ["rules"]
]

OK = f"{SERVE}ok"
NAMED = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\.(?!weight$|bias$)")
SEVERITIES: Mapping[Effect, Severity] = {
    "refuses": "error",
    "misreads": "error",
    "may refuse": "warning",
}


# ---- what servers read of a file -----------------------------------------------------------------


def serving_issues(
    adapter: Adapter, wanted: Sequence[str], base: Path | None = None
) -> list[Issue]:
    """What servers would refuse or read as another function in this file, as issues.

    base: the directory of the base's config.json, whose class a server loads; None if unknown.
    wanted: names of servers, or "all", also with commas between them. A server without an error
    gets a note with the command that starts it. A feature that only older versions do not read is a
    warning. Raises UsageError for a name that is not known.
    """
    named_servers = servers_named(wanted)
    place = shlex.quote(adapter.source.public)
    named = shlex.quote(public_name(adapter.base_model) or "BASE")
    groups: dict[Unread, list[str]] = {}
    for server, unread in _unread(adapter, named_servers, base):
        groups.setdefault(unread, []).append(server)
    issues = [
        Issue(
            severity,
            f"{SERVE}{feature}",
            (adapter.name,),
            _sentence(feature, effect, [f"{name}{before}" for name in servers], adapter),
            FEATURES[feature].cure.format(
                place=place,
                base=named,
                most=max(n for s in servers for n in (0, *SERVERS[s].ranks)),
            ),
        )
        for (feature, effect, severity, before), servers in groups.items()
    ]
    bad = servers_refusing(adapter, wanted, base)
    for name in named_servers:
        if name not in bad:
            places, rank = {adapter.name: adapter.source.public}, adapter.rank_range[1]
            cure = " && ".join(map(str, serving_commands(name, adapter.base_model, places, rank)))
            message = f"{name} {SERVERS[name].version} reads it as it is."
            issues.append(Issue("note", OK, (adapter.name,), message, cure))
    return issues


def servers_refusing(
    adapter: Adapter, wanted: Sequence[str], base: Path | None = None
) -> list[str]:
    """The servers that would refuse a file or read it as another function, as `serving_issues`."""
    servers = servers_named(wanted)
    bad = {name for name, unread in _unread(adapter, servers, base) if unread[2] == "error"}
    return [name for name in servers if name in bad]


def as_written(adapter: Adapter, place: str) -> Adapter:
    """An adapter as the file that it will be in the directory `place`."""
    source = Source(reference=place)
    return replace(adapter, config=config_of(adapter), weights_file=None, source=source)


def serve_commands(adapter: Adapter) -> list[str]:
    """The commands of the servers that read an adapter as it is written, in its directory."""
    issues = serving_issues(as_written(adapter, "."), ["all"])
    return [issue.cure for issue in issues if issue.code == OK and issue.cure]


def serving_commands(
    server: str, base: str | None, places: Mapping[str, str], rank: int = 0
) -> list[Command]:
    """The commands that serve adapters beside their base, in order; none for peft.

    base: as it is named in public. places: name of an adapter -> its directory. rank: the largest
    of the adapters.
    """
    known, named = SERVERS[server], public_name(base) or "BASE"
    limit = next((n for n in sorted(known.ranks) if n >= rank), None)
    raised = known.ranks and limit is not None and rank > known.ranks[0]
    of_hub = "/" in named
    words = {
        "base": "{0}",
        "model": "--remote {0}" if of_hub else "{0}",
        "config": "--base-model-id {0}" if of_hub else "--base {0}",
        "limit": f" --max-lora-rank {limit}" if raised else "",
        "slots": f" --max-loras {len(places) + 1}" if len(places) > 1 else "",
    }
    adapters = [{"name": _plain(name), "place": f"{{{k}}}"} for k, name in enumerate(places, 1)]
    lines = [one.format(**words) for one in known.once]
    lines += [one.format(**words, **own) for own in adapters for one in known.each]
    lines += [
        one.format(name=_plain(named.rpartition("/")[2])) for one in known.alone if not adapters
    ]
    if known.start:
        loras = "".join(known.adapter.format(**own) for own in adapters)
        more = known.loras.format(**words, adapters=loras) if adapters else ""
        lines.append(known.start.format(**words) + more)
    return [Command("shell", (named, *places.values()), text=line) for line in lines]


def _plain(name: str) -> str:
    """A name of letters, digits and a few signs, which servers and shells take as it is."""
    return re.sub(r"[^\w.-]", "-", name)


def servers_named(wanted: Sequence[str]) -> list[str]:
    """The servers of --serve. Raises UsageError for a name that is not known."""
    names = [name.strip() for text in wanted for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--serve names no server; give {', '.join(SERVERS)} or all.")
    for name in names:
        if name not in (*SERVERS, "all"):
            known = f"{', '.join(SERVERS)} and all"
            raise UsageError(f"--serve knows no server {name!r}; there are {known}.")
    return [*SERVERS] if "all" in names else list(dict.fromkeys(names))


Unread = tuple[str, Effect, Severity, str]  # feature, effect, severity, " before VERSION" or ""


def _unread(
    adapter: Adapter, servers: Sequence[str], base: Path | None
) -> Iterator[tuple[str, Unread]]:
    """(server, what it does not read) by the rules and by the limits on ranks."""
    held = _features(adapter)
    if base is not None and _of_another_class(adapter, Base(adapter.base_model or "", base)):
        held.add("other-class")
    for feature, names, effect, fixed in RULES:
        for server in names if feature in held else ():
            if server in servers:
                before = f" before {fixed}" if fixed else ""
                yield server, (feature, effect, "warning" if fixed else SEVERITIES[effect], before)
    for server in servers:
        ranks, rank = SERVERS[server].ranks, adapter.rank_range[1]
        if ranks and rank > max(ranks):
            yield server, ("rank", "refuses", "error", "")
        elif ranks and rank > ranks[0]:
            yield server, ("rank-default", "may refuse", "warning", "")


def _sentence(feature: str, effect: Effect, servers: Sequence[str], adapter: Adapter) -> str:
    known, several = FEATURES[feature], len(servers) > 1
    what = known.what.format(rank=adapter.rank_range[1])
    if effect == "misreads":
        return f"{listing(servers)} misread{'' if several else 's'} {what}: {known.consequence}."
    if effect == "refuses":
        return f"{listing(servers)} refuse{'' if several else 's'} {what}."
    return f"{listing(servers)} may refuse {what}{known.consequence}."


def _features(adapter: Adapter) -> set[str]:
    """The features that an adapter has, by its tensors, layers and issues, or by `CHECKS`."""
    marks = {extra.code for extra in adapter.extras} | {issue.code for issue in adapter.issues}
    marks |= {info.kind for info in adapter.layout.values()}
    marked = {name for name, known in FEATURES.items() if not marks.isdisjoint(known.marks)}
    return marked | {name for name, holds in CHECKS.items() if holds(adapter)}


def _of_another_class(adapter: Adapter, base: Base) -> bool:
    """Whether the names of modules are not those of the class that the base's config names.

    transformers is asked only where there may be two classes: the config has a text_config, or the
    adapter's layers lie deeper than those of a text-only class.
    """
    try:
        nested = bool(base.config.get("text_config"))
    except BaseError:
        return False
    paths = adapter.touched
    if not nested and all(root(path).count(".") < 2 for path in paths):
        return False
    names = module_names(base.path)
    return (
        names is not None
        and names.text is not None
        and (names.is_text(paths) != (base.architecture == names.text.name))
    )


def _scaled_otherwise(adapter: Adapter) -> bool:
    """Whether the scaling of a module is not that of `r` and `lora_alpha`, by peft's formula."""
    r, alpha = (float(adapter.config.get(key, PEFT_DEFAULT)) for key in ("r", "lora_alpha"))
    usual = alpha / (math.sqrt(r) if adapter.config.get("use_rslora") else r)
    return any(not math.isclose(info.scaling, usual) for info in adapter.layout.values())


def _alphas_differ(adapter: Adapter) -> bool:
    """Whether a module's scaling times its rank is not lora_alpha, without rsLoRA."""
    alpha = float(adapter.config.get("lora_alpha", PEFT_DEFAULT))
    return not adapter.config.get("use_rslora") and any(
        not math.isclose(info.scaling * info.rank, alpha) for info in adapter.layout.values()
    )


def _vocabulary(adapter: Adapter, embedding: bool) -> bool:
    paths = adapter.layout.values()
    return any(
        (info.kind == "embedding") == embedding and info.path.rpartition(".")[2] in VOCABULARY
        for info in paths
    )


def _attention(adapter: Adapter, present: Sequence[str], absent: str) -> bool:
    """Whether a layer has one of these projections and lacks the other."""
    parents = {path.rpartition(".")[0] for path in adapter.layout if path.endswith(tuple(present))}
    return any(f"{parent}.{absent}" not in adapter.layout for parent in parents)


# Feature without marks -> whether an adapter has it.
CHECKS: Mapping[str, Callable[[Adapter], bool]] = {
    "rank-pattern": lambda adapter: len(set(adapter.rank_range)) > 1,
    "scaling-pattern": _scaled_otherwise,
    "alpha-pattern": _alphas_differ,
    "rslora": lambda adapter: bool(adapter.config.get("use_rslora")) and adapter.rank_range[1] > 1,
    "embedding": lambda adapter: _vocabulary(adapter, True),
    "output-head": lambda adapter: _vocabulary(adapter, False),
    "adapter-name": lambda adapter: (
        adapter.weights_file is not None
        and any(map(NAMED.search, open_tensors(adapter.weights_file.parent).shapes))
    ),
    "target-expression": lambda adapter: (
        isinstance(adapter.config.get("target_modules"), str)
        and adapter.config["target_modules"] not in ("all-linear", "all")
    ),
    "latent-attention": lambda adapter: any(p.endswith(".kv_b_proj") for p in adapter.layout),
    "no-value": lambda adapter: _attention(adapter, [".q_proj"], "v_proj"),
    "no-query": lambda adapter: _attention(adapter, [".k_proj", ".v_proj"], "q_proj"),
}


# ---- what servers can run of a run ---------------------------------------------------------------

RUNNING = [name for name, known in SERVERS.items() if known.once or known.start]  # not peft
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+$")  # of the Hub, as servers take it
BY_CLIENT = {
    "chain": "a chain, which its client asks",
    SWITCH: "adapters, of which each request names one",
}
ReadBy = tuple[list[str], tuple[Command, ...]]  # servers that read files, commands that serve them


def _excluded(servers: Sequence[str], why: str = "") -> Exclusion:
    """That servers cannot run a system."""
    return Exclusion("not-servable", {"servers": listing(servers), "why": why.rstrip(" .")})


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
        return servers_named(self.wanted) if self.wanted else []

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

    def unserved(self, compositions: Sequence[System]) -> dict[str, Exclusion]:
        """The systems that the servers of --serve cannot run, by name; none without the option.

        compositions: merges with their files. No server weighs adapters by the text, so none runs a
        router; but of that by text they run the adapters, and `loraprobe proxy` names one in each
        request. Where that was not measured, the router by prompt counts as its adapters. An
        adapter that `loraprobe convert` rewrites for the servers counts as served.
        """
        if not self.wanted:
            return {}
        files = {adapter.name: adapter for adapter in self.given}
        files |= {
            one.name: as_written(one.artifact.written, "DIR")
            for one in compositions
            if one.artifact
        }
        by_kind = _excluded(self.named)
        mixed = [one for one in compositions if not kinds()[one.kind].loadable]
        names = [one.name for one in mixed]
        stand_in = BY_TEXT if any(name.startswith(BY_TEXT) for name in names) else BY_PROMPT
        by_prompt = [name for name in names if name.startswith(stand_in)]
        unserved = {name: by_kind for name in names if name not in by_prompt}
        nameless = [name for name in self.named if name in RUNNING and not SERVERS[name].address]
        if nameless and stand_in == BY_TEXT:
            why = "; its requests do not name an adapter as their model"
            unserved |= dict.fromkeys(by_prompt, _excluded(nameless, why))
        for name, adapter in files.items():
            lasting = [i for i in self.errors(adapter) if i.code not in CONVERTIBLE]
            if lasting:
                servers = servers_refusing(adapter, self.wanted, self.config)
                unserved[name] = _excluded(servers, f"; {lasting[0].message} {lasting[0].cure}")
        refused = next((unserved[one.name] for one in self.given if one.name in unserved), None)
        return unserved if refused is None else unserved | dict.fromkeys(by_prompt, refused)

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
    ) -> tuple[tuple[Reason, ...], tuple[Command, ...]]:
        """That servers can run what a verdict advises, and the commands that serve that.

        made: the verdict's composition, where that is a merge.
        """
        single = verdict.action.adapter
        routed = (verdict.system or "") if verdict.composes and made is None else ""
        by_text = routed.startswith(BY_TEXT)
        by_prompt = by_text or routed.startswith(BY_PROMPT)
        head = SWITCH if by_prompt else verdict.action.kind  # a server runs both alike
        members = {"use-single": [single], "chain": [hop.adapter for hop in chain], "use-base": []}
        each = {**verdict.by_task}.values() if not by_prompt else ()
        members[SWITCH] = [*each] or [adapter.name for adapter in self.given]
        if verdict.composes and made is not None:
            what, (readers, commands) = (
                display_name(verdict.system or made.name),
                self.of_merge(made),
            )
        elif head in members:
            files = {one.name: one for one in self.given if one.name in members[head]}
            what = single or BY_CLIENT.get(head, "the base")
            what = f"the router {display_name(routed)}, as {what}" if by_prompt else what
            readers, named = self.readers(files), self.named
            if by_text:
                readers, named = ([n for n in of if SERVERS[n].address] for of in (readers, named))
                what = f"the adapters of the router {BY_TEXT}, behind loraprobe proxy"
            commands = self.commands(named, files)
            if by_text:
                commands += self.fronts(named)
        elif verdict.composes:
            what, readers, commands = (
                f"{display_name(routed)}, which mixes adapters by the text",
                [],
                (),
            )
        else:
            return (), ()
        who = listing(readers) if readers else "No server"
        return (reason_of("servable", float(len(readers)), who=who, what=what),), commands

    def fronts(self, servers: Sequence[str]) -> tuple[Command, ...]:
        """The commands that name the adapter of each request before these servers."""
        place = local_name(str(self.target or "DIR"))
        addresses = [SERVERS[name].address for name in servers if name in RUNNING]
        return tuple(Command("proxy", (place,), (("--server", at),)) for at in addresses)

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
        """The servers that read all of these files as they are."""
        bad = {
            server
            for adapter in files.values()
            for server in servers_refusing(adapter, RUNNING, self.config)
        }
        return [server for server in RUNNING if server not in bad]

    def commands(self, servers: Sequence[str], files: Mapping[str, Adapter]) -> tuple[Command, ...]:
        """The commands by which servers serve adapters beside their base."""
        base = self.declared if self.base is None else self.base.summary().reference
        ranks = [file.rank_range[1] for file in files.values()]
        found = list[Command]()
        for server in (one for one in servers if one in RUNNING):
            places = dict[str, str]()
            for name, adapter in files.items():
                made = adapter.source.path is None  # by this run, at the place of its reference
                place = adapter.source.reference if made else reference_of(adapter)
                loads = not SERVERS[server].each and REPOSITORY.match(place)  # from the Hub itself
                remote = adapter.source.commit is not None and not loads
                misread = remote or server not in self.readers({name: adapter})
                places[name] = f"{name}-served" if misread else place
                if misread:
                    found.append(Command("convert", (place,), (("-o", places[name]),)))
            found += serving_commands(server, base, places, max(ranks, default=0))
        return tuple(dict.fromkeys(found))  # several servers prepare the base alike
