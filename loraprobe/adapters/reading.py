"""Reads the directory of an adapter and accounts for every tensor of its file. That of another
library is one of peft, as an extension shows it.

`classify` says what the key of a tensor is. `KeySorting` makes each tensor a factor of a module, an
extra (used are DoRA magnitudes, whole modules, trained biases, biases of lora_B and trained token
rows), or a part of an issue. What is odd but readable becomes an issue of the adapter;
findings.toml lists the codes. Errors stop a merge unless they are allowed by name.
"""

from __future__ import annotations

import functools
import itertools
import math
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe import untrusted
from loraprobe.adapters.config import (
    FLAGS,
    AdapterConfig,
    config_issues,
    endings,
    read_config,
    untargeted_paths,
)
from loraprobe.adapters.experts import (
    NESTED,
    factors_of_expert,
    layout_of_experts,
    order_issue,
    owner_of,
    parameter_names,
)
from loraprobe.adapters.files import (
    PICKLE,
    SAFETENSORS,
    disagreement,
    find_directory,
    foreign_weights,
    open_tensors,
    trained_by,
)
from loraprobe.adapters.names import VOCABULARY, layer_pattern
from loraprobe.adapters.types import (
    Adapter,
    Extra,
    LayerKind,
    ModuleInfo,
    Modules,
    Source,
    Tensors,
    TokenRows,
)
from loraprobe.checkpoint import TensorFile
from loraprobe.errors import AdapterError
from loraprobe.findings import CODES, finding
from loraprobe.formatting import count
from loraprobe.lora.lowrank import LowRank
from loraprobe.patterns import PatternError
from loraprobe.records import Issue

PREFIX = "base_model.model."

# The role of a key -> the keys, without the prefix. The first that fits counts. Names of other
# tools have a part that begins with lora, such as lora_down and lora_up.
ROLES = {
    "{which}": re.compile(r"(?P<path>.+?)\.lora_(?P<which>A|B)(?:\.[^.]+)?\.weight"),
    "e{which}": re.compile(r"(?P<path>.+?)\.lora_embedding_(?P<which>A|B)(?:\.[^.]+)?"),
    "dora_magnitude": re.compile(r"(?P<path>.+?)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?"),
    "lora_bias": re.compile(r"(?P<path>.+?)\.lora_B(?:\.[^.]+)?\.bias"),
    "token_delta": re.compile(
        r"(?P<path>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?"
    ),
    "unknown": re.compile(r"(?:.*\.)?lora.*", re.DOTALL),
    "base_copy": re.compile(r"(?P<path>.+?)\.(?:base_layer|original_module)\.weight"),
    "modules_to_save": re.compile(r"(?P<path>.+?)\.(?:modules_to_save\.[^.]+\.)?weight"),
    "bias": re.compile(
        r"(?P<path>.+?)\.(?:base_layer\.|original_module\.|modules_to_save\.[^.]+\.)?bias"
    ),
}

MOST_NAMES = 6  # parameters of one module whose orders are tried
UNEMBED, HEAD = "model.unembed_tokens", "lm_head"  # the name of the head in Tinker's files
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
    "expert-layout": "The file has modules whose factors of all experts are one tensor of three "
    "dimensions, where a PEFT file has two: {first}.",
    "shape-mismatch": "The file has modules whose factors do not multiply: {first}.",
    "not-floating": "The file has modules whose factors are not floating point: {first}.",
    "rank-contradicts-config": (
        "The file has modules whose rank is not the config's, so that their scale is unknown: "
        "{first}."
    ),
}
# What can be done with adapters of diffusion models.
OF_IMAGES = (
    "Load it with load_lora_weights of diffusers, which reads this style, and compare images "
    "there: nothing here asks a model of images. To look at its weights, save it there by peft "
    "(save_pretrained of the adapted part) and inspect that directory."
)
OF_EXPERTS = (
    "Save it in peft's layout (target_parameters, two dimensions) or with factors of their own for "
    "each expert, as build_lora_adapter of tinker-cookbook does."
)
# Kind of extra -> the field of an Adapter through which it is read.
FIELDS = {
    "dora_magnitude": "magnitudes",
    "modules_to_save": "whole",
    "bias": "whole",
    "lora_bias": "offsets",
    "token_delta": "token_rows",
}


