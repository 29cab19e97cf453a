"""A merge added to its base: a directory that transformers loads like any model.

The weight files of the base are read one by one. A parameter W0 that the merge changes becomes
W0 + dW, computed in float32 and rounded once, to the dtype of W0; all others are copied. dW is what
the method makes of the adapters, and no rank cuts it unless the merge has one. The files get the
names that transformers gives, a pickle becomes a safetensors file. config.json, tokenizer,
generation settings and chat template come from the base.

Where the base has one tensor for its embedding and its head, and the merge does not change both
alike, both are written and the config says that they are not tied: transformers would otherwise tie
them again while loading (transformers#45127).

Parameters of a loaded model may be stored in pieces, such as the stacked experts of a mixture. The
tables by which transformers saves a model tell the pieces of dW.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, check_apart, check_output, public_value, staged_directory
from loraprobe.adapters.experts import target_parameters
from loraprobe.adapters.saving import unshared_tensor
from loraprobe.adapters.types import TokenRows
from loraprobe.base import Base, open_base
from loraprobe.base.loading import check_code
from loraprobe.base.model import FLOATS, INDEX_ENDING
from loraprobe.base.quiet import quiet
from loraprobe.checkpoint import BESIDE_WEIGHTS
from loraprobe.compatibility.licences import licence_of_merge
from loraprobe.errors import BaseError, CompatibilityError, OutputError, UsageError
from loraprobe.formatting import size
from loraprobe.front_matter import KEY, declared_licence, read_front_matter
from loraprobe.hub import read_card
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import Merged, MergeInputs, add_change
from loraprobe.records import Progress
from loraprobe.untrusted import check_link, error_line, read_json

CONFIG, CARD, INDEX = "config.json", "README.md", "model.safetensors.index.json"
WEIGHTS, METADATA = "model.safetensors", {"format": "pt"}
TRANSFORMERS = (5, 24)  # the version with which all kinds of weights were tried; 5.0 differs
Change = Callable[[Tensor], Tensor]  # a parameter as stored, in float32 or float64 -> the new one
Keep = Callable[[dict[str, Tensor], str], None]  # the tensors of a weight file, and its name


def save_full_model(
    merged: Merged,
    directory: str | Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> float:
    """Writes the base with the merge added to it; returns ||rounding|| / ||W - W0||.

    Needs a merge with a base. About one weight file of the base is in memory at a time; a quantised
    base is dequantised first and is in memory whole. The directory is complete or absent. Raises
    OutputError if it cannot be written, CompatibilityError or BaseError for what the base cannot
    hold.
    """
    from safetensors.torch import save_file

    target, base = Path(directory), _base_of(merged)
    check_apart(target, (*merged.directories, base.path))
    check_output(target, overwrite)
    check_space(target, sum(file.stat().st_size for file in base.weight_files))
    with staged_directory(target, overwrite) as staging:
        written = set[str]()

        def keep(tensors: dict[str, Tensor], name: str) -> None:
            save_file(tensors, str(staging / name), metadata=METADATA)
            written.update(tensors)

        rounding = compose_full_model(merged, staging, keep, progress)
        if open_base(staging).stored.keys() != written:
            raise OutputError(f"{target} does not hold all tensors of {base.reference}.")
        return rounding


def _rounded(stored: Tensor, changes: Iterable[Change], name: str) -> tuple[Tensor, float, float]:
    """A parameter after its changes, in its dtype; the norms of the change and of its rounding.

    Raises OutputError if it does not fit.
    """
    made = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
    for change in changes:
        made = change(made)
    written = made.to(stored.dtype)
    lost = float(torch.linalg.vector_norm(written - made))
    if not math.isfinite(lost):
        dtype = str(stored.dtype).removeprefix("torch.")
        raise OutputError(f"{name} does not fit into {dtype}, the dtype of the base.")
    return written, float(torch.linalg.vector_norm(made - stored)), lost


@torch.no_grad()
def compose_full_model(
    merged: Merged, place: Path, keep: Keep, progress: Progress | None = None
) -> float:
    """Gives the tensors of each weight file of a full model to `keep`, by the file's name.

    All other files are written into the directory `place`. Returns ||rounding|| / ||W - W0||.
    Raises CompatibilityError or BaseError for what the base cannot hold.
    """
    weight_map, total, done, change2, lost2 = dict[str, str](), 0, 0, 0.0, 0.0
    given = _base_of(merged)
    with tempfile.TemporaryDirectory(dir=place.parent) as space:
        base = dequantised(given, Path(space)) if given.quantization else given
        _check_index(base)
        layout, files = Layout(merged.inputs, merged.adapter, base), base.weight_files
        for number, file in enumerate(files, 1):
            seen, tensors = set[int](), dict[str, Tensor]()
            for key in layout.in_order(k for k, w in base.stored.items() if w.file.path == file):
                stored, done = base.stored[key].file.read(key), done + 1
                for name, changes in layout.written[key].items():
                    made = stored
                    if changes:
                        made, change, lost = _rounded(stored, changes, name)
                        change2, lost2 = change2 + change**2, lost2 + lost**2
                    tensors[name] = unshared_tensor(made, seen)
                if progress:
                    progress("write", done, len(base.stored))
            # Names of the base's files could be those of other files, such as vocab.txt.
            name = f"model-{number:05}-of-{len(files):05}.safetensors" if files[1:] else WEIGHTS
            keep(tensors, name)
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
            del tensors
    texts = {CONFIG: layout.config}
    if files[1:]:
        texts[INDEX] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, document in texts.items():
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (place / name).write_text(text + "\n", encoding="utf-8")
    for file in _beside_weights(given):
        check_link(file, given.reference)
        shutil.copyfile(file, place / file.name)
    rounding = math.sqrt(lost2 / max(change2, 1e-300))
    if merged.card is not None:
        (place / CARD).write_text(_card(merged, rounding), encoding="utf-8")
    return rounding


def _check_index(base: Base) -> None:
    """Raises BaseError if the index of the weight files names a tensor that none holds."""
    first = base.indexed_weights[0]
    if not first.endswith(INDEX_ENDING):
        return
    listed = read_json(base.path / first, base.reference)["weight_map"]
    if lost := sorted(listed.keys() - base.stored.keys()):
        raise BaseError(
            f"{first} of {base.reference} names {lost[0]}, which no file holds; download the "
            "model again."
        )


def _beside_weights(base: Base) -> list[Path]:
    """The files of tokenizer, processors, chat template and generation settings, and code."""
    endings = {".py"} if base.config.get("auto_map") else set[str]()
    files = (file for file in sorted(base.path.iterdir()) if file.is_file())
    others = (file for file in files if file not in base.weight_files)
    return [file for file in others if file.name in BESIDE_WEIGHTS or file.suffix in endings]


def _card(merged: Merged, rounding: float) -> str:
    """The card of a full model, from that of its merge. rounding: ||rounding|| / ||W - W0||."""
    assert merged.card is not None and merged.card_of is not None
    matter, whole = read_front_matter(merged.card), merged.config.rank is None
    return merged.card_of(
        Path(__file__).with_name("full_model.md.jinja"),
        _front_matter(matter, merged),
        rank="not cut" if whole else str(merged.config.rank),
        compression_error=0.0 if whole else merged.compression_error,
        rounding_error=rounding,
        dtype="the base's dtype",
        parts=(),
    )


def _front_matter(matter: Mapping[Any, Any], made: Merged) -> dict[str, Any]:
    """The front matter of the card of a full model, from that of the merge."""
    fields = {
        **matter,
        "library_name": "transformers",
        "tags": ["merge", "loraprobe"],
        "base_model_relation": "merge",
        KEY: {**matter[KEY], "full_model": True},
    }
    if isinstance(base := made.inputs.base, Base):
        own = declared_licence(read_card(base.path / CARD, base.reference))
        if own is not None:  # the base's weights are in it
            fields["license"] = licence_of_merge(
                {"the merge": matter.get("license"), "the base": own}
            )
    return fields


def notes_on_base(merged: Merged) -> Iterator[str]:
    """What is done to the base's files before the merge is added, in sentences."""
    base = _base_of(merged)
    if base.quantization:
        method = base.quantization.get("quant_method", "an unnamed method")
        yield f"The base is quantised ({method}): its weights were dequantised first."
    elif base.weight_files[0].suffix == ".bin":
        yield "The pickles of the base became safetensors files."


