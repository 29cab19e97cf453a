"""Loads the base model into a Scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe.adapters import Adapter
from loraprobe.base import Base, pick_device, pick_dtype
from loraprobe.composition import Composition
from loraprobe.evaluation import choose_template
from loraprobe.options import Options
from loraprobe.pipeline.session import Session
from loraprobe.records import Coverage
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Scorer
from loraprobe.tasks import Task


def single(adapter: Adapter) -> Composition:
    """One adapter alone, as a composition."""
    return Composition(adapter.name, (adapter,), ConstantGates.ones(1))


def open_scorer(
    base: Base,
    dtype: str,
    session: Session,
    adapters: Sequence[Adapter] = (),
    tasks: Sequence[Task] = (),
    metric: str | None = None,
) -> tuple[Any, list[str], tuple[Coverage, ...]]:
    """A scorer of the base; notes; the accuracies with and without the chat template.

    With `--chat-template auto` the single adapters answer a sample of the tasks with and without
    the template, and the better form is used. The session records device and dtype.
    """
    options, loaded = session.options, _load(base, dtype, session)
    notes = _loading_notes(loaded.model, options)
    scorer = Scorer(
        loaded.model,
        loaded.tokenizer,
        batch_size=options.batch_size,
        chat_template=options.chat_template == "on",
        progress=session.progress,
    )
    if options.chat_template == "auto" and tasks:
        with session.stage("template"):
            singles = [single(adapter) for adapter in adapters]
            chosen, why, figure = choose_template(scorer, singles, tasks, metric=metric)
        notes.append(why)
        figures = () if figure is None else (figure,)
        return scorer.with_template(chosen), notes, figures
    return scorer, notes, ()


def _load(base: Base, dtype: str, session: Session) -> Any:
    options = session.options
    with session.stage("load"):
        device = pick_device(options.device)
        kind = pick_dtype(dtype, device)
        session.device, session.dtype = str(device), str(kind).removeprefix("torch.")
        return base.load(
            device=device,
            dtype=kind,
            trust_remote_code=options.trust_remote_code,
            quantize=options.quantize,
            device_map=options.device_map,
        )


def _loading_notes(model: Any, options: Options) -> list[str]:
    notes = []
    if options.quantize != "none":
        bits = options.quantize.removesuffix("bit")
        notes.append(
            f"The base was quantised to {bits} bits on loading (bitsandbytes); scores hold for it "
            "as it ran."
        )
    if options.device_map == "auto":
        places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
        notes.append(f"The base was placed by accelerate ({', '.join(sorted(places))}).")
    if options.trust_remote_code:
        notes.append("Code from the base's repository was allowed to run.")
    return notes
