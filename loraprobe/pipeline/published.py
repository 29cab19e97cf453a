"""What of a run may be published: names in place of folders of this machine, and the way back.

Reports, pages and cards are made from the audit. What they show holds no private paths and no
tokens: references are public names already (`Source.public`, `public_name`), and
`conclusion.audit_of` replaces paths in sentences and in the arguments of the call.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from loraprobe.adapters import (
    Adapter,
    agreed_base,
    hub_id,
    is_path,
    local_name,
    public_name,
    with_below,
)
from loraprobe.base import Base
from loraprobe.hub import reference_of
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs
from loraprobe.records import ON
from loraprobe.session import Session


def typed_references(inputs: Inputs, options: Options) -> Mapping[str, list[str]]:
    """A name in a command -> the references of the user that have it."""
    places = collections.defaultdict[str, list[str]](list)
    for adapter in inputs.given:
        typed = reference_of(adapter, lambda source: source.reference)
        places[reference_of(adapter)].append(typed)
    for task in (*inputs.tasks, *inputs.guards):
        places[task.reference].append(task.path or task.name)
    bases = [adapter.base_model or "" for adapter in inputs.given]
    declared = agreed_base(bases) or next(iter(bases), "")
    if inputs.base is not None:
        places[inputs.base.summary().reference].append(inputs.base.reference)
    elif hub_id(declared) is None and (public := public_name(declared)):
        places[public].append(declared)
    for name, file in options.router_prompts:
        places[f"{name}={Path(file).name}"].append(f"{name}={file}")
    return places


def public_arguments(typed: Sequence[str], public: Callable[[str], str]) -> tuple[str, ...]:
    """The words of a command line as they may be published. public: makes a text public."""
    return tuple(
        public(
            text  # no path: a data set of the Hub, or a text behind its option
            if before == "--fields" or text.startswith("hf://")
            else argument_without_folders(text)
        )
        for before, text in zip(("", *typed), typed, strict=False)
    )


def private_texts(
    adapters: Sequence[Adapter], base: Base | None, session: Session
) -> dict[str, str]:
    """Private paths of the run, each with the public text that replaces it."""
    texts = dict(_private(adapters, base, session))
    return {path: name for path, name in texts.items() if len(path) > 2 and _has_folder(path)}


def _private(
    adapters: Sequence[Adapter], base: Base | None, session: Session
) -> Iterator[tuple[str, str]]:
    options = session.options
    for adapter in with_below(adapters):
        source = adapter.source
        yield source.reference, source.public
        if source.path is not None:
            yield str(source.path), local_name(str(source.path))
        if adapter.base_model:
            yield adapter.base_model, public_name(adapter.base_model) or "a path"
    if base is not None:
        yield base.reference, base.reference if base.commit else local_name(base.reference)
        yield str(base.path), local_name(str(base.path))
    for file in (session.state, *(file for _, file in options.router_prompts)):
        if file is not None:
            yield str(file), Path(file).name


def argument_without_folders(text: str) -> str:
    """A command-line argument, also one such as NAME=REF or --output=DIR, without folders."""
    if text.startswith("@"):  # a file of references
        return "@" + argument_without_folders(text[1:])
    if ON in text and not text.startswith("-"):
        return ON.join(map(argument_without_folders, text.split(ON)))
    head, equals, value = text.rpartition("=")
    if not _has_folder(value):
        return text
    # A relative path of two parts looks like an id of the Hub; the folder tells.
    here = os.path.isdir(os.path.dirname(os.path.expanduser(value)))
    return head + equals + (local_name(value) if here or is_path(value) else value)


def _has_folder(path: str) -> bool:
    return "/" in path or "\\" in path
