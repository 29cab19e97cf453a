"""`screen --shard I/N`: a share of a library, read and asked alone.

These are the parts of a screen that grow with the library. `combine` compares the adapters, chooses
and proves. What a shard reads, asks and keeps depends on one adapter only, so shares of any size
join: the readings, the answers and the hidden states of the adapters.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from loraprobe._version import __version__
from loraprobe.adapters import check_apart
from loraprobe.base import Base
from loraprobe.errors import UsageError
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.ledger import as_plain
from loraprobe.execution import share_of
from loraprobe.library import Member, fitted, keep_readings, read_library
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import Asker, looks_of, system_alone
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.inputs import Inputs, base_of
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.scorer import open_scorer
from loraprobe.pipeline.screening import Given, begun
from loraprobe.pipeline.screening_workers import open_library_units
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shard_files import Shard
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.tasks import Task


def screen_shard(adapters: Sequence[Any], place: Path, **given: Unpack[Given]) -> Shard:
    """Reads the share options.shard of a library and asks it the items that choose.

    Raises UsageError where a share cannot tell what a whole library tells: the base of most
    adapters, and the better form of the prompts.
    """
    session, read = begun(given)
    base = _opened(given.get("base"), bool(read), session.options, given.get("written", ()))
    session.options = replace(session.options, state=place, resume=True)
    made = Shard.begun(session.options, _fingerprint(base), place)
    assert session.options.shard is not None
    own = share_of([1.0] * len(adapters), session.options.shard)
    members = _read(adapters, own, base, session, place)
    usable = [member for member in members if member.usable]
    asked = 0 if read else None
    if base is not None and read and usable:
        records = [member.record for member in members]
        places = {r.name: (at, r.sha256) for at, r in zip(own, records, strict=True)}
        tasks = given.get("tasks", ())
        with open_library_units(adapters, base, tasks, session.options, places) as session.units:
            asked = _ask(usable, base, read, session)
    return made.completed(place, adapters=len(own), questions=asked)


def _opened(base: Any, asks: bool, options: Options, written: Sequence[Path]) -> Base | None:
    """The base that was named; None without one."""
    if base in (None, "auto"):
        if asks:
            raise UsageError(
                "A share of a library cannot tell which base most adapters name: give --base REF."
            )
        return None
    opened = base_of(base, (), code=options.trust_remote_code)
    for target in written:
        check_apart(target, [opened.path])
    return opened


def _fingerprint(base: Base | None) -> Mapping[str, Any]:
    """What all shards of a run have in common."""
    versions = {"loraprobe": __version__, "torch": importlib.metadata.version("torch")}
    found: Mapping[str, Any] = as_plain(
        {"base": None if base is None else base.identity, "versions": versions}
    )
    return found


def _read(
    adapters: Sequence[Any], own: Sequence[int], base: Base | None, session: Session, place: Path
) -> list[Member]:
    """Reads the share and keeps the readings in the shard's directory; its members."""
    allow, progress = session.options.allow, session.progress

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("read", done, total)

    with session.stage("read"):
        members = read_library(adapters, allow=allow, progress=told, only=own)
    keep_readings(members, place)
    with session.stage("check"):
        return fitted(members, base, allow)


def _ask(usable: Sequence[Member], base: Base, tasks: Sequence[Task], session: Session) -> int:
    """Asks base and adapters alone all looks; how many systems."""
    options = session.options
    parts = split_for_screening(tasks, options)
    scorer, _ = open_scorer(base, options.dtype, session)
    if options.chat_template == "auto" and getattr(scorer.tokenizer, "chat_template", None):
        raise UsageError(
            "A share of a library cannot tell whether prompts are better asked with the chat "
            "template: give --chat-template on or off."
        )
    by_name = {member.record.name: member for member in usable}
    ledger, _ = open_ledger([member.open() for member in usable], base, tasks, session)
    inputs = Inputs((), (), base, parts.apart)
    with Evaluator(inputs, session, scorer, ledger, parts.apart) as evaluator:
        asker = Asker(evaluator, lambda name: system_alone(name, lambda n: by_name[n].open(), base))
        looks = looks_of(scorer, parts.apart, options)
        return max(len(asker.ask([BASE, *by_name], look)) for look in looks)