def read_adapter(
    path: str | Path, name: str | None = None, source: Source | None = None
) -> Adapter:
    """Reads a directory of an adapter. Factors are read from the file when they are needed.

    `name` is the adapter's name (default: the directory's). Raises AdapterError if the files cannot
    be read and UnsupportedAdapter if the configuration is not a plain LoRA.
    """
    directory = find_directory(Path(path))
    name = name or directory.resolve().name
    source = source or Source(reference=str(path), path=directory)
    foreign = [row for file, row in foreign_weights().items() if (directory / file).is_file()]
    if foreign and not any((directory / file).is_file() for file in (SAFETENSORS, PICKLE)):
        config, file = pkgutil.resolve_name(foreign[0][0])(directory, PREFIX)
    else:
        foreign = []
        config, file = read_config(directory, source.reference), open_tensors(directory)
    sorting = KeySorting(name, config, file)
    sorting.sort_keys()
    infos = sorting.pair_factors()
    extras, unused = _as_peft_reads(sorting.extras, infos, config.raw)
    adapter = Adapter(
        name=name,
        source=source,
        base_model=config.raw.get("base_model_name_or_path") or None,
        modules=Modules(infos, sorting.reader(infos)),
        extras=tuple(extras),
        config=dict(config.raw),
        weights_file=file.path,
        **_extra_tensors(file, extras, config.raw),
    )
    issues = [*sorting.findings()]
    for _, code in foreign[:1]:
        issues.append(finding(code, (name,), f"{name} is {CODES[code].meaning}."))

    def add(code: str, message: str, module: str | None = None, cure: str | None = None) -> None:
        issues.append(finding(code, (name,), message, module, cure=cure))

    if any(UNEMBED in key for key in sorting.file.shapes):
        add(
            "modules-renamed",
            f"{name} names the head {UNEMBED}, as Tinker does; here it has the name of "
            f"transformers, {HEAD}.",
            HEAD,
        )
    if unused:
        add(
            "tensors-unused",
            f"The file holds {count(len(unused), 'tensor')} ({unused[0].key} first) that peft "
            "leaves out, since the config does not ask for it or its module has no factors; left "
            "out here too.",
            unused[0].module,
        )
    if file.path.name == PICKLE:
        add("pickled", f"The weights of {name} are a pickle ({PICKLE}), which may hold code.")
    issues += config_issues(adapter)
    if unordered := order_issue(adapter):
        issues.append(unordered)
    if lost := _lacked_by_layers(infos):
        add(
            "layers-uneven",
            f"{len(lost)} {'module lacks' if len(lost) == 1 else 'modules lack'} weights that "
            f"other layers have, {lost[0]} first.",
            lost[0],
        )
    if what := disagreement(directory):
        add(
            "weights-disagree",
            f"{directory} holds {SAFETENSORS} and {PICKLE}, which are not the same adapter: "
            f"{what}.",
        )
    if not infos:
        cure = _style_of([*file.shapes])[1]
        add("no-modules", "The file holds no LoRA factors that can be used.", cure=cure)
    # The commands that cure it name the adapter.
    place = shlex.quote(source.reference)
    issues = [replace(issue, cure=issue.cure.replace(" REF ", f" {place} ")) for issue in issues]
    return replace(adapter, issues=tuple(issues))


