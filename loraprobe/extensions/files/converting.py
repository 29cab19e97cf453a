"""One adapter written again, as peft and servers read it: the same function in peft.

An adapter of another PEFT type becomes a LoRA: peft loads it on its base and merges it into each
layer's weight, and the singular value decomposition of the change, cut to a rank, gives the
factors. What rotates or scales activations, or adds tokens, has no such change.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe import compatibility, hub
from loraprobe._version import __version__
from loraprobe.adapters import (
    Adapter,
    Artifact,
    Source,
    adapter_of,
    check_apart,
    common_targets,
    portable,
    public_name,
)
from loraprobe.adapters.building import with_paths
from loraprobe.adapters.config import CONFIG, PATTERN, untargeted_paths
from loraprobe.adapters.files import PICKLE, SAFETENSORS, foreign_weights, open_tensors
from loraprobe.adapters.reading import FIELDS, PREFIX
from loraprobe.adapters.saving import SELECTORS, config_of
from loraprobe.base import Base, module_names
from loraprobe.base.loading import load_model
from loraprobe.base.naming import with_base_names
from loraprobe.checkpoint import TensorFile
from loraprobe.compatibility.licences import known_licence
from loraprobe.errors import (
    AdapterError,
    BaseError,
    CompatibilityError,
    LoraprobeError,
    UnsupportedAdapter,
    UsageError,
)
from loraprobe.extension import Remarks, Result
from loraprobe.extensions.files import CUT_ENERGY, KEPT_ENERGY, WITH_DELTA
from loraprobe.extensions.files.mlx import mlx_config, save_mlx
from loraprobe.formatting import listing
from loraprobe.front_matter import read_front_matter
from loraprobe.lora.lowrank import LowRank
from loraprobe.options import Options
from loraprobe.patterns import PatternError, first_matches
from loraprobe.pipeline.inputs import base_apart, open_inputs
from loraprobe.pipeline.outcome import Outcome, audit_of, with_remarks
from loraprobe.pipeline.preflight import examine
from loraprobe.records import Compatibility, Measurement
from loraprobe.report.cards import parts_of
from loraprobe.report.markdown import filled
from loraprobe.session import Adapters, Ref, Session
from loraprobe.untrusted import memory_limit, nested_values, read_json

LICENCE_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
LICENCE_LINK = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./%+~-]*)?", re.ASCII)
LONGEST_LINK = 200  # characters
# The largest difference of log-probabilities, as a share of the adapter's effect, of one function:
# scalings that are multiplied into B in a 16-bit type round it.
SAME = 0.02
SAMPLE = 64  # tokens on which peft computes both
# What peft may take to load an adapter of another type: bytes, and times the base.
MEMORY, TIMES = 1_000_000_000, 3
# Findings that are gone once an adapter is written again.
MENDED = frozenset({"doubled-prefix", "unprefixed-keys", "pickled", "tensors-unused"})
RENAMED = frozenset({"modules-renamed"})  # a note, where no more than names is the base's
# Parts of the keys of numbers that are no sizes of tensors.
COUNTS = ("alpha", "seed", "prng_key", "lambda", "dropout", "tinit", "tfinal", "delta", "step",
    "layers", "scale", "scaling", "std", "weight", "beta", "version")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Converted(Artifact):
    """An adapter as it will be written, its card, and the place of its source."""

    adapter: Adapter
    card: str
    source: Path | None
    targets: Sequence[str] | None
    mlx: Mapping[str, Any] | None = None  # the config of mlx-lm, if it is written for that

    @property
    def name(self) -> str:
        return self.adapter.name

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a directory of peft, or of mlx-lm. Raises OutputError, also for a place inside the
        source."""
        check_apart(Path(directory), [self.source] if self.source else [])
        if self.mlx is not None:
            save_mlx(self.adapter, self.mlx, Path(directory), overwrite, self.card)
            return
        self.adapter.save(directory, overwrite=overwrite, card=self.card, targets=self.targets)


