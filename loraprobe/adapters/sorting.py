"""Sorts the tensors of a file into factors of modules, extras, and issues."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from loraprobe import limits
from loraprobe.adapters.config import Config
from loraprobe.adapters.experts import (
    NESTED,
    expert_path,
    factors_of_expert,
    in_order,
    owner_of,
    parameter_names,
    stack_of,
    targeted_whole,
)
from loraprobe.adapters.keys import PREFIX, classify
from loraprobe.adapters.targeting import Names
from loraprobe.adapters.tensors import TensorFile
from loraprobe.adapters.types import Extra, LayerKind, ModuleInfo
from loraprobe.errors import AdapterError
from loraprobe.findings import finding
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue

LINEAR_HEADS = ("lm_head", "score", "classifier")  # never Conv1D, whatever the config says


# The messages of findings about several keys or modules, in the order in which they are told.
MESSAGES = {
    "doubled-prefix": (
        f"{{modules}} with the prefix {PREFIX!r} twice, which peft loads without any effect."
    ),
    "unprefixed-keys": (
        f"{{keys}} without the prefix {PREFIX!r}: read here as module paths, but peft would load "
        "them without any effect."
    ),
    "several-adapters": (
        "{keys} for a factor that another key gives already, so the file holds several adapters."
    ),
    "unknown-tensors": "{keys} that fit nothing in a PEFT LoRA file{style}.",
    "unpaired-factor": "The file has modules that lack the partner of {first}.",
    "shape-mismatch": "The file has modules whose factors do not multiply: {first}.",
    "not-floating": "The file has modules whose factors are not floating point: {first}.",
    "rank-contradicts-config": (
        "The file has modules whose rank is not the config's, so that their scale is unknown: "
        "{first}."
    ),
}


class KeySorting:
    """The state of reading one file: each key becomes a factor of a module or an extra.

    name: that of the adapter.
    """

    def __init__(self, name: str, config: Config, file: TensorFile) -> None:
        self.name, self.config, self.file = name, config, file
        self.factors: dict[str, dict[str, str]] = {}  # path -> role -> key
        self.pairs: dict[str, tuple[str, str]] = {}  # path -> keys of A and B that are an update
        self.extras: list[Extra] = []
        # Code of a finding -> for each place the key, path or problem, and the module if known.
        self.odd: dict[str, list[tuple[str, str | None]]] = {code: [] for code in MESSAGES}

    def extra(self, kind: str, key: str, module: str | None) -> None:
        dtype = str(self.file.dtypes[key] or "unknown").removeprefix("torch.")
        self.extras.append(Extra(kind, key, module, self.file.shapes[key], dtype))

    def sort_keys(self) -> None:
        """Makes each key a factor or an extra."""
        saved = self.config.raw.get("modules_to_save") or ()
        saved = Names([saved] if isinstance(saved, str) else saved)
        for key in sorted(self.file.shapes):
            role, path = classify(key)
            if role == "bias" and path and saved.fits(path):
                role = "modules_to_save"  # a part of a module that was trained whole
            if not key.startswith(PREFIX):
                self.odd["unprefixed-keys"].append((key, None))
            if role not in ("A", "B", "eA", "eB") or path is None:
                self.extra(role, key, path)
                if role == "unknown":
                    self.odd["unknown-tensors"].append((key, None))
            elif role in self.factors.setdefault(path, {}):
                self.extra("unknown", key, path)
                self.odd["several-adapters"].append((key, None))
            else:
                self.factors[path][role] = key
        doubled = [path for path in self.factors if path.startswith(PREFIX)]
        self.odd["doubled-prefix"] = [(path, None) for path in doubled]

    def pair_factors(self) -> dict[str, ModuleInfo]:
        """Pairs A and B of each module and checks their shapes; unusable factors become extras.

        Raises AdapterError for more modules than the limit.
        """
        infos: dict[str, ModuleInfo] = {}
        self._check_count(len(self.factors))
        measures = self.config.ranks_and_scalings(self.factors)
        for path, keys in self.factors.items():
            embedding = "eA" in keys or "eB" in keys
            pair = ("eA", "eB") if embedding else ("A", "B")
            if set(keys) == set(pair):
                a, b = keys[pair[0]], keys[pair[1]]
                kind = self._why_unusable(path, a, b)
            else:
                kind = "unknown"
                self.odd["unpaired-factor"].append((", ".join(keys.values()), path))
            if kind is None:
                self.pairs[path] = a, b
                if not self._is_stack(path):
                    infos[path] = self._module(path, a, b, embedding, *measures[path])
            else:
                for key in keys.values():
                    self.extra(kind, key, path)
        self._unstack(infos)
        return infos

    def _check_count(self, modules: int) -> None:
        if modules > limits.MODULES:
            raise AdapterError(
                f"{self.name} adapts {modules:,} modules, beyond the {limits.MODULES:,} that are "
                "read; no known model has so many."
            )

    def _unstack(self, infos: dict[str, ModuleInfo]) -> None:
        """Adds a module for each expert of the stacked factors; unclear ones become extras."""
        owners: dict[str, list[str]] = {}
        for stack in self.pairs.keys() - infos.keys():
            owners.setdefault(owner_of(stack)[0], []).append(stack)
        raw = self.config.raw
        names = {o: [f"{o}.{name}" for name in parameter_names(raw, o)] for o in owners}
        measures = self.config.ranks_and_scalings(name for o in owners for name in names[o])
        for owner in sorted(owners):
            stacks = sorted(owners[owner], key=len)  # from the outermost to the innermost
            rows = [self.file.shapes[self.pairs[stack][0]][0] for stack in stacks]
            found = in_order([measures[name] for name in names[owner]], rows)
            if found is None or owner_of(stacks[-1])[1] != len(stacks) - 1:
                for stack in stacks:
                    for key in self.pairs[stack]:
                        self.extra("target_parameter", key, stack)
                continue
            for stack, (rank, scaling) in zip(stacks, found, strict=True):
                a, b = self.pairs[stack]
                (n, columns), (out, _) = self.file.shapes[a], self.file.shapes[b]
                self._check_count(len(infos) + n // rank)
                for path in (expert_path(stack, number) for number in range(n // rank)):
                    dtype = _common(self.file, a, b)
                    infos[path] = ModuleInfo(path, "expert", rank, columns, out, scaling, dtype)

    def _why_unusable(self, path: str, key_a: str, key_b: str) -> str | None:
        """The kind of extra that two factors become; None if they are an update B A."""
        a, b = self.file.shapes[key_a], self.file.shapes[key_b]
        fits = len(a) == len(b) > 1 and a[0] == b[1] and 0 not in a + b
        kind = "unknown"
        if len(a) > 2 and len(b) > 2:
            kind = "convolution"
            fits = fits and set(b[2:]) == {1}  # without groups, so that it is one matrix product
        elif path.endswith(NESTED) and not self._is_stack(path):
            return "target_parameter"
        elif not fits:
            self.odd["shape-mismatch"].append((f"A {list(a)}, B {list(b)}", path))
        types = [self.file.dtypes[key] for key in (key_a, key_b)]
        if fits and not all(t is not None and t.is_floating_point for t in types):
            names = " and ".join(str(t).removeprefix("torch.") for t in types)
            self.odd["not-floating"].append((names, path))
            return kind
        return None if fits else kind

    def _module(
        self, path: str, key_a: str, key_b: str, embedding: bool, r: int, scaling: float
    ) -> ModuleInfo:
        a, b = self.file.shapes[key_a], self.file.shapes[key_b]
        if a[0] != r:
            self.odd["rank-contradicts-config"].append((f"{a[0]} for {r}", path))
        kind: LayerKind = "linear"
        if embedding:
            kind = "embedding"
        elif len(a) > 2:
            kind = "convolution"
        elif self.config.raw.get("fan_in_fan_out") and path.rpartition(".")[2] not in LINEAR_HEADS:
            kind = "conv1d"
        dtype = _common(self.file, key_a, key_b)
        return ModuleInfo(path, kind, a[0], math.prod(a[1:]), b[0], scaling, dtype, a[2:])

    def _is_stack(self, path: str) -> bool:
        """Whether the factors are stacked ones of a parameter that the config targets."""
        owner, _ = owner_of(path)
        return owner not in self._targeted and bool(parameter_names(self.config.raw, owner))

    @functools.cached_property
    def _targeted(self) -> set[str]:
        return targeted_whole(self.config.raw, {owner_of(path)[0] for path in self.factors})

    def findings(self) -> Iterator[Issue]:
        """One finding per code, which counts the keys or modules that have the problem."""
        for code, places in self.odd.items():
            if not places:
                continue
            names, module = [name for name, _ in places], places[0][1]
            more = f" and {len(names) - 1} more" if names[1:] else ""
            text = MESSAGES[code].format(
                keys=_many(names, "key"),
                modules=_many(names, "module"),
                first=f"{names[0]} in {module}{more}",
                style=_style_of(names) if code == "unknown-tensors" else "",
            )
            yield finding(code, (self.name,), text, module)

    def reader(self, infos: Mapping[str, ModuleInfo]) -> Callable[[str], LowRank]:
        """A function from module path to LowRank that reads both factors from the file."""
        file, pairs = self.file, self.pairs

        held: dict[str, tuple[str, tuple[Tensor, Tensor]]] = {}

        def both(stack: str) -> tuple[Tensor, Tensor]:
            last = held.get("last")  # modules are read in order, so a stack is read once
            if last is None or last[0] != stack:
                A, B = (file.read(key) for key in pairs[stack])
                last = held["last"] = stack, (A, B)
            return last[1]

        def read(path: str) -> LowRank:
            info = infos[path]
            if info.kind == "expert":
                stack, number = stack_of(path)
                A, B = factors_of_expert(*both(stack), number, info.rank)
                return LowRank(A.to(info.dtype), B.to(info.dtype), info.scaling)
            A, B = (file.read(key).to(info.dtype).flatten(1) for key in pairs[path])
            return LowRank(A, B, info.scaling)

        return read


def _common(file: TensorFile, key_a: str, key_b: str) -> torch.dtype:
    """The dtype that holds both factors exactly; one-byte types are read as bfloat16."""
    found = [file.dtypes[key] for key in (key_a, key_b)]
    a, b = (torch.bfloat16 if t is None or t.itemsize == 1 else t for t in found)
    return torch.promote_types(a, b)


def _style_of(keys: Sequence[str]) -> str:
    """The end of a sentence that names the tool whose key style this is, if it is known."""
    if any(re.match(r"lora_(unet|te\d*|transformer)_", key) for key in keys):
        return "; they are in the style of kohya's sd-scripts"
    if any(re.search(r"\.lora(_linear_layer)?\.(down|up)\.weight$", key) for key in keys):
        return "; they are in the style of older diffusers"
    return ""


def _many(names: Sequence[str], noun: str) -> str:
    """ "The file has a module (x)" or "The file has 3 modules (such as x)"."""
    if len(names) == 1:
        return f"The file has a {noun} ({names[0]})"
    return f"The file has {len(names)} {noun}s (such as {names[0]})"
