"""Loads the base model into a Scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe.adapters import Adapter
from loraprobe.base import Base, pick_device, pick_dtype
from loraprobe.evaluation import Ledger, choose_template
from loraprobe.options import Options
from loraprobe.pipeline.session import Session
from loraprobe.records import Coverage
from loraprobe.routing.constant import single
from loraprobe.scoring import Scorer
from loraprobe.tasks import Task


def open_scorer(base: Base, dtype: str, session: Session) -> tuple[Any, list[str]]:
    """A scorer of the base, and notes. The session records device and dtype."""
    options, loaded = session.options, _load(base, dtype, session)
    scorer = Scorer(
        loaded.model,
        loaded.tokenizer,
        batch_size=options.batch_size,
        chat_template=options.chat_template == "on",
        progress=session.progress,
    )
    return scorer, _loading_notes(loaded.model, options)


def with_better_template(
    scorer: Any,
    session: Session,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    metric: str | None,
    kept: Ledger | None = None,
) -> tuple[Any, list[str], tuple[Coverage, ...]]:
    """The scorer in the better form of prompts; notes; the accuracies with and without template.

    With `--chat-template auto` the single adapters answer a sample of the tasks with and without
    the template; another value is kept as it is. kept: the ledger of their answers.
    """
    options = session.options
    if options.chat_template != "auto" or not tasks:
        return scorer, [], ()
    with session.stage("template"):
        chosen, why, figure = choose_template(
            scorer,
            [single(adapter) for adapter in adapters],
            tasks,
            metric=metric,
            max_new_tokens=options.max_new_tokens,
            kept=kept,
        )
    return scorer.with_template(chosen), [why], () if figure is None else (figure,)


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
