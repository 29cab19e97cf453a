"""Reads adapter_config.json and applies its rules to the paths of modules, as peft does.

A config gives each module a rank and a scaling, and says which modules are targeted.
`config_issues` says where it and the file do not agree, and what may change the function.

Some initialisations of LoRA move a part of a base weight W into A and B, so that training starts at
(W - s B0 A0) + s B0 A0. After training the file holds s B A, which fits W - s B0 A0 and not W. When
peft loads such a file, it repeats the change (PiSSA, OLoRA, LoftQ), fails (CorDA), or omits the
change (LoRA-GA). peft's conversion on saving gives a plain LoRA for W of twice the rank and sets
init_lora_weights to true.
"""

from __future__ import annotations

import math
import reprlib
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from loraprobe.adapters.names import VOCABULARY, number_in
from loraprobe.adapters.types import Adapter
from loraprobe.errors import AdapterError, UnsupportedAdapter
from loraprobe.findings import finding
from loraprobe.formatting import count, listing
from loraprobe.patterns import PatternError, first_matches
from loraprobe.records import Issue
from loraprobe.untrusted import DEEPEST, document_model, first_problem, nested_values, read_json
from loraprobe.wiring import extensions

CONFIG = "adapter_config.json"
LARGEST = 1e9  # of r, lora_alpha and the values of their patterns
PEFT_DEFAULT = 8  # what peft takes for r and lora_alpha where the file has none
PATTERN = r"(.*\.)?({})$"  # peft's expression for the modules of a key of rank_pattern

# peft's expression for a module in modules_to_save, or inside of such a module.
SAVED = r"(^|.*\.){}($|\..*)"
# peft's expressions for the layer number in a path, with and without layers_pattern.
LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."

# These keys are read elsewhere or do not change the function of a trained adapter.
DESCRIPTIVE = frozenset(
    "auto_mapping base_model_name_or_path revision peft_type peft_version task_type inference_mode "
    "r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora "
    "modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_core trainable_token_indices loftq_config eva_config corda_config "
    "lora_ga_config use_dora qalora_group_size runtime_config lora_bias target_parameters "
    "ensure_weight_tying lora_dropout_pattern merge_weights ephemeral_gpu_offload".split()
)
# A trainer (ms-swift) writes these keys for its own use, and peft ignores them.
TRAINERS = frozenset("swift_type lora_dtype lorap_lr_ratio lorap_emb_lr".split())

# The starts of values of init_lora_weights that change the base weights, in lower case.
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
# With these values the base weights stay unchanged.
KEEPS_BASE = frozenset({"gaussian", "eva", "orthogonal", "mica"})
# Kind of extra -> the config key without which peft does not load it.
FLAGS = {"dora_magnitude": "use_dora", "lora_bias": "lora_bias"}
# Config key -> the kinds of extras of which the file then holds one.
PROMISED = {
    "use_dora": ("dora_magnitude",),
    "lora_bias": ("lora_bias",),
    "trainable_token_indices": ("token_delta", "unclear_tokens"),
    "modules_to_save": ("modules_to_save",),
}

# A value of these keys that is not empty means that the adapter computes something else than B A x.
VARIANTS = {
    "use_qalora": "QALoRA pools the input before A",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA changes the base weights and scales by its own diagonal",
    "monteclora_config": "MonteCLoRA samples its factors",
    "velora_config": "VeLoRA compresses the input of A",
    "arrow_config": "an Arrow configuration belongs to a routed model, not to one adapter",
    "enable_lora": "the fused layers of the first peft versions group their factors",
    "layer_replication": "layer replication changes the base's depth",
    "megatron_config": "Megatron layers split their weights over devices",
}

