"""`verify` repeats a merge or a composition by its card and compares the directory with the result.

The card's front matter says how the directory was made. The sources are found by commit or sha256,
the code that writes merges and compositions writes the directory again, elsewhere, and every file
is compared: texts line by line, tensors by `TOLERANCES`. No other file is allowed. The weights of a
full model are compared with the base and the merge in memory.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraprobe import hub
from loraprobe.adapters import Adapter, Source, read_adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.base import Base, open_base
from loraprobe.cache import file_hash
from loraprobe.checkpoint import TensorFile, open_weights
from loraprobe.errors import AdapterError, LoraprobeError, UsageError
from loraprobe.extensions.files.contents import contents_of
from loraprobe.extensions.files.full_model import METADATA, compose_full_model
from loraprobe.extensions.files.provenance import (
    BaseRecord,
    CompositionRecord,
    LearnedRecord,
    MergeRecord,
    SourceRecord,
    read_card_fields,
    read_provenance,
)
from loraprobe.extensions.files.verification import Check, Verification, checks_of
from loraprobe.formatting import listing
from loraprobe.front_matter import KEY
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import Merged
from loraprobe.options import Options
from loraprobe.pipeline.inputs import base_of
from loraprobe.records import Progress
from loraprobe.report.cards import CARD
from loraprobe.routing import FILE, ROUTERS, STATE, Routed
from loraprobe.session import Session
from loraprobe.untrusted import check_link

if TYPE_CHECKING:
    from loraprobe.pipeline.plan import Fitted

# Files of git and the Hub's client; no program loads them as part of an adapter.
IGNORED = frozenset({".git", ".gitattributes", ".cache", ".eval_results"})
FIELDS = ("library_name", "pipeline_tag", "tags", "base_model", "license")  # of a card, beside KEY
LEVELS = 3  # folders below a root, and above it, in which sources are looked for
HASHED = 100  # adapters whose weights are hashed for one source
# How far tensors of a dtype may differ, relative to their size. The same machine gives the same
# bits; another library of linear algebra adds numbers in another order, and may give singular
# vectors another sign or basis. In float32 that is up to 1.5e-4 (of a row of DELLA's results), in
# half floats the rounding of the factors is larger: the tolerance is 1.5 to 2 of their spacings.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 5e-4,
    torch.float16: 2e-3,
    torch.bfloat16: 1.2e-2,
}
FLOOR = 1e-12  # of a module, where a part of it is zero but for the rounding of float64
FLOOR32 = 1e-6  # and of a tensor, for that of float32, in which a change is added to a full model
# And what a router learned: means of what the base, in this dtype, computed.
LEARNED = {"float32": 5e-4, "float16": 1e-2, "bfloat16": 5e-2}
FACTOR = re.compile(r"\.lora_(embedding_)?[AB](\.weight)?$")
NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?")
SAME_NUMBER = 1e-9  # a factor of balance depends in its last digits on the machine

CardRecord = MergeRecord | CompositionRecord


def verify(
    directory: str | Path,
    sources: Sequence[str] = (),
    base: str | None = None,
    of: Sequence[str] = (),
    weights: tuple[float, ...] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compares a directory with what its card's recipe makes, or its weights with `of`.

    sources, base: the adapters, the files of prompts from which a router learned, and the base that
    it was made of, if they are not found without. of: adapters that explain the weights of a
    directory without such a card. weights: those that they should have in it.
    Files are compared only if all of these are found. Raises AdapterError if the directory has no
    card by loraprobe, LoraprobeError for a given source that cannot be read.
    """
    place = Path(directory)
    if not place.is_dir():
        raise AdapterError(f"There is no directory {place}; check the path.")
    if of:
        return _by_weights(place, base, of, weights, sources, progress)
    if weights is not None:
        raise UsageError("--weights are those of --of, which is missing; add the adapters.")
    record = read_provenance(place)
    files = [Path(one) for one in sources if _learns(record) and Path(one).is_file()]
    given = [hub.load(one) for one in sources if Path(one) not in files]
    adapters, checks = list[Adapter](), list[Check]()
    for recorded in (*record.sources, *record.subtract):
        adapter, check = _source(recorded, place, given)
        checks.append(check)
        adapters += [adapter] if adapter else []
    opened: Base | None = None
    if record.base is not None:
        opened, check = _base(record.base, place, base)
        checks.append(check)
    prompts: Fitted | None = None
    if isinstance(record, CompositionRecord) and _learns(record):
        prompts, more = _prompts(record.learned, place, files)
        checks += more
    if all(check.passed for check in checks):
        with tempfile.TemporaryDirectory() as space:
            again = Path(space) / "again"
            try:
                compared = _make_again(record, adapters, opened, prompts, place, again)
                checks += _compared(place, again, record, compared)
            except LoraprobeError as error:
                checks.append(Check("made again", None, f"It cannot be made again: {error}"))
    return Verification(str(directory), tuple(checks), tuple(sources), base)


