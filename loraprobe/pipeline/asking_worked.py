"""The forecast of sets of adapters on worked answers, from one more pass of each adapter.

The right worked answers have the form of the adapter whose own are most often of the asked kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from loraprobe.adapters import Adapter
from loraprobe.defaults import WORKED_TOKENS
from loraprobe.evaluation import System
from loraprobe.pipeline.asking_alone import Alone, forecast_pairs, keep_states
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.probes import KnownAlone, PairForecast, ScreenedTexts, with_worked_answers
from loraprobe.routing.constant import single
from loraprobe.tasks import Task

Opened = Callable[[str], Adapter]


def forecast_worked(
    evaluator: Evaluator, alone: Alone, known: Sequence[KnownAlone], opened: Opened
) -> PairForecast | None:
    """The forecast, of the systems of `alone`; None where no right worked answer is known."""
    made = [_worked(evaluator, alone, one, opened) for one in known]
    tasks = [task for task in made if task is not None]
    texts = ScreenedTexts.of(evaluator.scorer, tasks, None) if tasks else None
    if texts is None:
        return None
    with evaluator.session.stage("screen"):
        for name in alone.names:
            system = _system(alone, name, opened)
            keep_states(evaluator, replace(system, name=_kept_as(name)), texts)
    return forecast_pairs(evaluator, replace(alone, names=[*map(_kept_as, alone.names)]), texts)


def _kept_as(name: str) -> str:
    """What the states of a system on worked answers are kept as."""
    return f"{name}, worked"


def _system(alone: Alone, name: str, opened: Opened) -> System:
    plain = name == alone.names[0]
    return System("base", "base") if plain else System(name, "adapter", single(opened(name)))


def _worked(evaluator: Evaluator, alone: Alone, known: KnownAlone, opened: Opened) -> Task | None:
    """A task with its right worked answers."""
    asked = [item for item in known.task.items if item.cot_prompt is not None and item.hops]
    if known.form is None or not known.form.max() or not asked:
        return None
    writer = _system(alone, alone.names[int(known.form.argmax())], opened)
    most = evaluator.session.options.max_new_tokens or WORKED_TOKENS
    with evaluator.scorer.with_composition(writer.composition) as scorer:
        texts = scorer.generate([item.cot_prompt for item in asked], max_new_tokens=most)
    own = {item.id: text for item, text in zip(asked, texts, strict=True)}
    return with_worked_answers(known.task, own)