def _base_of(merged: Merged) -> Base:
    base = merged.inputs.base
    if not isinstance(base, Base):
        raise UsageError("A full model is made of its base; merge with base=DIR or base='auto'.")
    check_transformers()
    return base


def check_transformers() -> None:
    """Raises UsageError for a transformers with which full models were not tried."""
    installed = importlib.metadata.version("transformers")
    if tuple(map(int, installed.split(".")[:2])) < TRANSFORMERS:
        raise UsageError(
            f"A full model needs transformers {TRANSFORMERS[0]}.{TRANSFORMERS[1]}, with which it "
            f"was tried, and {installed} is installed; pip install -U transformers."
        )


def dequantised(base: Base, place: Path) -> Base:
    """The base in floating point, as transformers dequantises it and saves it in a directory.

    Raises BaseError if transformers cannot, OutputError if the disk cannot hold it and the result.
    """
    try:
        model = _load_dequantised(base)
        check_space(place, 2 * sum(tensor.nbytes for tensor in model.state_dict().values()))
        model.save_pretrained(place)
    except (ImportError, NotImplementedError, ValueError, RuntimeError) as error:
        raise BaseError(
            f"The quantised weights of {base.reference} cannot be dequantised here "
            f"({error_line(error)}); give the unquantised base as --base."
        ) from error
    return replace(base, path=place)


