"""`inspect` and `merge`: the stories that end before anything is evaluated as a composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loraprobe.adapter import Adapter
from loraprobe.audit.licences import with_licences
from loraprobe.audit.settings import Progress, Settings
from loraprobe.audit.story import Story
from loraprobe.audit.transforms import general_of, prepare
from loraprobe.base import Base, pick_dtype
from loraprobe.errors import UsageError
from loraprobe.records import Audit, Compatibility, EvidenceLevel, Measurement

if TYPE_CHECKING:
    from loraprobe.compatibility.identity import Purpose
    from loraprobe.merging import Merged
    from loraprobe.tasks import Probe, Task


def inspect(
    adapters: Sequence[Adapter],
    *,
    base: Base | None = None,
    tasks: Sequence[Task] = (),
    probe: Probe | str | None = None,
    cards: Mapping[str, str | None] | None = None,
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> Audit:
    """What adapters are and how they stand to each other; with base and task or probe a verdict.

    probe: a Probe, or "auto" to make one from `cards` (adapter name -> README text) and from what
    the adapters generate themselves. Raises LoraprobeError where something cannot be read.
    """
    if tasks:
        from loraprobe.audit.run import check_state

        check_state(settings)
    story = Story("inspect", adapters, settings, base, progress)
    asked = bool(tasks) or probe is not None
    purpose: Purpose = "inspect" if base is None else "route" if asked else "measure"
    fits = story.look(purpose).compatible
    level: EvidenceLevel = "weights"
    if asked and fits and base is not None:
        from loraprobe.audit.evaluate import Bench

        level = Bench(story, base).cover(tasks, probe, cards or {})
    if asked:
        from loraprobe.audit.evaluate import conclude

        conclude(story, level, tasks)
    return story.audit()


def merge(
    adapters: Sequence[Adapter],
    *,
    base: Base | None = None,
    tasks: Sequence[Task] = (),
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> tuple[Audit, Merged]:
    """Merges by the first of settings.methods. Raises CompatibilityError where that is forbidden.

    tasks: what weights are searched on where the settings ask for it; nothing is evaluated.

    The merge's own pass over the files finds what only tensors tell: NaN, no effect, duplicates.
    """
    from loraprobe import compatibility, merging

    story = Story("merge", adapters, settings, base, progress)
    compatibility.require(story.check("merge"))
    dtype = None if settings.dtype == "auto" else pick_dtype(settings.dtype)
    general = general_of(story.adapters, settings, "merge", base)
    with story.stage("prepare"):
        prepared = prepare(story.adapters, settings, general, base)
    weights = settings.given_weights
    if settings.weights == "search":
        weights = _searched(story, base, prepared.adapters, tasks)
    with story.stage("merge"):
        merged = merging.merge(
            prepared.adapters, settings.methods[0], weights=weights,
            space=settings.space, rank=settings.rank, seed=settings.seed, allow=settings.allow,
            dtype=dtype or prepared.dtype, progress=progress,
            base_weight=base.weight if base is not None else None,
            base_parameter=base.parameter if base is not None else None,
        )  # fmt: skip
    merged, asked = with_licences(merged, adapters, base)
    known = story.found["compatibility"].issues
    new = tuple(issue for issue in (*merged.issues, *asked) if issue not in known)
    story.found["compatibility"] = Compatibility((*known, *new))
    name = (merged.adapter.name,)
    norms = {source.name: source.norm for source in merged.sources}
    norms |= {step.adapter: step.norm_before for step in prepared.steps}
    story.found["diagnostics"] = (
        *(Measurement("norm", (source,), norm) for source, norm in norms.items()),
        Measurement("compression_error", name, merged.compression_error),
        Measurement("rounding_error", name, merged.rounding_error),
        *([Measurement("sketch_error", name, merged.sketch_error)] if merged.sketch_error else []),
    )
    story.found["transformations"] = prepared.steps
    story.notes.extend(prepared.notes)
    low, high = merged.adapter.rank_range
    ranks = str(low) if low == high else f"{low} to {high}"
    story.notes.append(f"Merged by {merged.spec} in the {merged.space} space to rank {ranks}.")
    return story.audit(), merged


def _searched(
    story: Story, base: Base | None, experts: Sequence[Adapter], tasks: Sequence[Task]
) -> tuple[float, ...]:
    """The weights of `--weights search`, for a method that takes any."""
    from loraprobe.audit.search import search_alone
    from loraprobe.merging import METHODS

    method = story.settings.methods[0]
    if not METHODS.make(method).takes_weights:
        raise UsageError(f"{method} has weights of its own, so there are none to search for; use "
                         "--method task_arithmetic.")  # fmt: skip
    return search_alone(story, base, experts, tasks)