def _by_weights(
    place: Path,
    base: str | None,
    of: Sequence[str],
    weights: tuple[float, ...] | None,
    sources: Sequence[str],
    progress: Progress | None,
) -> Verification:
    """What of the adapters `of` is in the weights of a directory, whatever its card says."""
    if sources:
        raise UsageError(
            f"{sources[0]} is a source of a card, and with --of no card is read; give it as --of."
        )
    adapters = hub.load_all(of)
    full = not (place / CONFIG).is_file()
    opened = base_of(base or "auto", adapters) if base or full else None
    contents = contents_of(place, opened, adapters, weights, progress)
    given = base or (opened.reference if opened else None)
    checks = checks_of(contents)
    return Verification(str(place), checks, (), given, tuple(of), contents)


def _make_again(
    record: CardRecord,
    adapters: Sequence[Adapter],
    base: Base | None,
    prompts: Fitted | None,
    place: Path,
    target: Path,
) -> list[Check]:
    """Writes the directory that the card describes to `target`, with a card of its own.

    The weights of a full model are not written: the returned checks compare those of `place` with
    the base and the merge as they are computed, so that no fault of writing can be repeated.
    """
    from loraprobe.pipeline.commands import compose, merge  # which --of needs not to load

    sources, subtrahends = adapters[: len(record.sources)], adapters[len(record.sources) :]
    common: dict[str, Any] = {
        "weights": None if record.weights is None else tuple(record.weights),
        "allow": tuple(record.allow),
        "balance": record.balance,
        "subtract": tuple(subtrahends),
        "layers": record.layers,
    }
    if isinstance(record, MergeRecord):
        options = Options(
            methods=(record.method,),
            space=record.space,
            rank=record.rank,
            # --dtype has no float64: a merge has it if its sources have.
            dtype="auto" if record.dtype == "float64" else record.dtype,
            seed=record.seed,
            **common,
        )
        made = merge(sources, Session(options), base=base).made
    else:
        common["chat_template"] = "on" if record.learned and record.learned.chat else "off"
        options = Options(routers=(record.router,), **common)
        made = compose(sources, Session(options), base=base, again=prompts).made
        assert isinstance(made, Routed)
        made = replace(made, composition=replace(made.composition, name=record.name))
    assert made is not None
    if not (isinstance(made, Merged) and isinstance(record, MergeRecord) and record.full_model):
        made.save(target)
        return []
    weights = list[Check]()

    def compare(tensors: Mapping[str, Tensor], name: str) -> None:
        try:
            problem = _difference_of_weights(place / name, tensors)
        except (LoraprobeError, OSError, ValueError) as error:
            problem = str(error).rstrip(".")
        weights.append(Check(name, not problem, f"{problem or 'The same'}."))

    target.mkdir()
    compose_full_model(made, target, compare)
    return weights