def convert(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    like: Ref | None = None,
    portable: bool = True,
    keep_energy: float = KEPT_ENERGY,
    to: Literal["peft", "mlx"] = "peft",
) -> Outcome:
    """One adapter with peft's keys, one safetensors file and, if portable, one rank and scaling.

    An adapter of another type that changes weights becomes a LoRA that keeps at least `keep_energy`
    of each change's squared norm.

    base: gives the file the layout of its experts, and compares a copy of an embedding or head that
    the file may hold. Raises CompatibilityError for what cannot be kept exactly: tensors of an
    unknown kind, an initialisation that changed the base. like: a base or an adapter whose names of
    modules are written. to: the library that reads what is written; mlx has one rank and one
    scaling.
    """
    if to not in ("peft", "mlx"):
        raise UsageError(f"--to={to} is no library that convert writes for; take peft or mlx.")
    if to == "mlx" and not portable:
        raise UsageError("mlx-lm has one rank and one scale for all modules; leave out --compact.")
    if not 0 < keep_energy <= 1:
        raise UsageError(f"--keep-energy={keep_energy:g} is no share; give a number in (0, 1].")
    session.command = "convert"
    given = [adapters] if isinstance(adapters, (str, Path, Adapter)) else list(adapters)
    if len(given) > 1:
        raise UsageError("convert rewrites one adapter; give one, or merge several with merge.")
    made_lora = lora_of(given[0], session, base, keep_energy) if given else None
    if made_lora is None and session.options.rank != "auto":
        raise UsageError("--rank goes with an adapter of another type than LoRA; leave it out.")
    inputs = open_inputs(made_lora[:1] if made_lora else given, session, base)
    (original,), (adapter,) = inputs.given, inputs.adapters
    own, aligned = ({issue.code for issue in one.issues} for one in (original, adapter))
    if own ^ aligned <= RENAMED:
        adapter = original  # with the names of its file
    # Extras must be known to be refused.
    sound = replace(_with_repaired_paths(adapter), extras=adapter.extras)
    preflight = examine([sound], inputs.base, "merge", session)
    found = compatibility.require(preflight.compatibility)
    place = session.target or Path("OUT")
    before = "" if made_lora is None else made_lora[1]
    made, changes = convert_adapter(adapter, place, like, portable, before, original, to)
    require_certain(found, original, made, inputs.base, session.options)
    if to == "mlx":
        made = replace(made, mlx=mlx_config(made.adapter, inputs.base))
    serious = Compatibility(tuple(i for i in found.issues if i.severity != "note"))
    preflight = replace(preflight, compatibility=serious, layers=())
    remarks = Remarks()
    if to == "peft":  # what servers read is no file of mlx-lm
        result = Result(inputs.given, inputs.base, made.adapter)
        preflight, remarks = with_remarks(preflight, session, result)
    if made_lora is not None:
        preflight = replace(preflight, diagnostics=(*preflight.diagnostics, *made_lora[2]))
    inputs = replace(inputs, adapters=[made.adapter])
    audit = audit_of(session, inputs, preflight, [changes], added=remarks.added)
    return Outcome(audit, made)


def _with_repaired_paths(adapter: Adapter) -> Adapter:
    """The adapter with the paths of its base's modules, and only tensors that can be written.

    A module whose keys have peft's prefix twice gets the path that peft would look for. The caller
    refuses extras that must not be dropped.
    """
    repaired = with_paths(adapter, lambda path: re.sub(rf"^({re.escape(PREFIX)})+", "", path))
    if repaired is None:
        return adapter
    extras = tuple(extra for extra in adapter.extras if extra.kind in FIELDS)
    mended = {*MENDED, *(code for _, code in foreign_weights().values())}
    issues = tuple(issue for issue in adapter.issues if issue.code not in mended)
    return replace(repaired, extras=extras, issues=issues)


