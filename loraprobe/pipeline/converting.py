"""One adapter written again, as peft and servers read it: the same function in peft."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraprobe import hub
from loraprobe.adapters import Adapter, Source, check_apart, common_targets, mended, portable
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.reading import PICKLE, PREFIX, SAFETENSORS
from loraprobe.adapters.saving import config_of
from loraprobe.base import Base, module_names
from loraprobe.base.loading import load_model
from loraprobe.base.naming import named as renamed
from loraprobe.base.naming import touched
from loraprobe.errors import BaseError, CompatibilityError, LoraprobeError
from loraprobe.formatting import listing
from loraprobe.options import Options
from loraprobe.records import Compatibility
from loraprobe.report.cards import converted_card

# The largest difference of log-probabilities, as a share of the adapter's effect, of one function:
# scalings that are multiplied into B in a 16-bit type round it.
SAME = 0.02
SAMPLE = 64  # tokens on which peft computes both


@dataclass(frozen=True, eq=False)
class Converted:
    """An adapter as it will be written, its card, and the place of its source."""

    adapter: Adapter
    card: str
    source: Path | None
    targets: Sequence[str] | None

    @property
    def name(self) -> str:
        return self.adapter.name

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory. Raises OutputError, also for a place inside the source."""
        check_apart(Path(directory), [self.source] if self.source else [])
        self.adapter.save(directory, overwrite=overwrite, card=self.card, targets=self.targets)


def converted(
    given: Adapter,
    place: Path,
    like: str | Path | None = None,
    one_rank: bool = True,
    before: str = "",
) -> tuple[Converted, str]:
    """The adapter as it is written to a place, and what differs from its file, in sentences.

    like: a base or an adapter whose names of modules it gets. one_rank: whether all modules get one
    rank and one scaling. before: a sentence on what was done to the file before. Raises BaseError
    where the names are not known, CompatibilityError for an adapter whose modules they do not name.
    """
    made = replace(mended(given), weights_file=None)
    if like is not None:
        made = _named_like(made, str(like))
    made = portable(made) if one_rank else made
    targets = common_targets([given], without_experts(made.layout))
    source = Source(reference=str(place), path=place)
    made = replace(made, config=config_of(made, targets), source=source)
    sentences = [before] if before else []
    changes = " ".join([*sentences, *_changes(given, made)]) or "Nothing had to be changed."
    card = converted_card(made, given.source.public, hub.model_card(given), changes)
    return Converted(made, card, given.source.path, targets), changes


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
    text = text if other is None else names.is_text(touched(other))
    made = renamed(adapter, names, text, whole=True)
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
        raise CompatibilityError(f"{issue.message} {issue.cure} [{issue.code}]", issue.cure)


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


def _changes(given: Adapter, made: Adapter) -> Iterator[str]:
    """What differs between a file and what is written instead, in sentences."""
    codes = {issue.code for issue in given.issues}
    if any(path.startswith(PREFIX) for path in given.layout):
        yield f"The prefix {PREFIX!r}, which the keys had twice, stands once."
    yield from (issue.message for issue in made.issues if issue.code == "modules-renamed")
    if "unprefixed-keys" in codes:
        yield f"The keys have the prefix {PREFIX!r}, without which peft loads nothing."
    if codes & {"pickled", "sharded"}:
        what = PICKLE if "pickled" in codes else "The shards of the weights"
        yield f"{what} became {SAFETENSORS}."
    ranks, rank = given.rank_range, made.rank_range
    if ranks != rank:
        yield f"Ranks {ranks[0]} to {ranks[1]} became {rank[0]}, filled up with zeros."
    if given.scaling_range != made.scaling_range:
        why = "rsLoRA's scaling" if given.config.get("use_rslora") else "The scaling"
        yield f"{why} is multiplied into B, so that lora_alpha equals r."
    lost = [extra.key for extra in given.extras if extra not in made.extras]
    if lost:
        yield f"Left out: {listing(lost[:3])}{f' and {len(lost) - 3} more' if lost[3:] else ''}."
    yield from (issue.message for issue in given.issues if issue.code == "tensors-unused")
