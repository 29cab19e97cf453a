"""One adapter written again, as peft and servers read it: the same function in peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraprobe import hub
from loraprobe.adapters import Adapter, Source, check_apart, common_targets, mended, portable
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.saving import config_of
from loraprobe.adapters.tensors import PICKLE, SAFETENSORS
from loraprobe.compatibility.serving import serve_commands
from loraprobe.errors import CompatibilityError
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.records import Compatibility
from loraprobe.report.markdown import converted_card

# Warnings of which no exact copy follows: peft would load another function than is read here.
UNCERTAIN = ("base-copy", "weights-untargeted")


@dataclass(frozen=True, eq=False)
class Converted:
    """An adapter as it will be written, its card, and the place of its source."""

    adapter: Adapter
    card: str
    source: Path | None
    targets: Sequence[str] | None

    @property
    def name(self) -> str:
        return self.adapter.name

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory. Raises OutputError, also for a place inside the source."""
        check_apart(Path(directory), [self.source] if self.source else [])
        self.adapter.save(directory, overwrite=overwrite, card=self.card, targets=self.targets)


def converted(given: Adapter, place: Path, options: Options) -> tuple[Converted, str]:
    """The adapter as it is written to a place, and what differs from its file, in sentences."""
    made = replace(mended(given), weights_file=None)
    made = portable(made) if options.rank_layout == "portable" else made
    targets = common_targets([given], without_experts(made.layout))
    source = Source(reference=str(place), path=place)
    made = replace(made, config=config_of(made, targets), source=source)
    changes = " ".join(_changes(given, made)) or "Nothing had to be changed."
    served = serve_commands(made, ".")
    card = converted_card(made, given.source.public, hub.model_card(given), changes, served)
    return Converted(made, card, given.source.path, targets), changes


def require_certain(found: Compatibility, options: Options) -> None:
    """Raises CompatibilityError for a warning that leaves open what peft computes."""
    for issue in found.issues:
        open_ = issue.code in UNCERTAIN and issue.severity != "note"
        if open_ and issue.code not in options.allow:
            raise CompatibilityError(f"{issue.message} {issue.cure} [{issue.code}]", issue.cure)


def _changes(given: Adapter, made: Adapter) -> Iterator[str]:
    """What differs between a file and what is written instead, in sentences."""
    codes = {issue.code for issue in given.issues}
    if given.layout.keys() != made.layout.keys():
        yield f"The prefix {PREFIX!r}, which the keys had twice, stands once."
    if "unprefixed-keys" in codes:
        yield f"The keys have the prefix {PREFIX!r}, without which peft loads nothing."
    if codes & {"pickled", "sharded"}:
        what = PICKLE if "pickled" in codes else "The shards of the weights"
        yield f"{what} became {SAFETENSORS}."
    ranks, rank = given.rank_range, made.rank_range
    if ranks != rank:
        yield f"Ranks {ranks[0]} to {ranks[1]} became {rank[0]}, filled up with zeros."
    if given.scaling_range != made.scaling_range:
        why = "rsLoRA's scaling" if given.config.get("use_rslora") else "The scaling"
        yield f"{why} is multiplied into B, so that lora_alpha equals r."
    lost = [extra.key for extra in given.extras if extra not in made.extras]
    if lost:
        yield f"Left out: {listing(lost[:3])}{f' and {len(lost) - 3} more' if lost[3:] else ''}."
    yield from (issue.message for issue in given.issues if issue.code == "tensors-unused")
