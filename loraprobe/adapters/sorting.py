"""Sorts the tensors of a file into factors of modules, extras, and issues."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from loraprobe.adapters.config import Config
from loraprobe.adapters.extras import FLAGS, as_peft_reads
from loraprobe.adapters.initialisation import initialisation_issues
from loraprobe.adapters.keys import PREFIX, Key, classify
from loraprobe.adapters.targeting import Names
from loraprobe.adapters.tensors import TensorFile
from loraprobe.adapters.types import Extra, LayerKind, ModuleInfo
from loraprobe.errors import AdapterError
from loraprobe.limits import limits, raising
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue, Severity

LINEAR_HEADS = ("lm_head", "score", "classifier")  # never Conv1D, whatever the config says


@dataclass
class KeySorting:
    """The state of reading one file: each key becomes a factor of a module or an extra."""

    name: str
    config: Config
    file: TensorFile
    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    odd: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # code -> (module, what)

    def issue(
        self, severity: Severity, code: str, message: str, cure: str, module: str | None = None
    ) -> None:
        self.issues.append(Issue(severity, code, (self.name,), message, cure, module))

    def extra(self, kind: str, key: str, module: str | None) -> None:
        dtype = str(self.file.dtypes[key] or "unknown").removeprefix("torch.")
        self.extras.append(Extra(kind, key, module, self.file.shapes[key], dtype))

    def sort_keys(self) -> None:
        """Makes each key a factor or an extra, and reports keys that are odd."""
        saved = self.config.raw.get("modules_to_save") or ()
        saved = Names([saved] if isinstance(saved, str) else saved)
        unprefixed, twice, unknown = [], [], []
        for key in sorted(self.file.shapes):
            found = _as_saved(classify(key), saved)
            if not key.startswith(PREFIX):
                unprefixed.append(key)
            if found.role not in ("A", "B", "eA", "eB") or found.path is None:
                self.extra(found.role, key, found.path)
                if found.role == "unknown":
                    unknown.append(key)
            elif found.role in self.factors.setdefault(found.path, {}):
                self.extra("unknown", key, found.path)
                twice.append(key)
            else:
                self.factors[found.path][found.role] = key
        self._name_odd_keys(unprefixed, twice, unknown)

    def _name_odd_keys(
        self, unprefixed: Sequence[str], twice: Sequence[str], unknown: Sequence[str]
    ) -> None:
        doubled = [path for path in self.factors if path.startswith(PREFIX)]
        if doubled:
            message = (
                f"{_many(doubled, 'module')} with the prefix {PREFIX!r} twice, which peft loads "
                "without any effect."
            )
            cure = "Save the adapter from a model that is wrapped once, or rename its keys."
            self.issue("error", "doubled-prefix", message, cure)
        if unprefixed:
            message = (
                f"{_many(unprefixed, 'key')} without the prefix {PREFIX!r}: read here as module "
                "paths, but peft would load them without any effect."
            )
            cure = "Rename the keys if peft is to load this adapter."
            self.issue("warning", "unprefixed-keys", message, cure)
        if twice:
            message = (
                f"{_many(twice, 'key')} for a factor that another key gives already, so the file "
                "holds several adapters."
            )
            cure = "Save each adapter into a directory of its own."
            self.issue("error", "several-adapters", message, cure)
        if unknown:
            message = (
                f"{_many(unknown, 'key')} that fit nothing in a PEFT LoRA file{_style_of(unknown)}."
            )
            cure = (
                "Convert the file to PEFT's format, or remove tensors that do not belong to the "
                "adapter."
            )
            self.issue("error", "unknown-tensors", message, cure)

    def pair_factors(self) -> dict[str, ModuleInfo]:
        """Pairs A and B of each module and checks their shapes; unusable factors become extras.

        Raises AdapterError for more modules than the limit.
        """
        infos: dict[str, ModuleInfo] = {}
        if len(self.factors) > limits().modules:
            raise AdapterError(
                f"{self.name} adapts {len(self.factors):,} modules, beyond the "
                f"{limits().modules:,} that are read; {raising('modules', len(self.factors))}."
            )
        self.config.prepare(self.factors)
        for path, keys in self.factors.items():
            pair = ("eA", "eB") if "eA" in keys or "eB" in keys else ("A", "B")
            kind = self._why_unusable(path, keys, pair)
            if kind is None:
                infos[path] = self._module(path, keys[pair[0]], keys[pair[1]], pair[0] == "eA")
            else:
                for key in keys.values():
                    self.extra(kind, key, path)
        self._name_odd_modules()
        self.extras, odd = as_peft_reads(self.name, self.extras, infos, self.config.raw)
        self.issues += odd
        return infos

    def _why_unusable(
        self, path: str, keys: Mapping[str, str], pair: tuple[str, str]
    ) -> str | None:
        """The kind of extra that these factors become; None if they are an update B A."""
        if set(keys) != set(pair):
            self.odd.setdefault("unpaired-factor", []).append((path, ", ".join(keys.values())))
            return "unknown"
        a, b = (self.file.shapes[keys[which]] for which in pair)
        if len(a) > 2 and len(b) > 2:
            usable = _plain_convolution(a, b) and self._floating(path, keys, pair)
            return None if usable else "convolution"
        if self._is_parameter(path, a, b):
            return "target_parameter"
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
            self.odd.setdefault("shape-mismatch", []).append((path, f"A {list(a)}, B {list(b)}"))
            return "unknown"
        return None if self._floating(path, keys, pair) else "unknown"

    def _floating(self, path: str, keys: Mapping[str, str], pair: tuple[str, str]) -> bool:
        types = [self.file.dtypes[keys[which]] for which in pair]
        if all(t is not None and t.is_floating_point for t in types):
            return True
        names = " and ".join(str(t).removeprefix("torch.") for t in types)
        self.odd.setdefault("not-floating", []).append((path, names))
        return False

    def _module(self, path: str, key_a: str, key_b: str, embedding: bool) -> ModuleInfo:
        a, b = self.file.shapes[key_a], self.file.shapes[key_b]
        r = self.config.rank(path)
        if a[0] != r:
            self.odd.setdefault("rank-contradicts-config", []).append((path, f"{a[0]} for {r}"))
        kind: LayerKind = "linear"
        if embedding:
            kind = "embedding"
        elif len(a) > 2:
            kind = "convolution"
        elif self.config.fan_in_fan_out and path.rpartition(".")[2] not in LINEAR_HEADS:
            kind = "conv1d"
        dtype = _common(self.file, key_a, key_b)
        return ModuleInfo(
            path, kind, a[0], math.prod(a[1:]), b[0], self.config.scaling(path), dtype, a[2:]
        )

    def _is_parameter(self, path: str, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether the factors belong to a MoE parameter [E, ...]: A (E*r, in), B (out, E*r)."""
        fits = len(a) == 2 and len(b) == 2 and a[0] == b[1] and a[0] % self.config.rank(path) == 0
        return fits and self._owners.fits(path)

    @functools.cached_property
    def _owners(self) -> Names:
        """The modules whose parameters the config targets."""
        targets = self.config.raw.get("target_parameters") or []
        return Names([owner for target in targets if (owner := target.rpartition(".")[0])])

    def _name_odd_modules(self) -> None:
        """Adds one issue per code, which counts the modules that have the problem."""
        texts = {
            "unpaired-factor": ("that lack the partner of", "Save or download it again."),
            "shape-mismatch": (
                "whose factors do not multiply:",
                "Save or download it again; with DeepSpeed ZeRO-3 or FSDP gather the shards first.",
            ),
            "not-floating": (
                "whose factors are not floating point:",
                "Save the adapter in float32, bfloat16 or float16.",
            ),
            "rank-contradicts-config": (
                "whose rank is not the config's, so that their scale is unknown:",
                "Correct r or rank_pattern in adapter_config.json.",
            ),
        }
        for code, found in self.odd.items():
            what, cure = texts[code]
            more = f" and {len(found) - 1} more" if found[1:] else ""
            message = f"The file has modules {what} {found[0][1]} in {found[0][0]}{more}."
            self.issue("error", code, message, cure, found[0][0])

    def check_config(self) -> None:
        """Reports unknown keys, a missing lora_alpha, and tensors that the config says exist."""
        if self.config.unknown:
            message = (
                f"The config sets {', '.join(self.config.unknown)}, which loraprobe does not know "
                "and which may change what the adapter computes."
            )
            cure = "Use a newer loraprobe, or remove the key if it is known to be harmless."
            self.issue("error", "unknown-config", message, cure)
        if self.config.trainers:
            message = (
                "The config has keys of a trainer, which do not change what the adapter does: "
                f"{', '.join(self.config.trainers)}."
            )
            self.issue("note", "trainer-config", message, "")
        self.issues += initialisation_issues(self.name, self.config.raw.get("init_lora_weights"))
        if self.config.empty_unknown:
            message = (
                "The config has unknown keys without a value: "
                f"{', '.join(self.config.empty_unknown)}."
            )
            self.issue("note", "unknown-config-empty", message, "")
        if self.config.alpha_is_missing:
            message = (
                f"The config has no lora_alpha; peft then takes {self.config.alpha:g}, which need "
                "not be what the adapter was trained with."
            )
            cure = "Add the value of the training to adapter_config.json."
            self.issue("error", "missing-alpha", message, cure)
        held = {extra.kind for extra in self.extras}
        promised = {
            **{flag: kind for kind, flag in FLAGS.items()},
            "trainable_token_indices": "token_delta",
            "modules_to_save": "modules_to_save",
        }
        lost = [k for k, kind in promised.items() if self.config.raw.get(k) and kind not in held]
        if lost:
            message = f"The config sets {' and '.join(lost)}, but the file has no tensors for it."
            cure = "The file is incomplete; save or download it again."
            self.issue("error", "missing-tensors", message, cure)

    def reader(self, infos: Mapping[str, ModuleInfo]) -> Callable[[str], LowRank]:
        """A function from module path to LowRank that reads both factors from the file."""
        file, factors = self.file, self.factors

        def read(path: str) -> LowRank:
            info = infos[path]
            pair = ("eA", "eB") if info.kind == "embedding" else ("A", "B")
            A, B = (file.read(factors[path][which]).to(info.dtype).flatten(1) for which in pair)
            return LowRank(A, B, info.scaling)

        return read


def _plain_convolution(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether A (r, in, k...) and B (out, r, 1...) are one matrix product, without groups."""
    return len(a) == len(b) and a[0] == b[1] and set(b[2:]) == {1} and 0 not in a + b


def _common(file: TensorFile, key_a: str, key_b: str) -> torch.dtype:
    """The dtype that holds both factors exactly; one-byte types are read as bfloat16."""
    found = [file.dtypes[key] for key in (key_a, key_b)]
    a, b = (torch.bfloat16 if t is None or t.itemsize == 1 else t for t in found)
    return torch.promote_types(a, b)


def _as_saved(key: Key, saved: Names) -> Key:
    """The key; a bias of a module that was trained whole becomes part of that module."""
    if key.role == "bias" and key.path and saved.fits(key.path):
        return Key("modules_to_save", key.path)
    return key


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
