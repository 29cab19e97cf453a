"""`screen`: a library of adapters, and with a task what of it to use.

Without a task the library is described: what can be used, copies, families, outliers.

With a task one part of each task's items chooses, the other proves. On the first, base and adapters
answer alone, and every pair is forecast from that (`choosing`). On the second, the best few are
composed and evaluated by rounds beside the base, the best single adapters and the members
(`proving`). The items that prove took no part in the choice, so the choice out of the whole library
needs no correction; the choice among the finalists is covered by the intervals. Where one adapter
leaves no room for a gain, it alone is proved.

A share of a library (`--shard I/N`) is read and asked alone: the parts that grow with the library.
`combine` compares the adapters, chooses and proves. What a shard reads, asks and keeps depends on
one adapter only, so shares of any size join: the readings, the answers and the hidden states.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from loraprobe._version import __version__
from loraprobe.errors import UsageError
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.ledger import as_plain
from loraprobe.execution import share_of
from loraprobe.library import fitted, keep_readings, read_library
from loraprobe.pipeline.audits import audit_of
from loraprobe.pipeline.estimating import CostEstimate
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Adapters, Given, Inputs, base_apart
from loraprobe.pipeline.screening.answer import audit_of_screen
from loraprobe.pipeline.screening.choosing import Choosing
from loraprobe.pipeline.screening.cost import announce_screen, estimate_of_screen
from loraprobe.pipeline.screening.opening import (
    begin,
    open_evaluator,
    open_library,
    require_composable,
    units_of,
)
from loraprobe.pipeline.screening.proving import ask_alone, prove_sets
from loraprobe.pipeline.shard_files import Shard
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.records import Audit, Compatibility


def screen(adapters: Adapters, **given: Unpack[Given]) -> Audit:
    """Reads a library of adapters, describes it, and with tasks screens it for them.

    base: "auto", and None with tasks, is the base that most adapters name. An adapter that cannot
    be used is named in the audit's `library`. Raises LoraprobeError if none can be read, or base or
    tasks cannot; for tasks with too few items, and for fewer than two usable adapters.
    """
    session, tasks = begin(**given)
    if tasks:
        given["base"] = given.get("base") or "auto"
    found, base = open_library(adapters, session, **given)
    if base is None or not tasks:
        inputs = Inputs((), (), base)
        return audit_of(session, inputs, Examination(Compatibility()), library=found.library)
    require_composable(found, session.options)
    parts = split_for_screening(tasks, session.options)
    places = range(len(found.members))
    with (
        units_of(adapters, found.members, places, base, session, **given) as session.units,
        open_evaluator(found.usable, base, tasks, parts, session) as evaluator,
    ):
        choosing = Choosing.of(found.usable, evaluator)
        announce_screen(choosing, parts)
        proving = replace(evaluator.with_setup(), tasks=parts.left)
        proved = ask_alone(choosing, proving) or prove_sets(choosing, proving)
        return audit_of_screen(found.library, proving, tasks, proved)


def estimate_screen(adapters: Adapters, **given: Unpack[Given]) -> CostEstimate:
    """What `screen` of the same would take; nothing is asked but a few questions to time them."""
    if not given.get("tasks"):
        raise UsageError("--dry-run tells what asking the adapters takes; add --task FILE.")
    session, tasks = begin(**given)
    given["base"] = given.get("base") or "auto"
    found, base = open_library(adapters, session, **given)
    assert base is not None
    require_composable(found, session.options)
    parts = split_for_screening(tasks, session.options)
    with tempfile.TemporaryDirectory() as place:  # of a ledger that nobody needs
        session.options = replace(session.options, state=Path(place), resume=False)
        with open_evaluator(found.usable, base, tasks, parts, session) as evaluator:
            return estimate_of_screen(Choosing.of(found.usable, evaluator), parts)


def screen_shard(adapters: Adapters, place: Path, **given: Unpack[Given]) -> Shard:
    """Reads the share options.shard of a library and asks it the items that choose.

    Raises UsageError where a share cannot tell what a whole library tells: the base of most
    adapters, and the better form of the prompts.
    """
    session, tasks = begin(**given)
    wanted, base = given.get("base"), None
    if wanted not in (None, "auto"):
        base = base_apart((), **given)
    elif tasks:
        raise UsageError(
            "A share of a library cannot tell which base most adapters name: give --base REF."
        )
    # It goes on with what is there, and asks all that it holds, whatever that takes.
    session.options = replace(session.options, state=place, resume=True, budget=None)
    options, versions = session.options, {"loraprobe": __version__}
    versions["torch"] = importlib.metadata.version("torch")
    identity = None if base is None else base.identity
    made = Shard.begun(options, as_plain({"base": identity, "versions": versions}), place)
    assert options.shard is not None
    own = share_of([1.0] * len(adapters), options.shard)
    with session.stage("read"):
        members = read_library(adapters, allow=options.allow, progress=session.progress, only=own)
    keep_readings(members, place)
    with session.stage("check"):
        members = fitted(members, base, options.allow)
    usable, asked = [member for member in members if member.usable], 0
    if base is not None and tasks and usable:
        parts = split_for_screening(tasks, options)
        with (
            units_of(adapters, members, own, base, session, **given) as session.units,
            open_evaluator(usable, base, tasks, parts, session) as evaluator,
        ):
            choosing = Choosing.of(usable, evaluator)
            names = [BASE, *choosing.asker.members]
            asked = max(len(choosing.asker.ask(names, look)) for look in choosing.looks)
    return made.completed(place, adapters=len(own), questions=asked if tasks else None)
