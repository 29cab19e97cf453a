"""`verify` makes a merged or routed directory again from its card and compares every file.

The card's front matter says how the directory was made. The sources are found by commit or sha256,
and the code that writes merges and compositions writes the directory again, elsewhere. Then every
file is compared with the one that was written again, and no other file is allowed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe.adapters import Adapter, Modules, read_adapter
from loraprobe.base import Base
from loraprobe.checkpoint import check_link, read_json, unique_keys
from loraprobe.errors import AdapterError, LoraprobeError
from loraprobe.file_hashes import file_hash
from loraprobe.lora.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.pipeline.cards import (
    CARD,
    KEY,
    CompositionRecord,
    MergeRecord,
    ProvenanceRecord,
    read_card_fields,
    read_provenance,
)
from loraprobe.pipeline.commands import compose, merge
from loraprobe.pipeline.saved import FILE, STATE, Routed
from loraprobe.pipeline.verification.locating import find_base, find_source
from loraprobe.pipeline.verification.peft_skeleton import problems_in_peft
from loraprobe.pipeline.verification.rounding import difference_of_weights
from loraprobe.records import Check, Verification
from loraprobe.report.verification import ShownVerification

# Files of git and the Hub's client; no program loads them as part of an adapter.
IGNORED = frozenset({".git", ".gitattributes", ".cache"})
# The last digits of norms and factors of balance depend on the library of linear algebra.
SAME_NUMBER = 1e-9


def verify(
    directory: str | Path, sources: Sequence[str] = (), base: str | None = None
) -> Verification:
    """Checks the sources, the files and the card of a directory.

    sources, base: the adapters and the base that it was made of, if they are not found without.
    Files and card are checked only if every source is found. Raises AdapterError if the directory
    has no card by loraprobe.
    """
    place = Path(directory)
    if not place.is_dir():
        raise AdapterError(f"There is no directory {place}; check the path.")
    record = read_provenance(place)
    found = [find_source(source, place, sources) for source in (*record.sources, *record.subtract)]
    checks = [check for _, check in found]
    opened: Base | None = None
    if record.base is not None:
        opened, check = find_base(record.base, place, base)
        checks.append(check)
    if all(check.passed for check in checks):
        adapters = [adapter for adapter, _ in found if adapter is not None]
        checks += _compare_files(place, record, adapters, opened)
    return ShownVerification(str(directory), tuple(checks))


def _compare_files(
    place: Path,
    record: MergeRecord | CompositionRecord,
    adapters: Sequence[Adapter],
    base: Base | None,
) -> list[Check]:
    """One check for each file, against the one that is written again."""
    with tempfile.TemporaryDirectory() as space:
        again = Path(space) / "again"

        @functools.cache
        def reordered() -> Path:
            target = Path(space) / "reordered"
            _make_again(record, [_reversed(adapter) for adapter in adapters], base, target)
            return target

        try:
            _make_again(record, adapters, base, again)
        except LoraprobeError as error:
            return [Check("made again", False, f"It cannot be made again: {error}")]
        expected = {str(file.relative_to(again)) for file in again.rglob("*") if file.is_file()}
        checks = [_card(place, again)]
        for name in sorted(expected - {CARD}):
            problem = _difference(place, again, name, reordered, record)
            message = f"{problem}." if problem else "It is what would be written again."
            checks.append(Check(name, not problem, message))
        if isinstance(record, MergeRecord) and all(check.passed for check in checks):
            checks.append(_in_peft(place))
        return [_no_others(place, expected), *checks]


def _make_again(
    record: MergeRecord | CompositionRecord,
    adapters: Sequence[Adapter],
    base: Base | None,
    target: Path,
) -> None:
    """Writes the directory that the card describes, with a card of its own."""
    sources, general = adapters[: len(record.sources)], adapters[len(record.sources) :]
    common: dict[str, Any] = {
        "weights": None if record.weights is None else tuple(record.weights),
        "allow": tuple(record.allow),
        "balance": record.balance,
        "subtract": tuple(general),
    }
    if isinstance(record, MergeRecord):
        options = Options(
            methods=(record.method,),
            space=record.space,
            rank=record.rank,
            rank_layout=record.rank_layout,
            # --dtype has no float64: a merge has it if its sources have.
            dtype="auto" if record.dtype == "float64" else record.dtype,
            seed=record.seed,
            **common,
        )
        made = merge(sources, base=base, options=options).made
    else:
        options = Options(routers=(record.router,), **common)
        made = compose(sources, base=base, options=options).made
        assert isinstance(made, Routed)
        made = replace(made, composition=replace(made.composition, name=record.name))
    assert made is not None
    made.save(target)


def _reversed(adapter: Adapter) -> Adapter:
    """The same deltas, with the rows of A and the columns of B in reverse order."""

    def read(path: str) -> LowRank:
        update = adapter.modules[path]
        return LowRank(update.A.flip(0), update.B.flip(1), update.scaling)

    return replace(adapter, modules=Modules(adapter.layout, read))


def _no_others(place: Path, expected: set[str]) -> Check:
    """Whether the directory holds exactly the expected files, none a link out of it."""
    for name in _files(place):
        if name not in expected:
            message = f"{name} does not belong to it; peft, transformers or a person may load it."
            return Check("files", False, message)
        try:
            check_link(place / name, place.name, AdapterError)
        except AdapterError as error:
            return Check("files", False, str(error))
    lost = sorted(name for name in expected if not (place / name).is_file())
    if lost:
        return Check("files", False, f"{lost[0]} is missing.")
    return Check("files", True, f"{len(expected)} files, and no others.")


def _files(place: Path) -> Iterator[str]:
    """Paths of all files below a directory, without those of git. A link to a folder and an empty
    folder count as files."""
    for folder, folders, files in os.walk(place):
        here = Path(folder)
        if here == place:
            folders[:] = [name for name in folders if name not in IGNORED]
            files = [name for name in files if name not in IGNORED]
        linked = [name for name in folders if (here / name).is_symlink()]
        empty = [] if folders or files or here == place else [""]
        for name in (*sorted(files), *linked, *empty):
            yield str((here / name).relative_to(place))


def _card(place: Path, again: Path) -> Check:
    """Compares the fields that loraprobe writes into a card; other fields and the text are free."""
    found, wanted = (read_card_fields(directory) for directory in (place, again))
    for key in ("library_name", "pipeline_tag", "tags", "base_model", "license"):
        if found.get(key) != wanted.get(key):
            values = f"{_short(found.get(key))} instead of {_short(wanted.get(key))}"
            return Check(CARD, False, f"{key} is {values}.")
    # The versions that wrote the card may differ, the base has its own check, and the name of a
    # composition is compared with that in its listing.
    free = {
        key: found[KEY][key] for key in ("version", "torch", "base", "name") if key in found[KEY]
    }
    if problem := _first_difference(found[KEY], wanted[KEY] | free):
        return Check(CARD, False, f"{KEY}: {problem}.")
    return Check(CARD, True, "Its front matter is what would be written; its text is not checked.")


def _difference(
    place: Path,
    again: Path,
    name: str,
    reordered: Callable[[], Path],
    record: ProvenanceRecord,
) -> str | None:
    """How one file of the directory differs from the one that was written again."""
    found, wanted = place / name, again / name
    if not found.is_file():
        return "it is missing"
    try:
        if name.endswith(".safetensors"):
            return difference_of_weights(found, wanted, lambda: reordered() / name)
        ours, theirs = (_read_unique(file, place.name) for file in (found, wanted))
        if name == FILE:
            theirs = _as_listed(theirs, place, record)
        return _first_difference(ours, theirs)
    except (LoraprobeError, OSError, ValueError, KeyError, TypeError) as error:
        return str(error).rstrip(".")


def _as_listed(document: dict[str, Any], place: Path, record: ProvenanceRecord) -> dict[str, Any]:
    """composition.json with the version and the base of the card, and with the hashes of the
    directory's own files, which are compared one by one."""
    for expert in document["experts"]:
        folder = place / "experts" / expert["folder"]
        expert["files"] = {name: file_hash(folder / name) for name in expert["files"]}
    if document["router"]["state_sha256"] is not None:
        document["router"]["state_sha256"] = file_hash(place / STATE)
    base = None if record.base is None else record.base.model_dump()
    return document | {"loraprobe": record.version, "base": base}


