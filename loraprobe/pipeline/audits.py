"""Records of the stages -> the Audit of a run, without private paths and tokens.

Reports, pages and cards are made from it. References in it are public names already
(`Source.public`, `public_name`); paths are left in sentences and in the arguments of the call.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe.adapters import Adapter, is_path, local_name, public_name
from loraprobe.base import Base
from loraprobe.lora.workers import in_order
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import reference_of
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session
from loraprobe.records import Audit
from loraprobe.report.sections import ShownAudit
from loraprobe.secrets import map_texts, public_text


def audit_of(
    session: Session,
    inputs: Inputs,
    examined: Examination,
    notes: Iterable[str] = (),
    **found: Any,
) -> Audit:
    """The audit of a run, as it may be published.

    `found` are fields of Audit; empty notes are left out.
    """
    norms = {
        row.adapters[0]: row.value
        for row in examined.diagnostics
        if row.name == "norm" and row.module is None
    }
    hashes = in_order(lambda adapter: adapter.sha256, inputs.adapters)  # which adapters keep
    collections.deque(hashes, maxlen=0)
    private = dict(_private(inputs.adapters, inputs.base, session))
    names = {path: name for path, name in private.items() if len(path) > 2 and _has_folder(path)}
    public, run = partial(public_text, names=names), session.provenance()
    arguments = public_arguments(run.arguments, public)
    typed = dict(_places(inputs, session.options))
    for name, argument in zip(arguments, run.arguments, strict=True):
        if name != argument:
            typed.setdefault(name, [argument])
    return ShownAudit(
        command=session.command,
        provenance=replace(
            run,
            arguments=arguments,
            tasks=tuple(task.summary() for task in inputs.tasks),
        ),
        adapters=tuple(
            replace(a.summary(norms.get(a.name)), license=examined.licences.get(a.name))
            for a in inputs.adapters
        ),
        base=inputs.base.summary() if inputs.base is not None else None,
        compatibility=map_texts(examined.compatibility, public),
        diagnostics=examined.diagnostics,
        layers=examined.layers,
        notes=map_texts(tuple(filter(None, notes)), public),
        **{"places": typed, **found, "verdict": map_texts(found.get("verdict"), public)},
    )


def _places(inputs: Inputs, options: Options) -> Mapping[str, list[str]]:
    """A name in a command -> the references of the user that have it."""
    places = collections.defaultdict[str, list[str]](list)
    for adapter in inputs.given:
        place = adapter.source.reference
        typed = place if local_name(place) == adapter.name else f"{adapter.name}={place}"
        places[reference_of(adapter)].append(typed)
    for task in inputs.tasks:
        places[task.reference].append(task.path or task.name)
    if inputs.base is not None:
        places[inputs.base.summary().reference].append(inputs.base.reference)
    for name, file in options.router_prompts:
        places[f"{name}={Path(file).name}"].append(f"{name}={file}")
    return places


TEXTS = ("--fields", "--answer-after", "--answer-pattern")  # whose values are no paths


def public_arguments(typed: Sequence[str], public: Callable[[str], str]) -> tuple[str, ...]:
    """The words of a command line as they may be published. public: makes a text public."""
    return tuple(
        public(text if _is_text(before, text) else argument_without_folders(text))
        for before, text in zip(("", *typed), typed, strict=False)
    )


def _private(
    adapters: Sequence[Adapter], base: Base | None, session: Session
) -> Iterator[tuple[str, str]]:
    """Private texts of the run, each with the public text that replaces it."""
    options = session.options
    for adapter in adapters:
        source = adapter.source
        yield source.reference, source.public
        if source.path is not None:
            yield str(source.path), local_name(str(source.path))
        if adapter.base_model:
            yield adapter.base_model, public_name(adapter.base_model) or "a path"
    if base is not None:
        yield base.reference, base.reference if base.commit else local_name(base.reference)
        yield str(base.path), local_name(str(base.path))
    files = [Path(text) for text in options.prompt_template if text and "{" not in text]
    files += (file for _, file in options.router_prompts)
    for file in (session.state, *files):
        if file is not None:
            yield str(file), Path(file).name


def _is_text(before: str, text: str) -> bool:
    """Whether a word is no path: a data set of the Hub, or a text behind its option."""
    template = before == "--prompt-template" and "{" in text
    return template or before in TEXTS or text.startswith("hf://")


def argument_without_folders(text: str) -> str:
    """A command-line argument, also one such as NAME=REF or --output=DIR, without folders."""
    if text.startswith("@"):  # a file of references
        return "@" + argument_without_folders(text[1:])
    head, equals, value = text.rpartition("=")
    if not _has_folder(value):
        return text
    # A relative path of two parts looks like an id of the Hub; the folder tells.
    here = os.path.isdir(os.path.dirname(os.path.expanduser(value)))
    return head + equals + (local_name(value) if here or is_path(value) else value)


def _has_folder(path: str) -> bool:
    return "/" in path or "\\" in path