def convert_adapter(
    given: Adapter,
    place: Path,
    like: str | Path | None = None,
    one_rank: bool = True,
    before: str = "",
    original: Adapter | None = None,
    library: str = "peft",
) -> tuple[Converted, str]:
    """The adapter as it is written to a place, and what differs from its file, in sentences.

    like: a base or an adapter whose names of modules it gets. one_rank: whether all modules get one
    rank and one scaling. before: a sentence on what was done to the file before and how much of
    its function that keeps; without one it is the same function. original: the adapter as its
    file has it, where that has another layout. library: of the card. Raises BaseError
    where the names are not known, CompatibilityError for an adapter whose modules they do not name.
    """
    made = replace(_with_repaired_paths(given), weights_file=None)
    if like is not None:
        made = _named_like(made, str(like))
    made = portable(made) if one_rank else made
    targets = common_targets([given], made.unstacked)
    source = Source(reference=str(place), path=place)
    made = replace(made, config=config_of(made, targets), source=source)
    sentences = [before] if before else []
    sentences += _changes(original or given, made, given.rank_range)
    if library == "mlx":
        sentences.append("The file is one of mlx-lm: factors are transposed, alpha / r is scale.")
    changes = " ".join(sentences) or "Nothing had to be changed."
    told = changes if before else f"It computes the same. {changes}"
    card = _card(made, given.source.public, hub.model_card(given), told, library)
    return Converted(made, card, given.source.path, targets), changes


def licence_fields(matter: Mapping[Any, Any]) -> dict[str, str]:
    """What another author's front matter says of the licence, as it may stand in a card of ours.

    It is an identifier that the Hub knows, "other" for any other text; with that a name of letters,
    digits and signs, and a link of http or https, where the author gave such.
    """
    licence, name, link = (matter.get(key) for key in ("license", "license_name", "license_link"))
    if not isinstance(licence, str) or not licence.strip():
        return {}
    fields = {"license": known_licence(licence.strip())}
    if fields["license"] != "other":
        return fields
    if isinstance(name, str) and LICENCE_NAME.fullmatch(name):
        fields["license_name"] = name
    if isinstance(link, str) and len(link) <= LONGEST_LINK and LICENCE_LINK.fullmatch(link):
        fields["license_link"] = link
    return fields


def _card(adapter: Adapter, source: str, card: str | None, changes: str, library: str) -> str:
    """README.md of a converted adapter.

    source, card: where it came from and the card there, of which only the licence is kept, as
    `licence_fields` says.
    """
    import yaml

    fields = {"library_name": library, "base_model_relation": "adapter", "tags": ["lora"]}
    fields |= licence_fields(read_front_matter(card))
    if base := public_name(adapter.base_model):
        fields["base_model"] = base
    text = filled(
        Path(__file__).with_name("converted.md.jinja"),
        title=adapter.name,
        source=source,
        changes=changes,
        parts=parts_of(adapter),
        version=__version__,
    )
    return f"---\n{yaml.safe_dump(fields)}---\n{text}"


def _named_like(adapter: Adapter, reference: str) -> Adapter:
    """The adapter with the names of another one, or of the class that a base's config names."""
    other: Adapter | None = None
    with contextlib.suppress(LoraprobeError):  # what is no adapter may be a base
        other = hub.load(reference)
    named = reference if other is None else other.base_model or adapter.base_model
    place = hub.base_directory(named)
    names = None if place is None else module_names(place)
    if place is None or names is None:
        raise BaseError(
            f"--like={reference}: the names of its modules are not known, because the config.json "
            "of the base is out of reach or of an architecture that transformers does not know; "
            "give the base's directory."
        )
    text = names.text is not None and Base(reference, place).architecture == names.text.name
    text = text if other is None else names.is_text(other.touched)
    made = with_base_names(adapter, names, text, whole=True)
    if made is None:
        raise CompatibilityError(
            f"--like={reference}: its class has no modules for all that {adapter.name} changes; "
            "take a base or an adapter of the class with vision."
        )
    return made