# PEFT types of which nothing makes a LoRA -> what they do, and the cure.
NO_DELTA = {
    **dict.fromkeys(
        ["OFT", "BOFT", "HRA", "ROAD"],
        "which rotates weights or activations; merge it into its base with peft.",
    ),
    **dict.fromkeys(
        ["IA3", "LN_TUNING"],
        "which scales activations or norms; merge it into its base with peft.",
    ),
    **dict.fromkeys(
        "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING CPT ADAPTION_PROMPT "
        "CARTRIDGE".split(),
        "which adds tokens to the prompt and no weights; use an adapter of type LORA.",
    ),
    **dict.fromkeys(
        ["XLORA", "POLY"], "which routes between adapters; give the adapters that it routes."
    ),
    **dict.fromkeys(
        "ADAMSS DEFT FROD GLORA OSF PEANUT PVERA SUPERTUNING".split(),
        "of which peft makes no LoRA; merge it into its base with peft.",
    ),
    "BEFT": "which changes biases; merge it into its base with peft.",
    "TRAINABLE_TOKENS": "which changes rows of the embedding; merge it into its base with peft.",
    "LILY": "which routes between its own factors; use an adapter of type LORA.",
    "SHADOW": "which runs a network beside the base; use an adapter of type LORA.",
}

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Rank = Annotated[float, Field(ge=1, le=LARGEST, multiple_of=1)]
# The type of a value -> the keys that are read and have this type.
TYPES: Mapping[Any, str] = {
    str | None: "base_model_name_or_path revision task_type bias",
    str | list[str] | None: "target_modules exclude_modules modules_to_save layers_pattern",
    list[str] | None: "target_parameters",
    int | list[int] | None: "layers_to_transform",
    bool | str | None: "init_lora_weights",
    bool | None: "use_rslora use_dora lora_bias fan_in_fan_out",
    Rank: "r",
    Number: "lora_alpha",
    dict[str, Rank] | None: "rank_pattern",
    dict[str, Number] | None: "alpha_pattern",
}
CheckedConfig = document_model("CheckedConfig", TYPES)


@dataclass(frozen=True)
class AdapterConfig:
    """The content of an adapter_config.json, checked; `where` names the file in messages."""

    raw: Mapping[str, Any]
    where: str
    r: int
    alpha: float
    rank_pattern: Mapping[str, float]  # a regular expression from an untrusted file -> value
    alpha_pattern: Mapping[str, float]

    def ranks_and_scalings(self, paths: Iterable[str]) -> dict[str, tuple[int, float]]:
        """Path -> (r, s) with s = alpha/r, or alpha/sqrt(r) with rsLoRA.

        All paths are matched at once, which is faster. Raises AdapterError for a key of a pattern
        that cannot be matched.
        """
        paths = list(paths)
        ranks = self._matched("rank_pattern", self.rank_pattern, self.r, paths)
        alphas = self._matched("alpha_pattern", self.alpha_pattern, self.alpha, paths)
        root = math.sqrt if self.raw.get("use_rslora") else float
        return {
            path: (int(r), float(alpha) / root(int(r)))
            for path, r, alpha in zip(paths, ranks, alphas, strict=True)
        }

    def _matched(
        self, key: str, pattern: Mapping[str, float], default: float, paths: list[str]
    ) -> list[float]:
        """Each path's value in a pattern: that of the first key that matches the path's end."""
        keys = list(pattern)
        try:
            matches = first_matches(keys, PATTERN, paths)
        except PatternError as error:
            raise AdapterError(f"{self.where}: {key}: {error}; correct it.") from None
        # If no key matches, peft uses the path itself as the key.
        used = (path if m is None else keys[m[0]] for path, m in zip(paths, matches, strict=True))
        return [pattern.get(one, default) for one in used]


def read_config(directory: Path, reference: str) -> AdapterConfig:
    """Reads and checks adapter_config.json. reference: the adapter's, for commands.

    Raises AdapterError for a file that cannot be read or has wrong values, UnsupportedAdapter for
    a PEFT type or LoRA variant that is not supported.
    """
    path = directory / CONFIG
    raw = read_json(path, str(directory), AdapterError)
    if any(depth > DEEPEST for _, _, depth in nested_values(raw)):
        raise AdapterError(f"{path} nests lists or objects more than {DEEPEST} deep; correct it.")
    return judge_config(raw, str(path), reference)


