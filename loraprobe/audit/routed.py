"""`route`: adapters and a router made into a composition that can be saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprobe.adapter import Adapter
from loraprobe.audit.licences import declared
from loraprobe.audit.opening import open_scorer
from loraprobe.audit.saved import Routed
from loraprobe.audit.settings import Progress, Settings
from loraprobe.audit.story import Story
from loraprobe.audit.systems import Workshop
from loraprobe.audit.transforms import general_of
from loraprobe.base import Base
from loraprobe.composition import Composition, Router
from loraprobe.errors import UnsupportedAdapter, UsageError
from loraprobe.records import Audit, Compatibility, Measurement
from loraprobe.registry import spec_of
from loraprobe.routing.constant import ConstantGates
from loraprobe.words import count

if TYPE_CHECKING:
    from loraprobe.tasks import Task


def compose(
    adapters: Sequence[Adapter],
    *,
    base: Base | None = None,
    tasks: Sequence[Task] = (),
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> tuple[Audit, Routed]:
    """A composition by the first of settings.routers, over adapters balanced and subtracted from
    as the settings say. Nothing is evaluated.

    base: needed by a router that learns from prompts and by a search of weights on `tasks`; with it
    adapters are checked against it, and whether peft's Arrow can express the composition. Raises
    CompatibilityError where the adapters do not fit together, UsageError for weights with a router
    that has gates of its own.
    """
    from loraprobe import compatibility

    story = Story("route", adapters, settings, base, progress)
    compatibility.require(story.check("route"))
    general = general_of(story.adapters, settings, "route", base)
    workshop = Workshop(story.adapters, settings, general, base)
    spec = settings.routers[0]
    with story.stage("prepare"):
        prepared = workshop.prepared
    router = workshop.router(spec)
    if settings.router_prompts and not router.needs_prompts:
        raise UsageError(f"Router {spec} learns nothing from prompts; leave --router-prompts out.")
    if settings.weights is not None:
        router = _weighted(router, spec, story, base, prepared.adapters, tasks)
    elif router.needs_prompts:
        router = _fitted(workshop, spec, story, base, tasks)
    _refuse_whole(prepared.adapters, router, spec)
    licences, asked = declared(adapters, base)
    story.found["compatibility"] = Compatibility((*story.found["compatibility"].issues, *asked))
    composition = Composition(spec, prepared.adapters, router)
    made = Routed(composition, base, prepared.steps, licences=licences)
    with story.stage("peft"):
        peft = _about_peft(made)
    story.found["transformations"] = prepared.steps
    story.found["diagnostics"] = tuple(
        Measurement("norm", (step.adapter,), step.norm_before) for step in prepared.steps
    )
    story.notes += [
        *prepared.notes,
        *made.composition.notes(),
        peft,
        f"Composed {count(len(adapters), 'adapter')} by {spec_of(router)}.",
    ]
    return story.audit(), made


def _about_peft(made: Routed) -> str:
    """Whether and how peft's own Arrow can express a composition."""
    if made.why_not_peft is not None:
        return f"peft's own Arrow cannot express it: {made.why_not_peft}"
    if made.missed_prototype is None:
        return "peft's own Arrow computes the same; the card has the lines that load it."
    return (
        "peft's own Arrow computes the same once it is given the exact prototypes that are stored "
        f"with it ({made.missed_prototype}); the card has the lines that load it."
    )


def _refuse_whole(experts: Sequence[Adapter], router: Router, spec: str) -> None:
    """What every model would refuse later is not saved."""
    holder = next((expert for expert in experts if expert.whole), None)
    if holder is not None and not router.weighs_whole:
        raise UnsupportedAdapter(
            f"Adapter {holder.name} replaces {next(iter(holder.whole))} whole, which the gates of "
            f"{spec} cannot weigh; use --router constant, or leave that adapter out."
        )


def _weighted(
    router: Router,
    spec: str,
    story: Story,
    base: Base | None,
    experts: Sequence[Adapter],
    tasks: Sequence[Task],
) -> Router:
    """Constant gates with the weights given, or found."""
    if not isinstance(router, ConstantGates):
        raise UsageError(f"{spec} gives each token gates of its own, so --weights have no place; "
                         "they go with --router constant.")  # fmt: skip
    given = story.settings.given_weights
    if given is not None:
        return ConstantGates(given)
    from loraprobe.audit.search import search_alone

    return ConstantGates(search_alone(story, base, experts, tasks))


def _fitted(
    workshop: Workshop, spec: str, story: Story, base: Base | None, tasks: Sequence[Task]
) -> Router:
    """The router once it has read prompts of each adapter through the base."""
    from loraprobe.audit.fitting import fit_routers

    if base is None:
        raise UsageError(f"Router {spec} learns from prompts of each adapter, which the base reads:"
                         " add --base DIR or --base auto.")  # fmt: skip
    scorer = open_scorer(story, base)
    with story.stage("fit"):
        story.notes += fit_routers(workshop, scorer, tasks)
    return workshop.router(spec)