def _lacked_by_layers(paths: Iterable[str]) -> list[str]:
    """The modules that a layer lacks.

    A parent, such as `self_attn`, should have the same children in every layer that has it.
    """
    children: dict[str, dict[str, set[str]]] = {}
    for path in paths:
        parent, _, child = path.rpartition(".")
        children.setdefault(layer_pattern(parent), {}).setdefault(parent, set()).add(child)
    lost = []
    for parents in children.values():
        everywhere = set().union(*parents.values())
        lost += [f"{p}.{c}" for p, present in parents.items() for c in sorted(everywhere - present)]
    return lost


def classify(key: str) -> tuple[str, str | None]:
    """The role of a key, and the module path in the base model that it belongs to.

    The role is "A", "B" (linear), "eA", "eB" (embedding), or the kind of an extra.
    """
    name = key.removeprefix(PREFIX)
    for role, pattern in ROLES.items():
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            return role.format(**parts), parts.get("path")
    return "unknown", None


class KeySorting:
    """The state of reading one file: each key becomes a factor of a module or an extra.

    name: that of the adapter.
    """

    def __init__(self, name: str, config: AdapterConfig, file: TensorFile) -> None:
        self.name, self.config, self.file = name, config, file
        self.factors: dict[str, dict[str, str]] = {}  # path -> role -> key
        self.pairs: dict[str, tuple[str, str]] = {}  # path -> keys of A and B that are an update
        self.extras: list[Extra] = []
        # Code of a finding -> for each place the key, path or problem, and the module if known.
        self.odd: dict[str, list[tuple[str, str | None]]] = {code: [] for code in MESSAGES}

    def sort_keys(self) -> None:
        """Makes each key a factor or an extra."""
        saved = self.config.raw.get("modules_to_save") or ()
        saved = frozenset([saved] if isinstance(saved, str) else map(str, saved))
        for key in sorted(self.file.shapes):
            role, path = classify(key)
            path = HEAD if path == UNEMBED else path
            if role == "bias" and path and not saved.isdisjoint(endings(path)):
                role = "modules_to_save"  # a part of a module that was trained whole
            if not key.startswith(PREFIX):
                self.odd["unprefixed-keys"].append((key, None))
            if role not in ("A", "B", "eA", "eB") or path is None:
                self._extra(role, path, key)
                if role == "unknown":
                    self.odd["unknown-tensors"].append((key, None))
            elif role in self.factors.setdefault(path, {}):
                self._extra("unknown", path, key)
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
        for path, roles in self.factors.items():
            if kind := self._why_unusable(path, roles):
                self._extra(kind, path, *roles.values())
                continue
            a, b = (roles[role] for role in sorted(roles))
            self.pairs[path] = a, b
            if not self._is_stack(path):
                infos[path] = self._module(path, a, b, "eA" in roles, *measures[path])
        self._unstack(infos)
        return infos

    def _extra(self, kind: str, module: str | None, *keys: str) -> None:
        for key in keys:
            dtype = str(self.file.dtypes[key] or "unknown").removeprefix("torch.")
            self.extras.append(Extra(kind, key, module, self.file.shapes[key], dtype))

    def _check_count(self, modules: int) -> None:
        if modules > untrusted.MODULES:
            raise AdapterError(
                f"{self.name} adapts {modules:,} modules, beyond the {untrusted.MODULES:,} that "
                "are read; no known model has so many."
            )

    def _why_unusable(self, path: str, roles: Mapping[str, str]) -> str | None:
        """The kind of extra that the factors of a module become; None if they are an update B A."""
        if sorted(roles) not in (["A", "B"], ["eA", "eB"]):
            self.odd["unpaired-factor"].append((", ".join(roles.values()), path))
            return "unknown"
        keys = [roles[role] for role in sorted(roles)]
        a, b = (self.file.shapes[key] for key in keys)
        fits = len(a) == len(b) > 1 and a[0] == b[1] and 0 not in a + b
        kind = "unknown"
        if layout := layout_of_experts(path, a, b):
            self.odd["expert-layout"].append((f"A {list(a)}, B {list(b)} ({layout})", path))
            return "target_parameter"
        if len(a) > 2 and len(b) > 2:
            kind = "convolution"
            fits = fits and set(b[2:]) == {1}  # without groups, so that it is one matrix product
        elif path.endswith(NESTED) and not self._is_stack(path):
            return "target_parameter"
        elif not fits:
            self.odd["shape-mismatch"].append((f"A {list(a)}, B {list(b)}", path))
        types = [self.file.dtypes[key] for key in keys]
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
        dtype = self._dtype(key_a, key_b)
        return ModuleInfo(path, kind, a[0], math.prod(a[1:]), b[0], scaling, dtype, a[2:])

    def _unstack(self, infos: dict[str, ModuleInfo]) -> None:
        """Adds a module for each expert of the stacked factors; unclear ones become extras."""
        owners: dict[str, list[str]] = {}
        for stack in self.pairs.keys() - infos.keys():
            owners.setdefault(owner_of(stack)[0], []).append(stack)
        for owner in sorted(owners):
            stacks = sorted(owners[owner], key=len)  # from the outermost to the innermost
            names = [f"{owner}.{name}" for name in parameter_names(self.config.raw, owner)]
            measures = list(self.config.ranks_and_scalings(names).values())
            rows = [self.file.shapes[self.pairs[stack][0]][0] for stack in stacks]
            measured = _outermost_first(measures, rows)
            if measured is None or owner_of(stacks[-1])[1] != len(stacks) - 1:
                for stack in stacks:
                    self._extra("target_parameter", stack, *self.pairs[stack])
                continue
            for stack, (rank, scaling) in zip(stacks, measured, strict=True):
                a, b = self.pairs[stack]
                (n, columns), (out, _) = self.file.shapes[a], self.file.shapes[b]
                self._check_count(len(infos) + n // rank)
                dtype = self._dtype(a, b)
                for path in (f"{stack}[{number}]" for number in range(n // rank)):
                    infos[path] = ModuleInfo(path, "expert", rank, columns, out, scaling, dtype)

    def _is_stack(self, path: str) -> bool:
        """Whether the factors are stacked ones of a parameter that the config targets."""
        owner, _ = owner_of(path)
        return owner not in self._targeted and bool(parameter_names(self.config.raw, owner))

    @functools.cached_property
    def _targeted(self) -> set[str]:
        """The modules that the config targets as such and not by a parameter."""
        raw, owners = self.config.raw, {owner_of(path)[0] for path in self.factors}
        targets, parameters = raw.get("target_modules"), raw.get("target_parameters")
        if not targets or not parameters:
            return set()
        if str(targets).lower() == "all-linear":
            qualified = {"target_parameters": [name for name in parameters if "." in name]}
            return {owner for owner in owners if not parameter_names(qualified, owner)}
        try:
            return owners - set(untargeted_paths(owners, raw))
        except PatternError:
            return owners

    def _dtype(self, key_a: str, key_b: str) -> torch.dtype:
        """The dtype that holds both factors exactly; one-byte types are read as bfloat16."""
        stored = [self.file.dtypes[key] for key in (key_a, key_b)]
        a, b = (torch.bfloat16 if t is None or t.itemsize == 1 else t for t in stored)
        return torch.promote_types(a, b)

    def findings(self) -> Iterator[Issue]:
        """One finding per code, which counts the keys or modules that have the problem."""
        for code, places in self.odd.items():
            if places:
                names, module = [name for name, _ in places], places[0][1]
                more = f" and {len(names) - 1} more" if names[1:] else ""
                style, cure = _style_of(names)
                if cure is not None and code != "unknown-tensors":  # the file lacks no prefix
                    continue
                cure = OF_EXPERTS if code == "expert-layout" else cure
                text = MESSAGES[code].format(
                    keys=_many(names, "key"),
                    modules=_many(names, "module"),
                    first=f"{names[0]} in {module}{more}",
                    style=style,
                )
                yield finding(code, (self.name,), text, module, cure=cure)

    def reader(self, infos: Mapping[str, ModuleInfo]) -> Callable[[str], LowRank]:
        """A function from module path to LowRank that reads both factors from the file."""
        file, pairs = self.file, self.pairs
        last: dict[str, tuple[Tensor, Tensor]] = {}  # unlike a cache, it can be sent to a cluster

        def factors_of_stack(stack: str) -> tuple[Tensor, Tensor]:
            if stack not in last:  # modules are read in order, so a stack is read once
                last.clear()
                a, b = pairs[stack]
                last[stack] = file.read(a), file.read(b)
            return last[stack]

        def read(path: str) -> LowRank:
            info = infos[path]
            if info.kind == "expert":
                stack, _, number = path.rstrip("]").rpartition("[")
                A, B = factors_of_expert(*factors_of_stack(stack), int(number), info.rank)
            else:
                A, B = (file.read(key).flatten(1) for key in pairs[path])
            return LowRank(A.to(info.dtype), B.to(info.dtype), info.scaling)

        return read


def _outermost_first(
    given: Sequence[tuple[int, float]], rows: Sequence[int]
) -> tuple[tuple[int, float], ...] | None:
    """Rank and scaling of the parameters of a module, outermost first; None if they are unclear.

    given: those of each parameter by the config. rows: those of each stacked A. A config may give
    the parameters different ranks by their names (peft does for the names of older models), and the
    file does not tell their order. It is then the one in which every parameter has the same number
    of experts.
    """
    if len(rows) > len(given) or len(given) > MOST_NAMES:
        return None
    fitting = set()
    for order in itertools.permutations(given, len(rows)):
        experts = {n / rank for n, (rank, _) in zip(rows, order, strict=True)}
        if len(experts) == 1 and experts.pop().is_integer():
            fitting.add(order)
    return fitting.pop() if len(fitting) == 1 else None


def _style_of(keys: Sequence[str]) -> tuple[str, str | None]:
    """The end of a sentence that names the tool whose key style this is, if it is known, and what
    to do with its files, where that is not what a finding's cure says."""
    if training := trained_by("keys", keys):
        cure = training["cure"]
        return f"; they are {training['saved']}", f"{cure[0].upper()}{cure[1:]}."
    if any(re.match(r"lora_(unet|te\d*|transformer)_", key) for key in keys):
        return "; they are in the style of kohya's sd-scripts", OF_IMAGES
    if any(re.search(r"\.lora(_linear_layer)?\.(down|up)\.weight$", key) for key in keys):
        return "; they are in the style of older diffusers", OF_IMAGES
    return "", None


def _many(names: Sequence[str], noun: str) -> str:
    """ "The file has a module (x)" or "The file has 3 modules (such as x)"."""
    if len(names) == 1:
        return f"The file has a {noun} ({names[0]})"
    return f"The file has {len(names)} {noun}s (such as {names[0]})"


def _as_peft_reads(
    extras: Sequence[Extra], infos: Mapping[str, ModuleInfo], config: Mapping[str, Any]
) -> tuple[list[Extra], list[Extra]]:
    """The extras that peft would load, and those that it leaves out.

    peft saves copies of the base's embeddings and heads. A copy of another base weight gets the
    kind base_weight, because peft would overwrite the base's weight with it. Rows of tokens that
    the config does not tell, or of an embedding that also has factors, get the kind unclear_tokens.
    """
    loaded, unused = [], []
    tables = {path for path, info in infos.items() if info.kind == "embedding"}
    for extra in extras:
        flag = FLAGS.get(extra.kind)
        if flag and not (config.get(flag) and extra.module in infos):
            unused.append(extra)
        elif extra.kind == "base_copy" and not (
            extra.module in tables or (extra.module or "").rpartition(".")[2] in VOCABULARY
        ):
            loaded.append(replace(extra, kind="base_weight"))
        elif extra.kind == "token_delta" and not _tokens_are_clear(extra, infos, config):
            loaded.append(replace(extra, kind="unclear_tokens"))
        else:
            loaded.append(extra)
    return loaded, unused


def _tokens_are_clear(
    extra: Extra, infos: Mapping[str, ModuleInfo], config: Mapping[str, Any]
) -> bool:
    """Whether trained rows have one token each; peft runs them beside no factors of the module."""
    tokens = _tokens_of(config, extra.module or "")
    fits = tokens is not None and len(extra.shape) == 2 and extra.shape[0] == len(tokens)
    floating = extra.dtype.startswith(("float", "bfloat"))
    return fits and floating and 0 not in extra.shape and extra.module not in infos


def _tokens_of(config: Mapping[str, Any], path: str) -> tuple[int, ...] | None:
    """The ids whose rows of a module the config says to be trained; None if it is not clear.

    A list is that of the input embedding; otherwise a name selects the modules that end with it.
    """
    given = config.get("trainable_token_indices")
    if isinstance(given, Mapping):
        matching = [ids for name, ids in given.items() if path.endswith(str(name))]
        given = matching[0] if len(matching) == 1 else None
    if not isinstance(given, (list, tuple)) or not given:
        return None
    sound = all(type(token) is int and token >= 0 for token in given)
    return tuple(given) if sound and len(set(given)) == len(given) else None


def copied_weight(adapter: Adapter, extra: Extra) -> Tensor:
    """The base weight that peft saved with an adapter (kind base_copy), as it is stored.

    Raises AdapterError where it cannot be read, as for an adapter without a file.
    """
    if adapter.weights_file is None:
        raise AdapterError(f"Adapter {adapter.name} has no file that holds {extra.key}.")
    return open_tensors(adapter.weights_file.parent).read(extra.key)


def same_weight(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same weight, up to the rounding of the coarser dtype."""
    coarse = min(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    return one.shape == other.shape and bool(
        torch.equal(one.to(coarse), other.to(one.device, coarse))
    )


def _extra_tensors(
    file: TensorFile, extras: Sequence[Extra], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of `Adapter` for what is no factor; tensors are read when needed."""
    keys: dict[str, dict[str, str]] = {field: {} for field in FIELDS.values()}
    for extra in extras:
        if extra.kind in FIELDS and extra.module is not None:
            field, what = FIELDS[extra.kind], extra.key.rpartition(".")[2]
            name = f"{extra.module}.{what}" if field == "whole" else extra.module
            keys[field][name] = extra.key

    def vector(field: str, name: str) -> Tensor:  # peft stores some with dimensions of size 1
        return file.read(keys[field][name]).flatten()

    return {
        "magnitudes": Tensors(keys["magnitudes"], functools.partial(vector, "magnitudes")),
        "offsets": Tensors(keys["offsets"], functools.partial(vector, "offsets")),
        "whole": Tensors(keys["whole"], lambda name: file.read(keys["whole"][name])),
        "token_rows": {
            path: TokenRows(_tokens_of(config, path) or (), functools.partial(file.read, key))
            for path, key in keys["token_rows"].items()
        },
    }


def keys_of_extras(adapter: Adapter) -> Iterator[tuple[str, str, str, Tensor]]:
    """(kind of extra, key without prefix, module, tensor) of all tensors but factors."""
    for path, magnitude in adapter.magnitudes.items():
        yield "dora_magnitude", f"{path}.lora_magnitude_vector", path, magnitude
    for name, tensor in adapter.whole.items():
        module, _, what = name.rpartition(".")
        alone = what == "bias" and f"{module}.weight" not in adapter.whole
        # peft stores the bias of an adapted layer under its `base_layer`.
        key = f"{module}.base_layer.{what}" if module in adapter.layout else name
        yield "bias" if alone else "modules_to_save", key, module, tensor
    for path, bias in adapter.offsets.items():
        yield "lora_bias", f"{path}.lora_B.bias", path, bias
    for path, rows in adapter.token_rows.items():
        yield "token_delta", f"{path}.token_adapter.trainable_tokens_delta", path, rows.values
