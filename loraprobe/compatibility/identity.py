"""Compares the base models, revisions, task types and tokenizers of adapters.

Names are compared exactly, never by substring: "llama-7b" is not "llama-7b-chat". Only a trailing
slash is ignored. Two names that may mean one model (a local path, another letter case, a missing
owner) are the issue `base-unverified`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from loraprobe.adapters import Adapter
from loraprobe.adapters.names import QUANTISED, is_path, public_name, relation, unquantised
from loraprobe.adapters.types import Parent
from loraprobe.base import Base
from loraprobe.cache import file_hash
from loraprobe.errors import BaseError
from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.front_matter import KEY, read_front_matter
from loraprobe.hub import read_card
from loraprobe.hub.client import CARD
from loraprobe.records import NOTHING, Command, Issue, Severity
from loraprobe.wiring import extensions

Purpose = Literal["inspect", "measure", "merge", "route"]
PARENT = "on-adapter"


def identity_issues(
    adapters: Sequence[Adapter], base: Base | None, purpose: Purpose, fit: bool
) -> Iterator[Issue]:
    """Issues about base names, revisions, task types, tokenizers. fit: paths and shapes agree."""
    by_base: dict[str, tuple[str, ...]] = {}  # name of a base -> the adapters that name it
    for adapter in adapters:
        if adapter.base_model:
            by_base[adapter.base_model] = (*by_base.get(adapter.base_model, ()), adapter.name)
    yield from _base_names(adapters, "warning" if base is None else "note")
    yield from _bases_of_pairs(by_base, purpose, fit)
    if base is not None:
        yield from _base_given(by_base, base)
    yield from _revisions(adapters, None if base is None else base.commit)
    for named, ours in by_base.items():
        if QUANTISED.search(named):
            yield finding(
                "quantised-base",
                ours,
                f"{_trained(ours)} on {_public(named)}, a quantised copy by its name; on the full "
                "weights the effect differs a little.",
            )
    yield from _task_types(adapters, purpose)
    yield from _tokenizers(adapters, base)


def parent_issues(adapters: Sequence[Adapter], base: Base | None) -> Iterator[Issue]:
    """Adapters that were trained on others, unless the base holds these, and those that it holds.

    A base holds the adapters of which its card says so, by their sha256. A parent that only the
    card of an adapter names was concluded from the weights, and the finding is a warning.
    """
    held = _merged_into(base)
    for adapter in adapters:
        if adapter.sha256 in held:
            yield finding(
                PARENT,
                (adapter.name,),
                f"{adapter.name} is merged into the base already.",
                cure=f"Leave {adapter.name} out, or give the base without it.",
            )
        lacking = [p for p in adapter.parents if not (p.adapter and p.adapter.sha256 in held)]
        if lacking:
            names, file = listing(p.public for p in lacking), lacking[0].named_in
            missing = "" if all(p.adapter for p in lacking) else ", which is not found"
            command = base_with(adapter.parents)
            write = f"Write that base by {command} and give DIR" if command else "Give that base"
            yield finding(
                PARENT,
                (adapter.name,),
                f"{adapter.name} was trained on the base with {names} in it{missing}, as its "
                f"{file} says.",
                severity="warning" if file == CARD else None,
                cure=f"{write} as --base; where the base holds it already, --allow {PARENT}.",
            )


def base_with(parents: Sequence[Parent]) -> Command:
    """The command that writes the base on which an adapter was trained, with its parents in it.

    NOTHING where no extension has a format for that.
    """
    flag = next((format_.flag for one in extensions() for format_ in one.output_formats), None)
    if flag is None:
        return NOTHING
    names = (parent.adapter.base_model for parent in parents if parent.adapter)
    base = public_name(next(names, None)) or "BASE"
    method = (("--method", "sum"),) if len(parents) > 1 else ()
    options = (*method, ("--base", base), (flag, "DIR"))
    return Command("merge", tuple(parent.public for parent in parents), options)


def _merged_into(base: Base | None) -> set[str]:
    """The sha256 of the adapters of which a base was made here, as its card says."""
    if base is None or not (base.path / CARD).is_file():
        return set()
    own = read_front_matter(read_card(base.path / CARD, base.reference)).get(KEY)
    sources = own.get("sources") if isinstance(own, dict) else None
    rows = sources if isinstance(sources, list) else []
    return {str(row.get("sha256")) for row in rows if isinstance(row, dict)}


def _base_names(adapters: Sequence[Adapter], severity: Severity) -> Iterator[Issue]:
    """Adapters that name no base, with this severity, or name it by a path."""
    for adapter in adapters:
        if not adapter.base_model:
            yield finding(
                "base-unknown",
                (adapter.name,),
                f"{adapter.name} does not say which base model it was trained on.",
                severity=severity,
            )
    for adapter in adapters:
        public = public_name(adapter.base_model)
        if adapter.base_model and public != adapter.base_model:
            yield finding(
                "base-is-a-path",
                (adapter.name,),
                f"{adapter.name} names its base by a path of the machine that it was trained on; "
                f"the files written here use the name {public or '(none)'}.",
            )


def _bases_of_pairs(
    by_base: Mapping[str, tuple[str, ...]], purpose: Purpose, fit: bool
) -> Iterator[Issue]:
    """Each two names of bases that are not the same."""
    for (one, ours), (other, theirs) in combinations(by_base.items(), 2):
        named = _public(one), _public(other)
        if named[0] == named[1]:
            named = _place(one), _place(other)
        who = f"{_trained(ours)} on {named[0]}, {listing(theirs)} on {named[1]}"
        kind = relation(one, other)
        if kind == "unverified":
            # What is written here names a local base by the last part of its path.
            written = public_name(one) == other or one == public_name(other)
            yield finding(
                "base-unverified",
                ours + theirs,
                f"{who}; these names may mean one model, which was not checked.",
                severity="note" if written else "warning",
            )
        elif kind == "different":
            shapes = ", and their modules do not match either"
            if fit:
                shapes = (
                    ": another base with the same shapes (paths and shapes fit, which says nothing "
                    "about the weights)"
                )
            copy = unquantised(one) == unquantised(other)
            origin = " By its name one may be a copy of the other." if copy else ""
            mild = fit and (purpose in ("route", "measure") or (copy and purpose == "inspect"))
            yield finding(
                "base-mismatch",
                ours + theirs,
                f"{who}{shapes}.{origin}",
                severity="warning" if mild else "error",
            )


def _base_given(by_base: Mapping[str, tuple[str, ...]], base: Base) -> Iterator[Issue]:
    """Each name of a base that is not that of the base which is used."""
    # A directory of two names, such as models/base, looks like a Hub id.
    local = Path(base.reference).expanduser().is_dir()
    for named, ours in by_base.items():
        kind = relation(named, base.reference.partition("@")[0])
        place = os.path.abspath(os.path.expanduser(named))
        if kind == "same" or place in (os.path.abspath(base.path), os.path.realpath(base.path)):
            continue
        code, difference = "base-mismatch", "the base given here is another"
        if kind == "unverified" or local:
            code = "base-unverified"
            difference = "the base given here has another name and was not compared with it"
        yield finding(
            code,
            ours,
            f"{_trained(ours)} on {_public(named)}; {difference}.",
            severity="warning" if code == "base-mismatch" else "note",
            cure=f"Give --base {_public(named)} if {base.reference} is not that model.",
        )


def _revisions(adapters: Sequence[Adapter], commit: str | None) -> Iterator[Issue]:
    """Other revisions of one base in two adapters, or than the commit of the base given."""
    given = [(a, str(a.config["revision"])) for a in adapters if a.config.get("revision")]
    for (a, first), (b, second) in combinations(given, 2):
        names = a.base_model, b.base_model
        if first != second and all(names) and relation(*map(str, names)) == "same":
            yield finding(
                "revision-mismatch",
                (a.name, b.name),
                f"{a.name} was trained on {_public(a.base_model)} at {first}, {b.name} at "
                f"{second}.",
            )
    for adapter, revision in given:
        if commit and re.fullmatch(r"[0-9a-f]{40}", revision) and revision != commit:
            yield finding(
                "revision-mismatch",
                (adapter.name,),
                f"{adapter.name} was trained on its base at {revision}; the base given here is at "
                f"{commit}.",
                cure=f"Give --base {_public(adapter.base_model)}@{revision}.",
            )


def _task_types(adapters: Sequence[Adapter], purpose: Purpose) -> Iterator[Issue]:
    """Task types that differ, and those that an evaluation does not run."""
    tasks = {a.name: str(a.task_type) for a in adapters if a.task_type}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name} is {task}" for name, task in tasks.items())
        yield finding(
            "task-type-mismatch",
            tuple(tasks),
            f"The adapters are of different task types ({listed}), so they need different heads.",
        )
    for name, task in tasks.items():
        if purpose == "route" and task != "CAUSAL_LM":
            yield finding(
                "task-type-unsupported",
                (name,),
                f"{name} is an adapter for {task}; evaluation runs causal language models only.",
            )


def _public(named: str | None) -> str:
    """A base's name that may be published in a message: only the last part of a path."""
    return public_name(named) or "a path without a name"