def _compared(
    place: Path, again: Path, record: CardRecord, weights: Sequence[Check]
) -> list[Check]:
    """One check of which files there are, then one for each file. weights: those made before."""
    checks = [*weights]
    names = sorted(str(file.relative_to(again)) for file in again.rglob("*") if file.is_file())
    for name in names:
        try:
            problem = _difference(place, again, name, record)
        except (LoraprobeError, OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error).rstrip(".")
        free = not problem and name == CARD  # the text may be edited
        told = problem or (
            "Its recipe is the same, its text is not compared" if free else "The same"
        )
        checks.append(Check(name, not problem, f"{told}.", not free))
    try:
        exact, message = _no_others(place, {check.name for check in checks})
    except AdapterError as error:
        exact, message = False, str(error)
    return [Check("files", exact, message), *checks]


def _no_others(place: Path, expected: set[str]) -> tuple[bool, str]:
    """Whether a directory holds exactly the expected files, and what else it holds or lacks.

    A link to a folder and an empty folder count as files; those of git are left out.
    """
    held = set[str]()
    for path in place.rglob("*"):
        name = path.relative_to(place)
        is_file = path.is_symlink() or not path.is_dir() or not any(path.iterdir())
        if is_file and name.parts[0] not in IGNORED:
            check_link(path, place.name, AdapterError)
            held.add(str(name))
    if others := held - expected:
        other = min(others)
        return False, f"{other} does not belong to it; peft, transformers or a person may load it."
    if lost := expected - held:
        return False, f"{min(lost)} is missing."
    return True, f"{len(expected)} files, and no others."


def _difference(place: Path, again: Path, name: str, record: CardRecord) -> str | None:
    """How one file of the directory differs from the one that was written again."""
    found, wanted = place / name, again / name
    if not found.is_file():
        return "It is missing"
    if name == STATE and isinstance(record, CompositionRecord) and record.learned is not None:
        return _difference_of_state(found, wanted, LEARNED[record.learned.dtype])
    if name.endswith(".safetensors"):
        return difference_of_tensors(found, wanted)
    if name == CARD:
        return _different_line(*map(_card_text, (place, again)))
    if name != FILE and found.read_bytes() == wanted.read_bytes():  # which need not be a text
        return None
    text = wanted.read_text(encoding="utf-8")
    if name == FILE:  # with what has checks of its own: version, base, and hashes of files
        listed = json.loads(text)
        for expert in listed["experts"]:
            folder = place / "experts" / expert["folder"]
            expert["files"] = {file: file_hash(folder / file) for file in expert["files"]}
        if listed["router"]["state_sha256"] is not None:
            listed["router"]["state_sha256"] = file_hash(place / STATE)
        base = None if record.base is None else record.base.model_dump()
        listed |= {"loraprobe": record.version, "base": base}
        text = json.dumps(listed, indent=1, ensure_ascii=False) + "\n"
    return _different_line(found.read_text(encoding="utf-8"), text)


def _card_text(directory: Path) -> str:
    """The fields of a card that loraprobe writes, as text; other fields and the body are free.

    The versions that wrote a card may differ, the base has its own check, and the name of a
    composition is compared with that in its listing.
    """
    fields = read_card_fields(directory)
    recipe = fields.get(KEY)
    if isinstance(recipe, dict):
        recipe = {k: v for k, v in recipe.items() if k not in ("version", "torch", "base", "name")}
    held = {**{key: fields.get(key) for key in FIELDS}, KEY: recipe}
    return json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False, default=repr)


