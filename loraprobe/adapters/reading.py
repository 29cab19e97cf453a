"""Reads a PEFT directory into an Adapter and accounts for every tensor of its file.

Whatever is odd but readable becomes an issue of the adapter; `loraprobe.compatibility.codes` lists
the codes. Errors stop a merge unless they are allowed by name.
"""

from __future__ import annotations

from pathlib import Path

from loraprobe.adapters.completeness import report_incompleteness
from loraprobe.adapters.config import CONFIG, read_config
from loraprobe.adapters.config_issues import report_config
from loraprobe.adapters.extras import as_peft_reads, extra_tensors
from loraprobe.adapters.issue_collector import IssueCollector
from loraprobe.adapters.sorting import KeySorting
from loraprobe.adapters.tensors import PICKLE, SAFETENSORS, disagreement, open_tensors
from loraprobe.adapters.types import Adapter, Modules, Source
from loraprobe.errors import AdapterError


def read_adapter(
    path: str | Path, name: str | None = None, source: Source | None = None
) -> Adapter:
    """Reads a PEFT directory. Factors are read from the file when they are needed.

    `name` is the adapter's name (default: the directory's). Raises AdapterError if the files cannot
    be read and UnsupportedAdapter if the configuration is not a plain LoRA.
    """
    directory = find_directory(Path(path))
    name = name or directory.resolve().name
    config = read_config(directory)
    file = open_tensors(directory)
    found = IssueCollector(name)
    sorting = KeySorting(config, file, found)
    sorting.sort_keys()
    infos = sorting.pair_factors()
    extras = as_peft_reads(sorting.extras, infos, config.raw, found)
    report_config(config.raw, extras, infos, found)
    report_incompleteness(infos, config.raw, extras, found)
    if what := disagreement(directory):
        message = (
            f"{directory} holds {SAFETENSORS} and {PICKLE}, which are not the same adapter: {what}."
        )
        found.error("weights-disagree", message, "Delete the one that is not meant.")
    if not infos:
        message = "The file holds no LoRA factors that can be used."
        found.error("no-modules", message, "Check that this is the adapter that was trained.")
    return Adapter(
        name=name,
        source=source or Source(reference=str(path), path=directory),
        base_model=config.raw.get("base_model_name_or_path") or None,
        modules=Modules(infos, sorting.reader(infos)),
        extras=tuple(extras),
        issues=tuple(found.issues),
        config=dict(config.raw),
        weights_file=file.path,
        **extra_tensors(file, extras, config.raw),
    )


def find_directory(path: Path) -> Path:
    """The directory itself, or its only sub-folder with an adapter (peft's named adapters).

    Raises AdapterError if several sub-folders hold adapters.
    """
    if (path / CONFIG).is_file() or not path.is_dir():
        return path
    inner = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
    if len(inner) > 1:
        names = ", ".join(map(str, inner))
        raise AdapterError(f"{path} holds several adapters; name one of {names}.")
    return inner[0] if inner else path