def require_certain(
    found: Compatibility, given: Adapter, made: Converted, base: Base | None, options: Options
) -> None:
    """Raises CompatibilityError for what leaves open what peft computes, or shows that it differs.

    Where the base may share weights, peft computes the given file and the written one on it.
    """
    for issue in found.issues:
        unknown = issue.code == "base-copy" and issue.severity != "note"
        shared = issue.code == "shared-weights"
        if issue.code in options.allow or not (unknown or shared):
            continue
        if shared and base is not None and given.source.path is not None:
            error = _difference(given, made, base)
            if error <= SAME:
                continue
            raise CompatibilityError(
                f"{issue.message} On {base.reference} peft computes another function of what would "
                f"be written: it differs by {error:.2g} of the adapter's effect. [{issue.code}]"
            )
        raise CompatibilityError(issue.message, issue.cure, f"[{issue.code}]")


def _difference(given: Adapter, made: Converted, base: Base) -> float:
    """The largest difference of log-probabilities in peft, as a share of the adapter's effect."""
    assert given.source.path is not None
    size = int(base.vocab_size or 1)
    tokens = list(range(0, size, -(-size // SAMPLE)))
    for name, tensor in given.whole.items():  # the rows of an embedding that differ most
        if name.endswith(".weight") and tensor.shape[0] == size:
            change = (tensor.float() - base.parameter(name)).abs().sum(1)
            tokens += change.topk(min(SAMPLE, size)).indices.tolist()
    with tempfile.TemporaryDirectory() as place:
        made.save(Path(place) / "made")
        plain, theirs, ours = (
            log_probabilities(base, directory, tokens)
            for directory in (None, given.source.path, Path(place) / "made")
        )
    effect = float((theirs - plain).abs().max())
    return float((ours - theirs).abs().max()) / max(effect, 1e-6)


def log_probabilities(base: Base, directory: Path | None, tokens: Sequence[int]) -> Tensor:
    """The log-probabilities of the next token, [tokens, vocabulary], in float32 on the CPU.

    directory: the adapter's, None for the base alone. tokens: a prompt; row i follows its first
    i + 1 tokens. Raises BaseError if the base cannot be loaded.
    """
    from peft import PeftModel

    model = load_model(base)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if directory is not None:
            model = PeftModel.from_pretrained(model, str(directory)).eval()
        return model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


def _changes(given: Adapter, made: Adapter, ranks: tuple[int, int]) -> Iterator[str]:
    """What differs between a file and what is written instead, in sentences.

    ranks: the lowest and the highest in the layout that is written.
    """
    codes = {issue.code for issue in given.issues}
    if any(path.startswith(PREFIX) for path in given.layout):
        yield f"The prefix {PREFIX!r}, which the keys had twice, stands once."
    new = [i for i in made.issues if i.code in RENAMED or i not in given.issues]
    yield from (issue.message for issue in new)
    if "unprefixed-keys" in codes:
        yield f"The keys have the prefix {PREFIX!r}, without which peft loads nothing."
    if "mlx-file" in codes:
        yield "The file was mlx-lm's, whose factors are transposed and whose scale is alpha / r."
    if "pickled" in codes:
        yield f"{PICKLE} became {SAFETENSORS}."
    if ranks != made.rank_range:
        yield f"Ranks {ranks[0]} to {ranks[1]} became {made.rank_range[0]}, filled up with zeros."
    if given.scaling_range != made.scaling_range:
        why = "rsLoRA's scaling" if given.config.get("use_rslora") else "The scaling"
        yield f"{why} is multiplied into B, so that lora_alpha equals r."
    kept = {extra.kind for extra in made.extras}  # a translated layout has other keys
    lost = [extra.key for extra in given.extras if extra.kind not in kept]
    if lost:
        yield f"Left out: {listing(lost[:3])}{f' and {len(lost) - 3} more' if lost[3:] else ''}."
    yield from (issue.message for issue in given.issues if issue.code == "tensors-unused")


NAME = "default"  # of the adapter in peft


def lora_of(
    ref: Any, session: Session, base: Base | Ref | None, keep: float
) -> tuple[Adapter, str, list[Measurement]] | None:
    """An adapter of another type as LoRA, what was done, and the energy that each module keeps.

    None for an open adapter, a LoRA, and a type without a change of weights, which reading refuses.
    keep: the least share of ||dW||_F^2 of a module. Raises UsageError without a base,
    CompatibilityError where the rank keeps less, AdapterError where peft cannot load it.
    """
    if isinstance(ref, Adapter):
        return None
    reference = hub.Reference.parse(str(ref))
    found = hub.resolve_adapter(reference)
    config = read_json(found.path / CONFIG, str(found.path), AdapterError)
    kind = str(config.get("peft_type"))
    if kind not in WITH_DELTA:
        return None
    named = config.get("base_model_name_or_path")
    if base == "auto":
        base = named
    opened = base_apart([], session, base)
    if opened is None:
        raise UsageError(
            f"{found.reference} is of PEFT type {kind}, whose change of a weight needs the base; "
            f"add --base={named or 'BASE'}."
        )
    rank = session.options.rank
    modules: dict[str, LowRank] = {}
    kept: dict[str, float] = {}
    enough = 0
    with session.stage("convert"):
        for path, delta in _deltas(opened, found.path, config):
            modules[path], kept[path], needed = _cut(path, delta, rank, keep)
            enough = max(enough, needed)
    worst = min(kept, key=lambda path: kept[path])
    if kept[worst] < keep:
        raise CompatibilityError(
            f"Rank {rank} keeps {kept[worst]:.1%} of the energy of {worst}, less than "
            f"--keep-energy={keep:g}; --rank={enough} is enough for every module. Take that, or a "
            "lower --keep-energy."
        )
    source = Source(found.reference, found.path, found.commit)
    adapter = adapter_of(reference.short, modules, base_model=named, source=source)
    told = (
        f"{kind} became LoRA: {kept[worst]:.4%} of the energy of its change is kept in {worst}, "
        "and no module keeps less."
    )
    rows = [
        Measurement("kept_energy", (adapter.name,), share, path, rank=modules[path].rank)
        for path, share in kept.items()
    ]
    return adapter, told, rows


def _deltas(base: Base, place: Path, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each module's change of its weight, [out, in] in float32, by its path in the base."""
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    for key in ("modules_to_save", "trainable_token_indices", "bias"):
        if config.get(key) not in (None, "none", [], {}):
            raise UnsupportedAdapter(
                f"{place / CONFIG} sets {key}: a LoRA made of its other modules would lose that; "
                "merge it into its base with peft."
            )
    weights = open_tensors(place)
    _check_sizes(config, weights, base, place)
    loaded = load_model(base)
    size = sum(parameter.nbytes for parameter in loaded.parameters())
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always")
        try:
            plain = PeftConfig.from_pretrained(str(place))
            _write_out_patterns(plain, config, [path for path, _ in loaded.named_modules()])
            with memory_limit(MEMORY + TIMES * size):
                model = PeftModel.from_pretrained(
                    loaded, str(place), adapter_name=NAME, config=plain
                )
        except PatternError as error:
            raise AdapterError(f"{place / CONFIG}: {error}; correct it.") from None
        except MemoryError:
            raise AdapterError(
                f"{place} takes more memory in peft than an adapter of {base.reference} needs; "
                f"correct the sizes in its {CONFIG}."
            ) from None
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise AdapterError(
                f"peft cannot load {place} on {base.reference} ({why}); check --base."
            ) from None
    if lost := [w for w in told if "missing adapter keys" in str(w.message)]:
        raise AdapterError(
            f"{place} does not fit {base.reference} ({str(lost[0].message)[:200]}); check --base."
        )
    _check_keys(model, place)
    layers: Iterable[tuple[str, Any]] = model.named_modules()
    for name, layer in layers:
        if not isinstance(layer, BaseTunerLayer):
            continue
        inner: Any = layer.get_base_layer()
        transposed = type(inner).__name__ == "Conv1D"  # GPT-2's layer with a weight [in, out]
        if not transposed and not isinstance(inner, torch.nn.Linear):
            raise UnsupportedAdapter(
                f"{place} changes {name}, a {type(inner).__name__}, which only a linear layer's "
                "LoRA can express; merge it into its base with peft."
            )
        # Some changes depend on the weight (HiRA, MiSS), so the adapter is merged into it.
        given = inner.weight.data
        inner.weight.data = given.to(torch.float32, copy=True)
        layer.merge(adapter_names=[NAME])
        delta = inner.weight.data - given.float()
        inner.weight.data = given
        yield name.removeprefix(PREFIX), delta.T if transposed else delta


def _check_sizes(config: Mapping[str, Any], weights: TensorFile, base: Base, place: Path) -> None:
    """Raises AdapterError for a size in a config that neither its file nor the base can have.

    Sizes are all numbers but those of COUNTS; peft makes tensors of them before it reads the file.
    """
    shapes = [*weights.shapes.values(), *base.shapes.values()]
    largest = max((size for shape in shapes for size in shape), default=0)
    for key, value, _ in nested_values(config):
        counts = any(part in key.partition(".")[0] for part in COUNTS)
        if type(value) in (int, float) and not counts and not value <= largest:
            raise AdapterError(
                f"{place / CONFIG} sets {key:.60} to {value:g}, and no tensor of its file or of "
                f"{base.reference} has more than {largest:,} rows or columns; correct it."
            )


def _write_out_patterns(config: Any, raw: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Replaces a config's expressions by the modules that they match, so that peft matches none.

    config: of peft, with the content `raw`; paths: of all modules. Raises PatternError for an
    expression that does not end in time.
    """
    targets = raw.get("target_modules")
    by_name = isinstance(targets, list) or str(targets).lower() == "all-linear" or not targets
    if not by_name or any(raw.get(key) for key in SELECTORS):
        beyond = set(untargeted_paths(paths, raw))
        if isinstance(targets, str) and targets.lower() == "all-linear":
            config.exclude_modules = sorted(beyond) or None
        elif targets:
            config.target_modules = {path for path in paths if path not in beyond}
            config.exclude_modules = None
        for key in ("layers_to_transform", "layers_pattern"):
            if hasattr(config, key):
                setattr(config, key, None)
    for key, held in vars(config).items():
        if key.endswith("_pattern") and isinstance(held, dict) and held:
            names = list(held)
            found = zip(paths, first_matches(names, PATTERN, paths), strict=True)
            exact = {re.escape(path): held[names[match[0]]] for path, match in found if match}
            setattr(config, key, exact)


def _check_keys(model: Any, place: Path) -> None:
    """Raises AdapterError for tensors of the file that no module of the model takes."""
    from peft import get_peft_model_state_dict, load_peft_weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft takes pruned ranks for shards that were not gathered
        taken = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    if unused := load_peft_weights(str(place), device="cpu").keys() - taken.keys():
        raise AdapterError(
            f"{place} holds {min(unused)}, which fits no module of the base; check --base, and "
            f"that {SAFETENSORS} or {PICKLE} belongs to {CONFIG}."
        )


@torch.no_grad()
def _cut(
    path: str, delta: Float[Tensor, "out in"], rank: int | Literal["auto"], keep: float
) -> tuple[LowRank, float, int]:
    """The best factors of a rank, the share of ||delta||_F^2 that they keep, and the rank that
    keeps as much as is wanted."""
    if not torch.isfinite(delta).all():
        raise AdapterError(f"Module {path} holds NaN or Inf; its training failed.")
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    energies = s.double().square().cumsum(0)
    total = float(energies[-1]) or 1.0
    shares = energies / total if float(energies[-1]) else torch.ones_like(energies)
    wanted = max(1 - CUT_ENERGY, keep) if rank == "auto" else keep
    enough = int((shares < wanted).sum()) + 1
    taken = min(enough if rank == "auto" else rank, len(s))
    update = LowRank(vh[:taken].contiguous(), (u[:, :taken] * s[:taken]).contiguous(), 1.0)
    return update, float(shares[taken - 1]), enough