def judge_config(raw: Mapping[str, Any], where: str, reference: str = "REF") -> AdapterConfig:
    """Checks the values of a config that was read from the file `where`.

    Raises AdapterError for a wrong value, UnsupportedAdapter for an unsupported type or variant.
    """
    kind = raw.get("peft_type")
    if kind != "LORA":
        cure = "use an adapter of that type"
        for extension in extensions():
            cure = extension.other_types.get(str(kind), cure)
        base = "auto" if raw.get("base_model_name_or_path") else "BASE"
        cure = cure.format(place=shlex.quote(reference), base=base)
        cure = NO_DELTA.get(str(kind), f"and loraprobe reads LORA; {cure}.")
        raise UnsupportedAdapter(f"{where} is of PEFT type {reprlib.repr(kind)}, {cure}")
    try:
        CheckedConfig.model_validate(raw)
    except ValidationError as error:
        raise AdapterError(f"{where}: {first_problem(error)}; correct it.") from None
    for key, why in VARIANTS.items():
        if raw.get(key):
            raise UnsupportedAdapter(
                f"{where} sets {key}: {why}, which loraprobe does not read; "
                "merge it into its base with peft, or use an adapter trained without it."
            )
    return AdapterConfig(
        raw=raw,
        where=where,
        r=int(raw.get("r", PEFT_DEFAULT)),
        alpha=raw.get("lora_alpha", PEFT_DEFAULT),
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
    )


def config_issues(adapter: Adapter) -> Iterator[Issue]:
    """What may change the function of an adapter, and what its file lacks or holds in excess.

    peft loads a file that lost modules without a message: an absent module keeps its initial value,
    which has no effect. Without the base the full list of modules is unknown, so these are
    warnings.
    """
    names, raw = (adapter.name,), adapter.config
    unknown = unknown_keys(raw)
    if filled := [key for key in unknown if raw[key]]:
        yield finding(
            "unknown-config",
            names,
            f"The config sets {', '.join(filled)}, which loraprobe does not know and which may "
            "change what the adapter computes.",
        )
    if trainers := [key for key in raw if key in TRAINERS]:
        yield finding(
            "trainer-config",
            names,
            "The config has keys of a trainer, which do not change what the adapter does: "
            f"{', '.join(trainers)}.",
        )
    if empty := [key for key in unknown if not raw[key]]:
        yield finding(
            "unknown-config-empty",
            names,
            f"The config has unknown keys without a value: {', '.join(empty)}.",
        )
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init and init.lower() not in KEEPS_BASE:
        changes = init.lower().startswith(CHANGES_BASE)
        yield finding(
            "init-changed-base" if changes else "init-unknown",
            names,
            f"{adapter.name} was initialised with init_lora_weights={reprlib.repr(init)}, which "
            + (
                "changes the base weights, and was saved without conversion: it fits only that "
                "changed base."
                if changes
                else "is not known and may have changed the base weights; peft does not load it."
            ),
        )
    if "lora_alpha" not in raw:
        yield finding(
            "missing-alpha",
            names,
            f"The config has no lora_alpha; peft then takes {PEFT_DEFAULT}, which need not be what "
            "the adapter was trained with.",
        )
    yield from _promises(adapter)
    yield from _targets(adapter)
    if raw.get("ensure_weight_tying"):
        yield finding(
            "shared-weights",
            names,
            "The config sets ensure_weight_tying, which adapts layers that share a weight.",
        )


def unknown_keys(raw: Mapping[str, Any]) -> list[str]:
    """The keys of a config that neither peft nor a known trainer writes."""
    known = {*DESCRIPTIVE, *VARIANTS, *TRAINERS}
    return [key for key in raw if key not in known]


def _promises(adapter: Adapter) -> Iterator[Issue]:
    """Tensors that the config asks for and the file lacks, and whole weights that it does not."""
    names, raw = (adapter.name,), adapter.config
    for key, kinds in PROMISED.items():
        modules = {extra.module for extra in adapter.extras if extra.kind in kinds}
        every = key in FLAGS.values()
        lost = [path for path in adapter.layout if path not in modules] if every else []
        if raw.get(key) and (lost or not modules):
            where = f" for {count(len(lost), 'module')}, {lost[0]} first" if lost else ""
            yield finding(
                "missing-tensors",
                names,
                f"The config sets {key}, but the file has no tensors for it{where}.",
                lost[0] if lost else None,
            )
    if loose := unnamed_modules(adapter):
        yield finding(
            "shared-weights",
            names,
            f"The file holds {loose[0]}.weight, which modules_to_save does not name: peft writes "
            "it over the base's weight, also where another layer shares that; here one layer "
            "changes.",
            loose[0],
        )


def unnamed_modules(adapter: Adapter) -> list[str]:
    """The modules that the file holds whole and modules_to_save does not name."""
    saved = adapter.config.get("modules_to_save")
    asked = (saved,) if isinstance(saved, str) else tuple(map(str, saved or ()))
    whole = [name.removesuffix(".weight") for name in adapter.whole if name.endswith(".weight")]
    # peft compares the ends of names as they are: "norm" names input_layernorm too.
    return [path for path in whole if not path.endswith(asked)]


