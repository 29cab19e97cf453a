"""Merges with the options of a command, their weights and figures, and a converted adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe import diagnostics
from loraprobe.adapters import Adapter, check_apart
from loraprobe.base import Base
from loraprobe.errors import UsageError
from loraprobe.merging import METHODS, Merged, merge
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import Measurement, WeightSearch


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


def chosen_weights(
    inputs: Inputs, prepared: Prepared, session: Session
) -> tuple[tuple[float, ...] | None, WeightSearch | None, list[str]]:
    """The weights of a merge or a route: those given, those that a search finds, or None for the
    method's own. Returns the weights, what the search found, and notes.

    The search is the one of an evaluation. The base is loaded in the dtype of its device, since
    the --dtype of a merge is that of its file. Raises UsageError without a base or a task.
    """
    options = session.options
    if options.weights != "search":
        return options.given_weights, None, []
    # What asks the base model, and scipy, take as long to import as a small merge takes.
    from loraprobe.pipeline.scorer import open_scorer, with_better_template
    from loraprobe.pipeline.task_split import split
    from loraprobe.pipeline.weight_search import find_weights, note

    if inputs.base is None or not inputs.tasks:
        raise UsageError(
            "--weights search asks the base model on a task: add --base DIR (or auto) and "
            "--task FILE."
        )
    parts, experts = split(inputs.tasks, options), prepared.adapters
    scorer, notes = open_scorer(inputs.base, "auto", session)
    scorer, why, _ = with_better_template(scorer, session, experts, parts.apart, "answer_loss")
    with session.stage("search"):
        found = find_weights(scorer, experts, parts, options, progress=session.progress)
    notes += [*why, note(found, "an evaluation"), scorer.batcher.note()]
    return tuple(found.weights.values()), found, notes


def merge_by(
    spec: str,
    adapters: Sequence[Adapter],
    options: Options,
    base: Base | None,
    **rest: Any,
) -> Merged:
    """A merge by one method, with space, rank, seed and allowed issues of the options."""
    return merge(
        adapters,
        spec,
        space=options.space,
        rank=options.rank,
        seed=options.seed,
        allow=options.allow,
        rank_layout=options.rank_layout,
        base=base,
        **rest,
    )


def made_text(merged: Merged, norm: float, options: Options) -> str:
    """What the merge is, its norm, and whether its method ignores the weights that were given."""
    made = f"Merged by {merged.spec} in the {merged.space} space to rank {rank_text(merged)}"
    made += f"; its norm is {norm:.4g}."
    if options.given_weights and not METHODS.make(merged.spec).takes_weights:
        made += " It ignores --weights; --method task_arithmetic uses them."
    return made


def rank_text(merged: Merged) -> str:
    """The rank of a merge's modules, such as "8" or "4 to 16", and how they are written."""
    low, high = merged.adapter.rank_range
    if low == high:
        return str(low)
    filled = f", filled up with zeros to {high}" if merged.rank_layout == "portable" else ""
    return f"{low} to {high}{filled}"


def merge_figures(merged: Merged, norm: float, prepared: Prepared) -> tuple[Measurement, ...]:
    """Norms of the untransformed sources and of the merge, and the merge's errors."""
    norms = {source.name: source.norm for source in merged.sources}
    norms |= {step.adapter: step.norm_before for step in prepared.steps}
    name = (merged.adapter.name,)
    norms[merged.adapter.name] = norm
    rows = [Measurement("norm", (source,), norm) for source, norm in norms.items()]
    rows.append(Measurement("compression_error", name, merged.compression_error))
    rows.append(Measurement("rounding_error", name, merged.rounding_error))
    if merged.sketch_error:
        rows.append(Measurement("sketch_error", name, merged.sketch_error))
    return tuple(rows)


def warning_figures(
    adapters: Sequence[Adapter], options: Options, *others: str
) -> tuple[Measurement, ...]:
    """The figures of pairs of untransformed sources for which a verdict warns.

    others: names of more diagnostics.
    """
    wanted = ("norm_ratio", "cosine", "shared_initialisation", *others)
    return diagnostics.diagnose(adapters, only=wanted, seed=options.seed)
