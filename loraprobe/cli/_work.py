"""From parsed options to core functions; imported only when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.audit import Settings
from loraprobe.cli import _parse as parse
from loraprobe.cli._output import Output
from loraprobe.defaults import RETENTION
from loraprobe.errors import UsageError
from loraprobe.spaces import space_named

if TYPE_CHECKING:
    from loraprobe.base import Base


def settings(
    *,
    methods: Sequence[str] | None = None,
    routers: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    weights: str | None = None,
    adapters: int = 0,
    space: str | None = None,
    rank: str = "auto",
    batch_size: str = "auto",
    metric: str | None = None,
    margin: float | None = None,
    retention: float = RETENTION,
    chat_template: str = "auto",
    diagnostics: Sequence[str] | None = None,
    allow: Sequence[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    subtract: Sequence[str] | None = None,
    router_prompts: Sequence[str] | None = None,
    **rest: Any,
) -> Settings:
    """Every option checked before anything is loaded. Raises UsageError."""
    _check_names(methods, routers, diagnostics)
    _check_machine(device, dtype)
    if space is not None:
        space_named(space)
    if margin is not None:
        parse.fraction(margin, "--margin")
    if metric is not None:
        from loraprobe.evaluation import METRICS

        parse.one_of(metric, METRICS, "--metric")
    chosen = parse.weights(weights, adapters)
    defaults = Settings()
    return Settings(
        methods=tuple(methods) if methods else defaults.methods,
        routers=tuple(routers) if routers else (() if methods else defaults.routers),
        systems=tuple(systems or ()),
        weights=chosen,
        subtract=tuple(subtract or ()),
        router_prompts=parse.named_files(router_prompts, "--router-prompts"),
        space=space,
        rank=parse.auto_or_count(rank, "--rank"),
        batch_size=parse.auto_or_count(batch_size, "--batch-size"),
        metric=metric,
        margin=margin,
        retention=parse.fraction(retention, "--retention"),
        chat_template=parse.one_of(chat_template, ("auto", "on", "off"), "--chat-template"),  # type: ignore[arg-type]
        diagnostics=tuple(diagnostics or ()),
        allow=tuple(allow or ()),
        device=device,
        dtype=dtype,
        arguments=tuple(sys.argv[1:]),
        **rest,
    )


def _check_names(
    methods: Sequence[str] | None, routers: Sequence[str] | None, diagnostics: Sequence[str] | None
) -> None:
    """Each name and its options lead to something that exists."""
    from loraprobe.diagnostics import DIAGNOSTICS
    from loraprobe.merging import METHODS
    from loraprobe.routing import ROUTERS

    for shelf, specs in ((METHODS, methods), (ROUTERS, routers), (DIAGNOSTICS, diagnostics)):
        for spec in specs or ():
            shelf.make(spec)


def _check_machine(device: str, dtype: str) -> None:
    """What the user names exists here; "auto" costs nothing."""
    from loraprobe.base import pick_device, pick_dtype

    if device != "auto":
        pick_device(device)
    if dtype != "auto":
        pick_dtype(dtype)


def inspect(
    refs: list[str],
    base: str | None,
    tasks: list[str] | None,
    probe: str | None,
    chosen: Settings,
    output: Output,
) -> None:
    """`loraprobe inspect`."""
    from loraprobe import audit, hub
    from loraprobe.tasks import load_probe, load_task

    if (tasks or probe) and base is None:
        raise UsageError("--task and --probe ask the base model; add --base DIR or --base auto.")
    loaded_tasks = [load_task(path, chosen.limit) for path in tasks or ()]
    probes = load_probe(probe) if probe and probe != "auto" else probe
    adapters = hub.load_all(refs)
    cards = {a.name: hub.model_card(a) for a in adapters} if probe == "auto" else {}
    opened = audit.base_of(base, adapters, code=chosen.trust_remote_code) if base else None
    with output.progress() as progress:
        found = audit.inspect(
            adapters, base=opened, tasks=loaded_tasks, probe=probes, cards=cards,
            settings=chosen, progress=progress,
        )  # fmt: skip
    _warn(found, output)
    output.result(found)


def merge_and_eval(
    refs: list[str],
    base: str,
    tasks: list[str] | None,
    chosen: Settings,
    output: Output,
    *,
    target: Path | None = None,
    overwrite: bool = False,
) -> None:
    """`loraprobe merge-and-eval`."""
    outcome = audit_of(refs, base, tasks, chosen, output, target=target, overwrite=overwrite)
    _warn(outcome.audit, output)
    if target is not None:
        _save(outcome, target, overwrite, output)
    output.result(outcome.audit)


def audit_of(
    refs: Sequence[str],
    base: str | Base,
    tasks: Sequence[str] | None,
    chosen: Settings,
    output: Output,
    *,
    target: Path | None = None,
    overwrite: bool = False,
) -> Any:
    """Loads what is named and runs the whole audit on it."""
    from loraprobe import audit, hub
    from loraprobe.adapter import check_output
    from loraprobe.tasks import load_task

    if not tasks:
        raise UsageError(
            "merge-and-eval needs --task FILE; without one, try inspect --base auto --probe auto."
        )
    if len(refs) < 2:
        raise UsageError("merge-and-eval composes adapters; give at least two.")
    if target is not None:
        check_output(target, overwrite)
    loaded_tasks = [load_task(path, chosen.limit) for path in tasks]
    adapters = hub.load_all(refs)
    opened = audit.base_of(base, adapters, code=chosen.trust_remote_code)
    with output.progress() as progress:
        return audit.merge_and_eval(
            adapters, base=opened, tasks=loaded_tasks, settings=chosen, progress=progress
        )


def merge(
    refs: list[str],
    base: str | None,
    tasks: list[str] | None,
    chosen: Settings,
    target: Path,
    overwrite: bool,
    output: Output,
) -> None:
    """`loraprobe merge`."""
    import loraprobe
    from loraprobe import audit

    _check_tasks("merge", tasks, chosen)
    made = (audit.merge, loraprobe.with_card)
    _make(*made, refs, base, tasks, chosen, target, overwrite, output)


def route(
    refs: list[str],
    base: str | None,
    tasks: list[str] | None,
    chosen: Settings,
    target: Path,
    overwrite: bool,
    output: Output,
) -> None:
    """`loraprobe route`."""
    import loraprobe
    from loraprobe import audit

    _check_tasks("route", tasks, chosen)
    made = (audit.compose, loraprobe.with_composition_card)
    _make(*made, refs, base, tasks, chosen, target, overwrite, output)


def _make(
    make: Callable[..., Any],
    with_card: Callable[..., Any],
    refs: list[str],
    base: str | None,
    tasks: list[str] | None,
    chosen: Settings,
    target: Path,
    overwrite: bool,
    output: Output,
) -> None:
    """What `make` makes of the adapters, saved with the card that `with_card` gives it."""
    from loraprobe import audit, hub
    from loraprobe.adapter import check_output
    from loraprobe.tasks import load_task

    check_output(target, overwrite)
    loaded_tasks = [load_task(path, chosen.limit) for path in tasks or ()]
    adapters = hub.load_all(refs)
    opened = audit.base_of(base, adapters, code=chosen.trust_remote_code) if base else None
    with output.progress() as progress:
        found, made = make(
            adapters, base=opened, tasks=loaded_tasks, settings=chosen, progress=progress
        )
    with_card(made, found, chosen).save(target, overwrite=overwrite)
    _warn(found, output)
    output.say(f"Wrote {target}.")
    output.result(found, line=f"{target}: {found.notes[-1]}")


def _check_tasks(command: str, tasks: list[str] | None, chosen: Settings) -> None:
    """Raises UsageError for a task, or a number of its items, that nothing would use."""
    if tasks and chosen.weights != "search":
        raise UsageError(f"--task serves {command} only to search weights on; add --weights "
                         "search, or use merge-and-eval.")  # fmt: skip
    if chosen.limit is not None and not tasks:
        raise UsageError("--limit goes with --task, whose items it counts.")


def verify(directory: Path, threads: int | None) -> Any:
    """`loraprobe verify`."""
    from loraprobe import audit

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return audit.verify(directory)


def _save(outcome: Any, target: Path, overwrite: bool, output: Output) -> None:
    """Saves the recommended composition, or says why there is none."""
    import loraprobe
    from loraprobe import audit

    if outcome.recommended is None:
        output.say(f"Nothing was written to {target}: {outcome.why_not_saved}")
        return
    made, found, chosen = outcome.recommended, outcome.audit, outcome.settings
    if isinstance(made, audit.Routed):
        loraprobe.with_composition_card(made, found, chosen).save(target, overwrite=overwrite)
        output.say(f"Wrote the composition {made.composition.name} to {target}; "
                   "loraprobe.load_composition restores it.")  # fmt: skip
        return
    merged = loraprobe.with_card(made, found, chosen)
    merged.save(target, overwrite=overwrite)
    output.say(f"Wrote {merged.adapter.name} to {target}.")


def _warn(found: Any, output: Output) -> None:
    """With --json the table of findings is not seen, so warnings go to standard error."""
    if output.json:
        for issue in found.compatibility.issues:
            if issue.severity != "note":
                output.warn(f"{issue.code}: {issue.message}")
