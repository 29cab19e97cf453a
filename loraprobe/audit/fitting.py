"""Shows routers that learn from prompts what each adapter is for, before they are evaluated.

Prompts carry no answers and are none of the tasks': those that a user gives as files, else those
that an adapter writes itself where a user would speak.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.adapter import Adapter
from loraprobe.audit.systems import Workshop, single
from loraprobe.composition import Router
from loraprobe.errors import TaskError, UsageError
from loraprobe.words import listing

if TYPE_CHECKING:
    from loraprobe.tasks import Task

WRITTEN = 32  # prompts that an adapter writes itself; a mean over their tokens needs no more
Prompts = dict[str, list[str]]


def fit_routers(workshop: Workshop, scorer: Any, tasks: Sequence[Task]) -> list[str]:
    """Fits every router asked for that needs it, and says in notes what it has learned from.

    Raises UsageError for a prompt file of an unknown adapter, and where an adapter has no prompt.
    """
    settings = workshop.settings
    specs = [spec for spec in workshop.routers() if workshop.router(spec).needs_prompts]
    names = [adapter.name for adapter in workshop.adapters]
    unknown = [name for name, _ in settings.router_prompts if name not in names]
    if unknown:
        raise UsageError(f"--router-prompts names {unknown[0]!r}, which is none of the adapters: "
                         f"there are {listing(names)}.")  # fmt: skip
    if not specs:
        if settings.router_prompts:
            return ["--router-prompts: no router asked for learns from prompts."]
        return []
    prompts, notes = gathered(workshop, scorer, tasks)
    state = None
    for spec in specs:
        router = workshop.router(spec)
        if state is None:
            router = fitted_to(router, scorer, workshop.prepared.adapters, prompts)
            state = router.state()
        else:
            router = router.with_state(state)
        workshop.fitted[spec] = router
    return [f"{listing(specs)} learned from {notes}"]


def gathered(workshop: Workshop, scorer: Any, tasks: Sequence[Task]) -> tuple[Prompts, str]:
    """Prompts of each adapter, and in words where they are from."""
    files, asked = dict(workshop.settings.router_prompts), _asked(tasks)
    prompts: Prompts = {}
    said, dropped = [], 0
    for adapter in workshop.adapters:
        name = adapter.name
        if name in files:
            lines, source = read_lines(files[name]), f"of {files[name].name}"
        else:
            lines, source = written_by(adapter, scorer, workshop.settings.seed), "it wrote itself"
        kept = [line for line in lines if not _is_item(line, asked)]
        dropped += len(lines) - len(kept)
        if not kept:
            raise UsageError(f"Every prompt of adapter {name} is an item of the task, from which "
                             "a router must not learn; give others by --router-prompts "
                             f"{name}=FILE.")  # fmt: skip
        prompts[name] = kept
        said.append(f"{len(kept)} prompts for {name} ({source})")
    left_out = f"; {dropped} that are items of the tasks were left out" if dropped else ""
    better = "" if len(files) == len(prompts) else (
        " Prompts in the form in which the adapters are asked, by --router-prompts NAME=FILE, tell "
        "a router more than what they write themselves.")  # fmt: skip
    return prompts, f"{listing(said)}{left_out}.{better}"


def fitted_to(
    router: Router, scorer: Any, adapters: Sequence[Adapter], prompts: Mapping[str, Sequence[str]]
) -> Router:
    """The router with what it learns from prompts of each adapter, read by the scorer's base."""
    from loraprobe.scoring import read_together

    def read(texts: Sequence[str], see: Any) -> None:
        read_together(scorer, [(text, "") for text in texts], see, whole=True)

    return router.fitted(scorer.model, read, adapters, prompts)


def fitted_in(
    router: Router,
    model: Any,
    tokenizer: Any,
    adapters: Sequence[Adapter],
    prompts: Mapping[str, Sequence[str]],
) -> Router:
    """The router, fitted in a loaded model. Raises UsageError, saying what is missing."""
    from loraprobe.scoring import Scorer

    names = [adapter.name for adapter in adapters]
    unknown = [name for name in prompts if name not in names]
    if unknown:
        raise UsageError(f"prompts has {unknown[0]!r}, which is none of the adapters: there are "
                         f"{listing(names)}.")  # fmt: skip
    if not router.needs_prompts:
        raise UsageError(f"Router {router.name} learns nothing from prompts; leave them out.")
    if not prompts or tokenizer is None:
        raise UsageError(
            f"Router {router.name} learns from prompts of each adapter: give prompts="
            f"{{{', '.join(f'{name!r}: [...]' for name in names)}}} and the model's tokenizer."
        )
    texts = {name: [own] if isinstance(own, str) else list(own) for name, own in prompts.items()}
    return fitted_to(router, Scorer(model, tokenizer), adapters, texts)


def read_lines(file: Path) -> list[str]:
    """The lines of a prompt file that are not blank. Raises UsageError if there are none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--router-prompts: {file} cannot be read as UTF-8 ({error}).") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--router-prompts: {file} holds no prompt; write one a line.")
    return list(dict.fromkeys(lines))


def written_by(adapter: Adapter, scorer: Any, seed: int) -> list[str]:
    """Prompts that an adapter writes itself, seeded."""
    from loraprobe.probes import generated_prompts

    try:
        probe = generated_prompts(scorer, [adapter], {}, single=single, seed=seed, wanted=WRITTEN)
    except TaskError:
        raise UsageError(f"Adapter {adapter.name} writes no prompt of itself; give some by "
                         f"--router-prompts {adapter.name}=FILE.") from None  # fmt: skip
    return [item.prompt for item in probe.items]


def _asked(tasks: Sequence[Task]) -> frozenset[str]:
    """Every prompt that a task asks."""
    found = []
    for item in (item for task in tasks for item in task.items):
        found += [item.prompt, *(item.hop_prompt(k) for k in range(len(item.hops)))]
        found += [item.cot_prompt] if item.cot_prompt else []
    return frozenset(map(_plain, found))


def _is_item(line: str, asked: frozenset[str]) -> bool:
    """Whether a line holds the whole prompt of an item."""
    plain = _plain(line)
    return plain in asked or any(len(p) > 8 and p in plain for p in asked)


@functools.lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
