"""`screen --shard I/N`: a share of a library, read and asked alone.

These are the parts of a screen that grow with the library. `combine` compares the adapters, chooses
and proves. What a shard reads, asks and keeps depends on one adapter only, so shares of any size
join: the readings, the answers and the hidden states of the adapters.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.adapters import check_apart
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.errors import UsageError
from loraprobe.evaluation.ledger import as_plain
from loraprobe.execution import share_of
from loraprobe.library import Member, fitted, keep_readings, read_library
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import ask_alone
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.inputs import Inputs, base_of, check_names
from loraprobe.pipeline.opening_tasks import open_tasks
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.scorer import open_scorer
from loraprobe.pipeline.screening_workers import Elsewhere, elsewhere
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shard_files import Shard, run_of
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.probes import ScreenedTexts
from loraprobe.records import Progress
from loraprobe.tasks import Task, check_metrics


def screen_shard(
    adapters: Sequence[Any],
    place: Path,
    *,
    base: Any = None,
    tasks: Any = (),
    options: Options = Options(),
    progress: Progress | None = None,
    written: Sequence[Path] = (),
) -> Shard:
    """Reads the share options.shard of a library and asks it the items that choose.

    Raises UsageError where a share cannot tell what a whole library tells: the base of most
    adapters, and the better form of the prompts.
    """
    check_names(options)
    read = open_tasks(tasks, options)
    check_metrics(read, options.metric)
    if read and base in (None, "auto"):
        raise UsageError(
            "A share of a library cannot tell which base most adapters name: give --base REF."
        )
    opened = None if base in (None, "auto") else base_of(base, (), code=options.trust_remote_code)
    if opened is not None:
        for target in written:
            check_apart(target, [opened.path])
    options = replace(options, state=place, resume=True)
    session = Session("screen", options, progress)
    assert options.shard is not None
    fingerprint = {
        "base": None if opened is None else opened.identity,
        "versions": {"loraprobe": __version__, "torch": importlib.metadata.version("torch")},
    }
    made = Shard(run_of(options.arguments), options.shard, as_plain(fingerprint))
    made.begin(place)
    own = share_of([1.0] * len(adapters), options.shard)
    members = _read(adapters, own, opened, session, place)
    asked = None
    if opened is not None and read:
        records = [member.record for member in members]
        places = {r.name: (at, r.sha256) for at, r in zip(own, records, strict=True)}
        workers = elsewhere(adapters, opened, tasks, options, places)
        usable = [member for member in members if member.usable]
        asked = _ask(usable, opened, read, session, workers) if usable else 0
    made = replace(made, complete=True, adapters=len(own), questions=asked)
    made.write(place)
    return made


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


def _ask(
    usable: Sequence[Member],
    base: Base,
    tasks: Sequence[Task],
    session: Session,
    workers: Elsewhere | None,
) -> int:
    """Asks base and adapters alone, as an undivided screen does; how many systems."""
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
        reading = ScreenedTexts.of(scorer, parts.apart, options.metric)
        if workers is not None:
            workers.ask(evaluator, list(by_name), reading, lambda: True)
        found = ask_alone(
            evaluator,
            list(by_name),
            lambda name: aligned([by_name[name].open()], base)[0],
            reading,
        )
    return len(found.names)
