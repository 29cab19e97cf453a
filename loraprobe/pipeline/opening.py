"""What an evaluation opens first: the base, the form of its prompts, and answers that are kept."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from loraprobe import hub
from loraprobe._version import __version__
from loraprobe.adapters import Adapter, Source, public_value
from loraprobe.base import Base, load_base, pick_device, pick_dtype
from loraprobe.cache import cache_directory
from loraprobe.defaults import LOSS
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import Ledger, choose_template
from loraprobe.front_matter import prompt_form
from loraprobe.options import Options
from loraprobe.pipeline.task_files import read_prompts
from loraprobe.records import Coverage
from loraprobe.results import NAME, as_plain, changes, digest, names_in, read_fingerprint
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer, Scorer
from loraprobe.session import Session
from loraprobe.tasks import Task, given_metric

AnyScorer = TypeVar("AnyScorer", bound=Scorer)
log = logging.getLogger("loraprobe.tasks")

# Beside the results: the weights that were learned, and next tokens of single adapters.
LEARNED, NEXT_TOKENS = "learned.jsonl", "next-tokens"


def task_notes(tasks: Sequence[Task], metric: str | None) -> list[str]:
    """Notes on tasks that a reader of the figures needs; those on chosen metrics are logged too."""
    notes = []
    if metric == LOSS:
        notes.append("Differences of losses are signed so that a lower loss is a gain.")
    for task in tasks:
        why = task.summary().metric_why
        if why and given_metric(task.name, metric) is None:
            notes.append(
                f"Task {task.name} is judged by {task.metric}: {why}. --metric overrides it."
            )
            log.warning(notes[-1])
        if task.of_harness:
            notes.append(task.items[0].source.told(task.name))
        if len(task.items) > 1 and len({item.cluster for item in task.items}) == 1:
            notes.append(
                f"All {len(task.items)} items of task {task.name} share one group, so they count "
                "as one observation and decide nothing: add items of other groups."
            )
    return notes


def open_scorer(base: Base, dtype: str, session: Session) -> tuple[ModelScorer, list[str]]:
    """A scorer of the base, and notes. The session records device and dtype."""
    options = session.options
    with session.stage("load"):
        device = pick_device(options.device)
        kind = pick_dtype(dtype, device)
        session.device, session.dtype = str(device), str(kind).removeprefix("torch.")
        loaded = load_base(
            base,
            device=device,
            dtype=kind,
            trust_remote_code=options.trust_remote_code,
            quantize=options.quantize,
            device_map=options.device_map,
        )
    scorer = ModelScorer(
        loaded.model,
        loaded.tokenizer,
        batch_size=options.batch_size,
        chat_template=options.chat_template == "on",
        progress=session.progress,
    )
    notes = []
    if options.quantize != "none":
        bits = options.quantize.removesuffix("bit")
        notes.append(
            f"The base was quantised to {bits} bits on loading (bitsandbytes); scores hold for it "
            "as it ran."
        )
    if options.device_map == "auto":
        places = {str(place) for place in getattr(loaded.model, "hf_device_map", {}).values()}
        notes.append(f"The base was placed by accelerate ({', '.join(sorted(places))}).")
    if options.trust_remote_code:
        notes.append("Code from the base's repository was allowed to run.")
    return scorer, notes


def with_better_template(
    scorer: AnyScorer,
    session: Session,
    adapters: Sequence[Adapter],
    tasks: Sequence[Task],
    metric: str | None,
    kept: Ledger | None = None,
    base: Base | None = None,
) -> tuple[AnyScorer, list[str], tuple[Coverage, ...]]:
    """The scorer in the better form of prompts; notes; the accuracies with and without template.

    With `--chat-template auto` the single adapters answer a sample of the tasks with and without
    the template; another value is kept as it is. kept: the ledger of their answers. base: its card
    may tell the form where the answers do not.
    """
    options = session.options
    if options.chat_template != "auto" or not tasks:
        return scorer, [], ()
    with session.stage("template"):
        chosen, why, figure = choose_template(
            scorer,
            [single(adapter) for adapter in adapters],
            tasks,
            seed=options.seed,
            metric=metric,
            max_new_tokens=options.max_new_tokens,
            kept=kept,
            known=lambda: known_form(adapters, base),
            progress=session.progress,
        )
    return scorer.with_template(chosen), [why], () if figure is None else (figure,)


def known_form(adapters: Sequence[Adapter], base: Base | None) -> tuple[bool, str]:
    """Whether prompts are known to be user turns of a chat template, and from what.

    The first that shows a form counts: the adapters' cards, chat templates beside them, the base's
    card. What cannot be read shows none.
    """
    files = {"README.md": "the card of", "chat_template.jinja": "the chat template beside"}
    files["tokenizer_config.json"] = "the tokenizer beside"
    places = [(f"{t} {a.name}", a.source, f) for f, t in files.items() for a in adapters]
    if base is not None:
        source = Source(base.reference, base.path, base.commit)
        places.append(("the card of the base", source, "README.md"))
    for what, source, file in places:
        with contextlib.suppress(LoraprobeError):
            form = prompt_form(hub.beside(source, file))
            if form is not None:
                return form, f"{what} shows {'user turns' if form else 'plain prompts'}"
    return False, "no card and no tokenizer of theirs shows a form"


def open_ledger(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], session: Session
) -> tuple[Ledger, str]:
    """The ledger of this run, and a note on the results that --resume found, or why none.

    With `--chat-template auto` it also holds the answers that choose the form of prompts, which
    follows from them.
    """
    options = session.options
    decides = identity(adapters, base, tasks, options) | {
        "device": session.device,
        **({"engine": session.engine} if options.served else {}),
        "dtype": session.dtype,
        "template": options.chat_template,
    }
    runs = cache_directory() / "runs"
    place = session.state or runs / digest(decides)
    ledger = Ledger(place, session.resume, fingerprint=decides)
    if not session.resume:
        return ledger, ""
    if len(ledger):
        return ledger, f"{len(ledger)} results of an earlier run of this call were kept."
    return ledger, _what_changed(runs, decides)


def identity(
    adapters: Sequence[Adapter], base: Base, tasks: Sequence[Task], options: Options
) -> dict[str, Any]:
    """Everything on which the result of an item depends; results of an equal identity are reused.

    Paths in configs are left out but for their last part, because the files are known by hash.
    Batch size and threads are left out. They change only the order of sums, which matters only
    between two equally likely tokens (docs/determinism.md), and a run that ran out of memory
    continues with a smaller batch.
    """
    packages = ["torch", "transformers", "tokenizers"]
    packages += ["bitsandbytes"] if options.quantize != "none" else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    stacks = {
        a.name: [[b.sha256, public_value(dict(b.config))] for b in a.below]
        for a in adapters
        if a.below
    }
    return {
        **({"below": stacks} if stacks else {}),
        "adapters": {
            a.name: {"config": public_value(dict(a.config)), "weights": a.sha256} for a in adapters
        },
        "order": [a.name for a in adapters],  # which weights go by
        "versions": {"loraprobe": __version__, **versions},
        "base": public_value(dict(base.identity)),
        "tasks": {task.name: digest(task.items) for task in tasks},
        "router_prompts": {
            name: digest(read_prompts(Path(file))) for name, file in options.router_prompts
        },
        "options": options.fingerprint(),
    }


def _what_changed(runs: Path, decides: Mapping[str, Any]) -> str:
    """The differences of this run to the most similar stored one of the same adapters and tasks.

    "" where there is no such run.
    """
    new = as_plain(decides)
    fingerprints: Iterable[dict[str, Any] | None] = map(
        read_fingerprint, sorted(runs.glob(f"*/{NAME}"))
    )
    alike = [
        changes(old, new)
        for old in fingerprints
        if old and all(names_in(old, key) == names_in(new, key) for key in ("adapters", "tasks"))
    ]
    nearest = min((phrases for phrases in alike if phrases), key=len, default=None)
    if nearest is None:
        return ""
    more = f" and {len(nearest) - 4} more" if len(nearest) > 4 else ""
    return f"Kept results were not used, for this run differs: {'; '.join(nearest[:4])}{more}."