def _load_dequantised(base: Base) -> Any:
    """The model of a quantised base in floating point, in the dtype of its config.

    Raises what transformers raises where it cannot dequantise.
    """
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoQuantizationConfig

    check_code(base, trusted=False)
    config: Any = AutoQuantizationConfig.from_dict(dict(base.quantization or {}))
    while_loading = hasattr(config, "dequantize")
    if while_loading:
        config.dequantize = True
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(base.path), dtype="auto", local_files_only=True, quantization_config=config
        )
        return model if while_loading else model.dequantize()


def check_space(target: Path, needed: int) -> None:
    """Raises OutputError if the disk of an output has fewer free bytes than it needs."""
    real = Path(os.path.realpath(target))
    disk = shutil.disk_usage(next(place for place in real.parents if place.exists()))
    if disk.total and needed > disk.free:  # some, such as /proc, do not tell their size
        raise OutputError(
            f"{target} needs {size(needed)}, and its disk has {size(disk.free)}; choose another "
            "place."
        )


class Layout:
    """What becomes of each tensor of a base's files in a merge, by its inputs and its adapter.

    `written`: key in the files -> key to write -> its changes. `pieces`: key -> the parameter of
    the loaded model of which it is a piece. `unties`: whether embedding and head part. Raises
    CompatibilityError for a change of what the base does not have, BaseError for one of quantised
    weights.
    """

    def __init__(self, inputs: MergeInputs, adapter: Adapter, base: Base) -> None:
        self.inputs, self.adapter, self.base = inputs, adapter, base
        self.written: dict[str, dict[str, list[Change]]] = {key: {key: []} for key in base.stored}
        self.pieces: dict[str, str] = {}
        self.changes = defaultdict[str, list[Change]](list)  # name in the loaded model -> changes
        self.piecewise = functools.lru_cache(maxsize=1)(self._piecewise)
        self._collect()
        self.unties = self._untie()
        for name, changes in self.changes.items():
            weight = base.tensors.get(name)
            if weight is None:
                self._split(name)
            elif weight.dtype not in FLOATS:
                raise BaseError(
                    f"{base.reference} stores {name} quantised ({weight.dtype}); give the "
                    "unquantised base as --base."
                )
            else:
                self.written[weight.key][weight.key] = changes

    def in_order(self, keys: Iterable[str]) -> list[str]:
        """The keys of a file, the pieces of one parameter together."""
        return sorted(keys, key=lambda key: (self.pieces.get(key, ""), key))

    @property
    def config(self) -> dict[str, Any]:
        """The base's config.json, without paths of its machine."""
        config: dict[str, Any] = public_value(dict(self.base.config))
        for part in (config, config.get("text_config") or {}) if self.unties else ():
            part["tie_word_embeddings"] = False
        return config

    def _collect(self) -> None:
        """Fills `changes`."""
        inputs, adapter = self.inputs, self.adapter
        for path in adapter.unstacked:
            weight = self.base.weights.get(path)
            turned = weight is not None and weight.kind != "linear"
            if weight is not None and weight.oriented != adapter.layout[path].shape:
                raise CompatibilityError(
                    f"Module {path} is {list(adapter.layout[path].shape)} in the adapters and "
                    f"{list(weight.oriented)} in the base; give the base that they were trained on."
                )
            self.changes[f"{path}.weight"].append(partial(_with_delta, inputs, path, turned))
        if adapter.stacks:
            for target in target_parameters(self.base.skeleton, adapter):
                paths = adapter.stacks[target.stack]
                change = partial(_with_experts, inputs, paths, target.transposed)
                self.changes[target.name].append(change)
        for path, offset in adapter.offsets.items():
            self.changes[f"{path}.bias"].append(partial(torch.add, other=offset))
        for name in adapter.whole:
            self.changes[name].append(partial(_replaced, adapter, name))
        for path, rows in adapter.token_rows.items():
            name, tied, change = f"{path}.weight", self.base.tied, partial(_with_rows, rows, path)
            for each in tied if tied and name == tied[0] else (name,):  # as peft has it
                self.changes[each].insert(0, change)

    def _untie(self) -> bool:
        """Whether embedding and head of a base that ties them get different values."""
        rows, tensors = self.base.vocab_size, self.base.tensors
        if rows and all(n in tensors and tensors[n].shape[0] != rows for n in self.changes):
            return False  # neither changes; a model that ties them need not be built to know it
        if self.base.tied is None:
            return False
        embedding, head = self.base.tied
        differ = self.changes.get(embedding) != self.changes.get(head)
        if head not in tensors:
            own = self.changes.pop(head, [])
            if differ and embedding in tensors:
                self.written[tensors[embedding].key][head] = own
            elif differ:
                raise CompatibilityError(
                    f"The files of {self.base.reference} have no tensor {embedding}; save the base "
                    "again with transformers (save_pretrained)."
                )
        return differ

    def _split(self, name: str) -> None:
        """Finds where the files have a parameter that they do not have under its own name."""
        base, adapter = self.base, self.adapter
        try:
            parameter = base.skeleton.get_parameter(name)
        except AttributeError:  # also without a skeleton
            raise CompatibilityError(
                f"The base ({base.reference}) has no parameter {name}, which {adapter.name} "
                "changes, so no full model can hold that; keep it as an adapter (merge --output)."
            ) from None
        parts = saved_pieces(base.skeleton, name, parameter.detach())
        path = name.rpartition(".")[0]
        whole = name in adapter.whole or path in (*adapter.magnitudes, *adapter.token_rows)
        if not parts.keys() <= base.stored.keys() or (whole and len(parts) > 1):
            raise CompatibilityError(
                f"The files of {base.reference} have no tensor {name}, and its pieces there are "
                "not known; save the base again with transformers (save_pretrained)."
            )
        for key, part in parts.items():
            renamed = part.shape == parameter.shape
            self.written[key][key] = (
                self.changes[name] if renamed else [partial(self._with_piece, name, key)]
            )
            self.pieces[key] = name

    def _with_piece(self, name: str, key: str, stored: Tensor) -> Tensor:
        return stored.add_(self.piecewise(name)[key])

    def _piecewise(self, name: str) -> dict[str, Tensor]:
        """The change of one parameter of the loaded model, in the pieces that its files have."""
        made = torch.zeros(self.base.skeleton.get_parameter(name).shape)
        for change in self.changes[name]:
            made = change(made)
        return saved_pieces(self.base.skeleton, name, made)


