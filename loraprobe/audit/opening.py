"""A base model as a user names it -> Base -> a scorer that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapter import Adapter
from loraprobe.base import Base, open_base, pick_device, pick_dtype
from loraprobe.errors import UsageError

if TYPE_CHECKING:
    from loraprobe.audit.story import Story


def base_of(base: str | Path | Base, adapters: Sequence[Adapter], *, code: bool = False) -> Base:
    """The base of a reference, "auto" for the one that the adapters' configs agree on.

    An opened Base passes through. `code` also brings a repository's own model code. Raises
    LoraprobeError, saying what to do, where the base cannot be had.
    """
    from loraprobe import hub

    if isinstance(base, Base):
        return base
    reference = hub.common_base(adapters) if base == "auto" else str(base)
    snapshot = hub.resolve_base(reference, code=code)
    return open_base(snapshot.path, snapshot.reference, snapshot.commit)


def open_scorer(story: Story, base: Base, dtype: str = "auto") -> Any:
    """The base in memory as the story's settings say, in this dtype, and a scorer of it.

    The story learns device and dtype.
    """
    from loraprobe.scoring import Scorer

    settings = story.settings
    if settings.device_map == "auto" and settings.device != "auto":
        raise UsageError("--device-map auto places the base by itself; leave --device out.")
    with story.stage("load"):
        device = pick_device(settings.device)
        kind = pick_dtype(dtype, device)
        loaded = base.load(
            device=device, dtype=kind, trust_remote_code=settings.trust_remote_code,
            quantize=settings.quantize, device_map=settings.device_map,
        )  # fmt: skip
    story.device, story.dtype = str(device), str(kind).removeprefix("torch.")
    if settings.quantize != "none":
        bits = settings.quantize.removesuffix("bit")
        story.notes.append(f"The base was quantised to {bits} bits on loading (bitsandbytes); "
                           "scores hold for it as it ran.")  # fmt: skip
    if settings.device_map == "auto":
        places = {str(place) for place in getattr(loaded.model, "hf_device_map", {}).values()}
        story.notes.append(f"The base was placed by accelerate ({', '.join(sorted(places))}).")
    if settings.trust_remote_code:
        story.notes.append("Code from the base's repository was allowed to run.")
    scorer = Scorer(
        loaded.model,
        loaded.tokenizer,
        batch_size=settings.batch_size,
        chat_template=settings.chat_template == "on",
        progress=story.progress,
    )
    story.last_words.append(scorer.batcher.note)
    return scorer
