"""Questions as a model reads them (`loraprobe task sample`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraprobe.base.loading import load_tokenizer
from loraprobe.errors import UsageError
from loraprobe.evaluation.plan import questions
from loraprobe.options import Options
from loraprobe.pipeline.inputs import base_of
from loraprobe.records import ItemPart
from loraprobe.scoring import Encoder
from loraprobe.tasks import Task

SHOWN = 3  # items of each task


@dataclass(frozen=True)
class Preview:
    """One form of a question. `tokens` is None without a base."""

    task: str
    item: str
    part: ItemPart
    prompt: str
    tokens: int | None
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    metric: str


def preview(tasks: Sequence[Task], base: str | None, options: Options) -> list[Preview]:
    """The first items in all their forms; with a base in its chat template, if it has one.

    Only the base's tokenizer is loaded. Raises LoraprobeError for a base that has none, UsageError
    for a template that was asked for and is not there.
    """
    encoder = None if base is None else _encoder(base, options)
    if encoder is None and options.chat_template == "on":
        raise UsageError("--chat-template=on needs the template of a base; add --base=REF.")
    few = [replace(task, items=task.items[: options.limit or SHOWN]) for task in tasks]
    return [
        Preview(
            one.task,
            one.item.id,
            one.part,
            one.prompt if encoder is None else encoder.text(one.prompt),
            None if encoder is None else len(encoder.prompts([one.prompt])[0]),
            tuple(one.answers),
            one.item.choices if one.metric == "choice" else (),
            one.metric,
        )
        for one in questions(few, options.metric)
    ]


def _encoder(reference: str, options: Options) -> Encoder:
    if reference == "auto":
        raise UsageError("--base=auto takes the base of adapters, and here are none; name it.")
    base = base_of(reference, (), code=options.trust_remote_code)
    tokenizer = load_tokenizer(base, options.trust_remote_code)
    has = bool(getattr(tokenizer, "chat_template", None))
    return Encoder(tokenizer, {"on": True, "off": False, "auto": has}[options.chat_template])