def saved_pieces(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A parameter of a model by the keys under which transformers saves its pieces.

    The experts of a mixture, for example, are one parameter of the model and many in its files.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, {name: tensor}))


# The changes: of a parameter W0 in its stored form, which they may write over.


def _with_delta(inputs: MergeInputs, path: str, turned: bool, W0: Tensor) -> Tensor:
    """turned: whether the weight is stored as [in, out], as of Conv1D and embeddings."""
    own = W0.mT if turned else W0.flatten(1)
    made = add_change(inputs, path, own)
    return (made.mT if turned else made).reshape(W0.shape)


def plain_factors(change: Change) -> LowRank | None:
    """The factors of a change by a LoRA alone, as the weight is stored; None for any other."""
    if not isinstance(change, partial) or change.func is not _with_delta:
        return None
    inputs, path, turned = change.args
    if inputs.keeps_dora or len(inputs.adapters) > 1:
        return None
    (update,) = inputs.updates(path)
    return LowRank(update.B.mT, update.A.mT, update.scaling) if turned else update


def _with_experts(inputs: MergeInputs, paths: Sequence[str], turned: bool, W0: Tensor) -> Tensor:
    """W0: [E, out, in], [E, in, out] if turned, or [out, in] of a single expert."""
    for path, one in zip(paths, W0 if W0.dim() == 3 else [W0], strict=True):
        one.copy_(_with_delta(inputs, path, turned, one))
    return W0


def _replaced(adapter: Adapter, name: str, W0: Tensor) -> Tensor:
    own = adapter.whole[name]
    if own.shape != W0.shape:
        raise CompatibilityError(
            f"{name} is {list(own.shape)} in the adapters and {list(W0.shape)} in the base; the "
            "vocabulary was resized in training, so resize the base's first."
        )
    return own.to(W0)


def _with_rows(rows: TokenRows, path: str, W0: Tensor) -> Tensor:
    if max(rows.tokens) >= len(W0):
        raise CompatibilityError(
            f"Token {max(rows.tokens)} of {path} was trained, and the base has {len(W0)} rows "
            "there; resize the base's embedding as in the adapter's training."
        )
    return W0.index_copy_(0, torch.tensor(rows.tokens), rows.values.to(W0))