def _place(named: str) -> str:
    """A base's name, of which the last part alone does not tell where it is."""
    return f"a path that ends in {_public(named)}" if is_path(named) else named


def _tokenizers(adapters: Sequence[Adapter], base: Base | None) -> Iterator[Issue]:
    files = {
        a.name: file
        for a in adapters
        if a.source.path and (file := a.source.path / "tokenizer.json").is_file()
    }
    rows = None if base is None else base.vocab_size
    if rows is None and len({file_hash(file) for file in files.values()}) < 2:
        return  # nothing to compare, so the large files are not parsed
    sizes = {}
    for name, file in files.items():
        try:
            size = Base(name, file.parent).tokenizer_size
        except BaseError as error:
            yield finding("tokenizer-unreadable", (name,), str(error))
            continue
        if size is not None:
            sizes[name] = size
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield finding(
            "tokenizer-mismatch",
            tuple(sizes),
            f"The tokenizers saved with the adapters differ in size ({listed}): tokens were added.",
        )
    for name, size in sizes.items():
        if rows is not None and size > rows:
            yield finding(
                "vocabulary-mismatch",
                (name,),
                f"The tokenizer of {name} has {size} tokens, the base only {rows} rows.",
                severity="warning",
                cure="Resize the base's embedding as in the adapter's training, or drop the added "
                "tokens.",
            )


def _trained(names: Sequence[str]) -> str:
    return f"{listing(names)} {'was' if len(names) == 1 else 'were'} trained"