def _different_line(found: str, wanted: str) -> str | None:
    """The first line in which two texts differ; numbers may by SAME_NUMBER."""
    lines = zip_longest(found.split("\n"), wanted.split("\n"), fillvalue="nothing")
    for number, (one, other) in enumerate(lines, 1):
        values = zip(*(map(float, NUMBER.findall(line)) for line in (one, other)), strict=False)
        close = all(math.isclose(x, y, rel_tol=SAME_NUMBER) for x, y in values)
        if not close or NUMBER.sub("0.0", one) != NUMBER.sub("0.0", other):
            ours, theirs = (f"{line.strip(' ,')!r:.80}" for line in (one, other))
            return f"Line {number} of what is compared says {ours} instead of {theirs}"
    return None


def _difference_of_weights(found: Path, wanted: Mapping[str, Tensor]) -> str | None:
    """How a file of weights differs from tensors beyond TOLERANCES; None if it does not.

    Raises AdapterError for a file that cannot be read.
    """
    if not found.is_file():
        return "It is missing"
    ours = open_weights(found, str(found.parent), AdapterError)
    if ours.metadata != METADATA:
        return "Its header holds other texts"
    expected = {key: (tuple(one.shape), one.dtype) for key, one in wanted.items()}
    if problem := _different_header(ours, expected):
        return problem
    for key, tensor in wanted.items():
        if not _close(ours.read(key), tensor):
            return f"{key} differs by more than rounding"
    return None


def _different_header(
    ours: TensorFile, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]
) -> str | None:
    """The first tensor of a file that is not expected, is missing, or of another shape or dtype."""
    held = {key: (ours.shapes[key], ours.dtypes[key]) for key in ours.shapes}
    for key in sorted(held.keys() | expected.keys()):
        if held.get(key) != expected.get(key):
            return f"{key} is missing, does not belong to it, or has another shape or dtype"
    return None


def _opened(found: Path, wanted: Path) -> tuple[TensorFile, TensorFile, str | None]:
    """Two safetensors files, and how the header of the first differs from that of the other."""
    ours, theirs = (open_weights(one, str(one.parent), AdapterError) for one in (found, wanted))
    if ours.metadata != theirs.metadata:
        return ours, theirs, "Its header holds other texts"
    expected = {key: (theirs.shapes[key], theirs.dtypes[key]) for key in theirs.shapes}
    return ours, theirs, _different_header(ours, expected)