def _targets(adapter: Adapter) -> Iterator[Issue]:
    """Targets without weights, and weights without targets."""
    names, targets = (adapter.name,), adapter.config.get("target_modules")
    holding = [*adapter.layout, *(extra.module for extra in adapter.extras if extra.module)]
    # A regular expression, "all-linear" or nothing does not list the modules.
    listed = set(map(str, targets)) if holding and isinstance(targets, (list, tuple)) else set()
    if lost := sorted(listed.difference(*map(endings, holding))):
        yield finding(
            "targets-without-weights",
            names,
            f"The config targets {listing(lost[:4])}{' and more' if lost[4:] else ''}, for which "
            "the file holds no weights: where the base has such modules they stay untouched.",
        )
    if adapter.unstacked and not targets:
        yield finding(
            "weights-untargeted",
            names,
            "The config has no target_modules: peft takes those of its own table for some "
            "architectures, and refuses the file for others; a merge or a router would apply all "
            "weights.",
            severity="error",
            cure="Set target_modules in adapter_config.json to the modules that were trained.",
        )
        return
    try:
        beyond = untargeted_paths(adapter.unstacked, adapter.config)
    except PatternError as error:
        yield finding(
            "targets-unreadable",
            names,
            f"The config's targets cannot be read as peft reads them: {error}.",
        )
        return
    if beyond:
        yield finding(
            "weights-untargeted",
            names,
            f"The file holds weights for {count(len(beyond), 'module')} that the config does not "
            f"target or excludes, {beyond[0]} first: peft leaves them out, and a merge or a router "
            "would apply them.",
            beyond[0],
        )


def untargeted_paths(paths: Collection[str], config: Mapping[str, Any]) -> list[str]:
    """The paths (modules with weights) that the config does not target, by peft's rules.

    target_modules is a list of endings, a regular expression for the whole path, or the word
    "all-linear", which stands for full paths. exclude_modules and modules_to_save remove paths.
    layers_to_transform keeps the layers with these numbers; it does not apply to a full path in
    target_modules. Without target_modules peft takes endings from a table of architectures. Raises
    PatternError for an expression that `re` cannot match.
    """
    targets, paths = config.get("target_modules"), list(paths)
    saved = [str(name) for name in config.get("modules_to_save") or ()]
    out = _fitting(paths, config.get("exclude_modules")) | _matching(saved, SAVED, paths)
    if not isinstance(targets, (list, tuple, str)) or not targets:
        selected = _in_layers(paths, config)
    elif isinstance(targets, str):
        selected = set(paths) if targets.lower() == "all-linear" else _fitting(paths, targets)
    else:
        selected = _fitting(paths, targets) & (_in_layers(paths, config) | set(map(str, targets)))
    beyond = [path for path in paths if path in out or path not in selected]
    if config.get("ensure_weight_tying"):  # peft then adds the layer that shares its weight
        beyond = [path for path in beyond if path.rpartition(".")[2] not in VOCABULARY]
    return beyond


def endings(path: str) -> Iterator[str]:
    """A path and its ends after each dot, by which a config names it."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def _fitting(paths: Sequence[str], rule: Any) -> set[str]:
    """The paths that match a list of names or a regular expression."""
    if isinstance(rule, str) and rule:
        return _matching([rule], "{}", paths, whole=True)
    names = frozenset(map(str, rule if isinstance(rule, (list, tuple)) else ()))
    return {path for path in paths if not names.isdisjoint(endings(path))}


def _matching(
    expressions: Sequence[str], form: str, paths: Sequence[str], *, whole: bool = False
) -> set[str]:
    matches = first_matches(expressions, form, paths, whole=whole)
    return {path for path, match in zip(paths, matches, strict=True) if match}


def _in_layers(paths: Sequence[str], config: Mapping[str, Any]) -> set[str]:
    """The paths whose layer number is in layers_to_transform; all paths without that key."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return set(paths)
    wanted = frozenset(layers if isinstance(layers, (list, tuple)) else [layers])
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    matches = first_matches(patterns or [""], LAYER if patterns else ANY_LAYER, paths)
    numbers = [None if match is None else number_in(match[1] or "") for match in matches]
    return {p for p, n in zip(paths, numbers, strict=True) if n is not None and n in wanted}
