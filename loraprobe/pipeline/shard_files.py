"""`shard.json`: of which run a directory holds a share, and what `combine` makes of all of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from loraprobe.adapters import staged_file
from loraprobe.errors import UsageError
from loraprobe.evaluation.ledger import changes
from loraprobe.limits import limits
from loraprobe.options import Options
from loraprobe.records import SCHEMA_VERSION, document

FILE = "shard.json"
OWN = ("--shard", "--output", "-o", "--executor")  # options of a shard, not of the run


class Shard(BaseModel):
    """What `shard.json` says.

    arguments: the words of the run's command line. modules, questions: how many batches of them
    are the share's, None before they were counted. adapters: of a library, how many are. A share
    of a library counts the systems that it asked as questions. chat_template: whether questions
    were put into it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["loraprobe-shard-1"]
    arguments: tuple[str, ...]
    share: tuple[int, int]
    fingerprint: Any
    complete: bool = False
    modules: int | None = None
    questions: int | None = None
    adapters: int | None = None
    chat_template: bool | None = None

    def write(self, place: Path) -> None:
        """Raises OutputError where the directory cannot be written."""
        with staged_file(place / FILE) as file:
            file.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def begun(cls, options: Options, fingerprint: Any, place: Path) -> Shard:
        """The shard of a call; its file is in a directory that is new, or of this very shard.

        Raises UsageError for that of another shard.
        """
        assert options.shard is not None
        made = cls(
            format="loraprobe-shard-1",
            arguments=run_of(options.arguments),
            share=options.shard,
            fingerprint=fingerprint,
        )
        if (place / FILE).exists():
            check_same_run(Shard.read(place), made, place)
        made.write(place)
        return made

    def completed(self, place: Path, **counts: Any) -> Shard:
        """The shard when all is computed. counts: modules, questions or adapters."""
        made = self.model_copy(update={"complete": True, **counts})
        made.write(place)
        return made

    @classmethod
    def read(cls, place: Path) -> Shard:
        """Raises UsageError for a directory that no shard wrote."""
        try:
            text = (place / FILE).read_text(encoding="utf-8")
            return cls.model_validate_json(text if len(text) <= limits().items else "")
        except (OSError, ValueError):
            raise UsageError(
                f"{place} is no directory of a shard: give the --output of --shard."
            ) from None


def run_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The words of a shard's command line without what makes it a shard."""
    words, found = iter(arguments), list[str]()
    for word in words:
        if word in OWN:
            next(words, None)
        elif word != "--resume" and not word.startswith(tuple(f"{option}=" for option in OWN)):
            found.append(word)
    return tuple(found)


def joined_run(places: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The directories of shards in the order of their numbers, and the command line of the run.

    Raises UsageError where shards are of several runs, or one is missing or not complete; the
    message has the command that computes it.
    """
    shards = [(Shard.read(place), place) for place in dict.fromkeys(places)]
    if not shards:
        raise UsageError("combine joins directories of shards; give them.")
    first, at = shards[0]
    by_number: dict[int, tuple[Shard, Path]] = {}
    for shard, place in shards:
        check_same_run(first, shard, at, place)
        if shard.complete or shard.share[0] not in by_number:
            by_number[shard.share[0]] = shard, place
    of = first.share[1]
    for number in range(1, of + 1):
        found = by_number.get(number)
        if found is None or not found[0].complete:
            place = found[1] if found else at.with_name(f"shard-{number}-of-{of}")
            share = ["--shard", f"{number}/{of}", "--output", str(place)]
            raise UsageError(
                f"Shard {number} of {of} is {'not complete' if found else 'missing'}: give the "
                f"directory of {shlex.join(['loraprobe', *first.arguments, *share])}"
            )
    templates = {shard.chat_template for shard, _ in by_number.values()}
    if len(templates) > 1:
        raise UsageError(
            "Some shards asked with the chat template and some without it, since they run on "
            "unlike machines: give --chat-template on or off to all of them."
        )
    return [by_number[number][1] for number in sorted(by_number)], first.arguments


def check_same_run(one: Shard, other: Shard, at: Path, place: Path | None = None) -> None:
    """Raises UsageError where two shards are no shares of the same run."""
    if place is None and one.share != other.share:
        number, of = one.share
        raise UsageError(f"{at} holds shard {number}/{of}: give this one another --output.")
    where = f"{at} and {place}" if place else f"{at} and this call"
    if one.share[1] != other.share[1]:
        raise UsageError(
            f"{where} are shards of {one.share[1]} and of {other.share[1]}: give shards of one N."
        )
    differs = sorted(set(one.arguments) ^ set(other.arguments))
    differs = differs or changes(one.fingerprint, other.fingerprint)
    if differs:
        raise UsageError(
            f"{where} are shards of different runs ({'; '.join(differs[:3])}): give shards of "
            "the same inputs and options."
        )


def check_inputs(places: Sequence[Path], fingerprint: Any) -> None:
    """Raises UsageError where a shard read other inputs than those of this fingerprint."""
    for place in places:
        if differs := changes(Shard.read(place).fingerprint, fingerprint):
            raise UsageError(
                f"{place} is a shard of other inputs ({'; '.join(differs[:3])}): compute the "
                "shards again, or give the adapters and the base of then."
            )


def told(made: Shard, place: Path) -> str:
    """What a shard says at its end, in a sentence."""
    number, of = made.share
    counted = [(made.modules, "batches of modules"), (made.questions, "batches of questions")]
    if made.adapters is not None:
        counted = [(made.adapters, "adapters read"), (made.questions, "systems asked")]
    done = [f"{value} {what}" for value, what in counted if value is not None]
    return (
        f"Shard {number} of {of} is complete in {place.name}: {' and '.join(done)}. When all "
        "shards are there: loraprobe combine DIR..."
    )


def as_json(made: Shard, command: str) -> str:
    """The same as a document."""
    names = {"share", "complete", "modules", "questions", "adapters"}
    return document(command, {"shard": made.model_dump(include=names)}, SCHEMA_VERSION)