def _close(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to the tolerance of the wanted one's dtype."""
    if torch.equal(tensor, wanted):
        return True
    close, size = TOLERANCES.get(wanted.dtype, 0.0), wanted.double().abs()
    allowed = close * size + min(close, FLOOR32) * size.max()
    return bool(((tensor.double() - wanted.double()).abs() <= allowed).all())


def _difference_of_state(found: Path, wanted: Path, close: float) -> str | None:
    """How what a router learned differs from what it learned again; None if it does not.

    A number may differ by a share of its size and of the size of its row, since the base computed
    it from the whole row.
    """
    ours, theirs, problem = _opened(found, wanted)
    if problem:
        return problem
    for key in theirs.shapes:
        mine, again = ours.read(key).double(), theirs.read(key).double()
        row = again.square().mean(-1, keepdim=True).sqrt()
        if not bool(((mine - again).abs() <= close * (again.abs() + row)).all()):
            return f"{key} differs by more than rounding"
    return None


def difference_of_tensors(found: Path, wanted: Path) -> str | None:
    """How a safetensors file differs from another beyond TOLERANCES; None if it does not.

    Factors are compared by their products, with the config beside each file. Raises AdapterError
    for a file that cannot be read.
    """
    ours, theirs, problem = _opened(found, wanted)
    if problem:
        return problem
    differing = [k for k in theirs.shapes if not torch.equal(ours.read(k), theirs.read(k))]
    if any(map(FACTOR.search, differing)):
        made, again = read_adapter(found.parent), read_adapter(wanted.parent)
        for path, update in again.modules.items():
            if not same_product(made.modules[path], update):
                return f"The delta of {path} differs by more than rounding"
    for key in differing:
        if not FACTOR.search(key) and not _close(ours.read(key), theirs.read(key)):
            return f"{key} differs by more than rounding"
    return None


def same_product(found: LowRank, wanted: LowRank) -> bool:
    """Whether B A of two updates are equal up to the tolerance.

    Each row and each column of the product is compared, in which one changed number cannot hide,
    and the norm of A, which could overflow in another split of the product. Each is relative to its
    size if the rows of A and the columns of B were orthogonal. The product is not formed: a QR of
    the other factor gives its lengths.
    """
    A, B, A2, B2 = (t.double() for t in (found.A, found.B, wanted.A, wanted.B))
    a, b = A2.square(), B2.square()
    left, right = torch.cat([B, -B2], dim=1), torch.cat([A, A2])
    compared = (
        (A.norm() - A2.norm(), a.sum()),
        ((left @ torch.linalg.qr(right.mT, mode="r").R.mT).norm(dim=1), b @ a.sum(1)),
        ((torch.linalg.qr(left, mode="r").R @ right).norm(dim=0), b.sum(0) @ a),
    )
    close, least = TOLERANCES[wanted.A.dtype], FLOOR * (b.sum(0) @ a.sum(1)).sqrt()
    return all(
        bool((apart.abs() <= close * square.sqrt() + least).all()) for apart, square in compared
    )


def _source(
    record: SourceRecord, place: Path, given: Sequence[Adapter]
) -> tuple[Adapter | None, Check]:
    """The source that the card of `place` records, or None, and the check of its sha256.

    It is looked for among the adapters that the user gave, then at its commit on the Hub, or
    without one near `place` and the working directory.
    """
    label, hashed = f"source {record.name}", f"sha256 {record.sha256[:12]}..."
    missing = f"{record.reference} ({hashed}) was not found."
    if given:
        refs = listing(adapter.source.reference for adapter in given)
        missing += f" What was given ({refs}) holds other weights."
    try:
        among = chain(given, _candidates(record, place))
        adapter = next((one for one in among if one.sha256 == record.sha256), None)
    except LoraprobeError as error:
        return None, Check(label, None, f"{missing} {error}")
    if adapter is None and record.commit:
        other = f"{record.reference} holds other weights at its commit than {hashed}."
        return None, Check(label, False, other)
    if adapter is None:
        return None, Check(label, None, missing)
    source = Source(record.reference, adapter.source.path, record.commit)
    check = Check(label, True, f"{record.reference}: {hashed}")
    return replace(adapter.renamed(record.name), source=source), check


def _candidates(record: SourceRecord, place: Path) -> Iterator[Adapter]:
    """The adapter of a commit, or those near a place, first those of the recorded name.

    Copies of the sources in the place itself prove nothing and are left out.
    """
    if record.commit:
        yield hub.load(_pinned(record.reference, record.commit))
        return
    inside, folders = place.resolve(), _folders_with(CONFIG, place)
    near = [folder for folder in folders if folder.name == Path(record.reference).name]
    folders = [*near, *_folders_above(record.reference, place), *folders]
    for folder in list(dict.fromkeys(folders))[:HASHED]:
        with contextlib.suppress(LoraprobeError, OSError):
            if not folder.resolve(strict=True).is_relative_to(inside):
                yield hub.load(folder)


def _learns(record: CardRecord) -> bool:
    """Whether the card has a router that learns from prompts."""
    if not isinstance(record, CompositionRecord):
        return False
    try:
        return ROUTERS.make(record.router).needs_prompts
    except (UsageError, TypeError, ValueError):
        return False  # which is told where it is made


def _prompts(
    record: LearnedRecord | None, place: Path, given: Sequence[Path]
) -> tuple[Fitted | None, list[Check]]:
    """The prompts from which a router learned, and a check of each file that holds them."""
    if record is None:
        told = "What the router learned from stands in no file that the card names."
        return None, [Check("learned", None, told)]
    found, checks = list[Path](), list[Check]()
    for row in record.files:
        folders = _folders_with(glob.escape(row.file), place)
        near = chain(given, (folder / row.file for folder in folders[:HASHED]))
        file = next((one for one in near if _is_file_of(one, row.sha256)), None)
        hashed = f"sha256 {row.sha256[:12]}..."
        missing = f"The file with {hashed}, from which the router learned, was not found."
        told = f"{row.file}: {hashed}" if file else missing
        checks.append(Check(f"prompts {row.file}", True if file else None, told))
        found += [file] if file else []
    if len(found) < len(record.files):
        return None, checks
    try:
        return _prompts_at(record, found), checks
    except LoraprobeError as error:
        return None, [*checks, Check("learned", False, str(error))]


def _prompts_at(record: LearnedRecord, files: Sequence[Path]) -> Fitted:
    """The prompts that a record names, read from its files in their order.

    Raises LoraprobeError for a file that cannot be read and a place that is not in it.
    """
    from loraprobe.pipeline.fitting import prompt_lines
    from loraprobe.pipeline.plan import Fitted

    prompts: dict[str, list[str]] = {}
    for row, file in zip(record.files, files, strict=True):
        lines = prompt_lines(file, row.fields)
        for name, places in row.places.items():
            if max(places, default=0) >= len(lines):
                raise UsageError(f"{row.file} has {len(lines)} prompts, fewer than the card says.")
            prompts.setdefault(name, []).extend(lines[at] for at in places)
    return Fitted(prompts=prompts, record=record.model_dump())


def _is_file_of(file: Path, sha256: str) -> bool:
    """Whether a regular file has this sha256."""
    try:
        return file.is_file() and file_hash(file) == sha256
    except OSError:
        return False


def _base(record: BaseRecord, place: Path, given: str | None) -> tuple[Base | None, Check]:
    """The base that the card records: `given`, else its commit, else a folder of its name."""
    reference = given or (record.commit and _pinned(record.reference, record.commit))
    told = f"The base that was used ({record.reference}) was not found."
    try:
        if reference:
            candidates = [base_of(reference, ())]
        else:
            folders = _folders_with("config.json", place)
            candidates = [open_base(one) for one in folders if one.name == record.reference]
    except LoraprobeError as error:
        if given is not None:
            raise
        return None, Check("base", None, f"{told} {error}")
    for found in candidates:
        if not record.sha256 or found.sha256 == record.sha256:
            weights = f"sha256 {found.sha256[:12]}..." if record.sha256 else "not hashed"
            check = Check("base", True, f"{record.reference}: {record.commit or weights}")
            return replace(found, reference=record.reference, commit=record.commit), check
        told = f"{found.reference} has other weights than the base that was used."
    return None, Check("base", None, told)


def _folders_with(name: str, place: Path) -> list[Path]:
    """The folders with a file of this name in the folder of a place and in the working directory.

    Three levels of folders below each are seen; what cannot be listed is left out.
    """
    folders = list[Path]()
    for root in (place.resolve().parent, Path.cwd()):
        for depth in range(LEVELS + 1):
            with contextlib.suppress(OSError):
                folders += [file.parent for file in root.glob("[!.]*/" * depth + name)]
    return list(dict.fromkeys(folders))


def _folders_above(reference: str, place: Path) -> list[Path]:
    """The folders of adapters under a recorded reference in the folders above that of a place.

    The merge may have been made in one of them. A folder further in is not looked into, because
    other merges have their sources there.
    """
    if Path(reference).is_absolute() or ".." in Path(reference).parts:
        return []
    above = (root / reference for root in place.resolve().parents[1 : LEVELS + 1])
    return [folder for folder in above if (folder / CONFIG).is_file()]


def _pinned(reference: str, commit: str) -> str:
    """A reference at the commit that was used."""
    repo, colon, folder = reference.partition(":")
    return f"{repo.partition('@')[0]}@{commit}{colon}{folder}"