def _read_unique(file: Path, reference: str) -> dict[str, Any]:
    """A JSON document. Raises ValueError if it has a key twice: readers differ on that."""
    document = read_json(file, reference, AdapterError)
    json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    return document


def _first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    """The first field that differs, with both values; floats may differ by SAME_NUMBER."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys((*wanted, *found)):
            name = f"{where}.{key}" if where else str(key)
            if key not in found:
                return f"{name} is missing"
            if key not in wanted:
                return f"{name} is in it and would not be written"
            if problem := _first_difference(found[key], wanted[key], name):
                return problem
        # peft takes the first pattern that fits, so their order counts.
        ordered = not where.endswith("_pattern") or [*found] == [*wanted]
        return None if ordered else f"{where} has another order"
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{where} has {len(found)} entries instead of {len(wanted)}"
        pairs = enumerate(zip(found, wanted, strict=True))
        problems = (_first_difference(one, other, f"{where}[{i}]") for i, (one, other) in pairs)
        return next(filter(None, problems), None)
    if type(found) is float and type(wanted) is float:
        same = math.isclose(found, wanted, rel_tol=SAME_NUMBER)
    else:
        same = type(found) is type(wanted) and found == wanted
    return None if same else f"{where} is {_short(found)} instead of {_short(wanted)}"


def _short(value: Any) -> str:
    return f"{value!r:.80}"


def _in_peft(place: Path) -> Check:
    """Whether peft loads the directory with all keys matched."""
    try:
        problems = problems_in_peft(place, read_adapter(place))
    except Exception as error:  # peft may raise anything
        problems = [f"peft does not load it: {str(error).splitlines()[0][:200]}"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        return Check("peft", False, f"{problems[0]}{more}.")
    return Check("peft", True, "peft loads it, all keys matched.")
