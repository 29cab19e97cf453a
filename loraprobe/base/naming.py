"""The names that a base gives to its modules: of its files, of its classes, of its adapters.

The tensors of a checkpoint get the module paths of the loaded model, from headers alone.

Most checkpoints use the names of the model. A checkpoint saved without its head, such as gpt2's,
lacks the prefix of the body, which a small table gives. Others, mostly multimodal ones, are renamed
while loading; transformers gives their names, with a model on the meta device (without weights).

A base may have two classes, one with vision (or sound) and a text-only one, which name the same
weights differently. `ModuleNames` translates between the names of both, and those of older
versions of transformers; `named_like` gives an adapter the names of one class.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters import Adapter
from loraprobe.adapters.building import with_paths
from loraprobe.adapters.names import root
from loraprobe.base.declared import check_sizes
from loraprobe.base.quiet import quiet
from loraprobe.findings import finding
from loraprobe.untrusted import read_json

# The prefixes that transformers' causal models give to the body under the head.
BODIES = ("model.", "transformer.", "gpt_neox.", "backbone.", "biogpt.", "roberta.", "bert.")
BODY_OF = {"gpt2": "transformer", "bloom": "transformer", "gpt_neox": "gpt_neox", "opt": "model"}
HEADS = ("lm_head", "score", "embed_out")


def names_in_memory(paths: list[str], directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Path in the files -> path in memory, for the paths that differ.

    Where no table tells them, transformers' own renaming while loading does; if a version of
    transformers has other tables, the names stay as stored.
    """
    nested = bool(config.get("text_config"))
    if not nested and (not paths or any(path.startswith(BODIES) for path in paths)):
        return {}
    body = BODY_OF.get(str(config.get("model_type")))
    if body and not nested:
        return {path: f"{body}.{path}" for path in paths if not path.startswith(HEADS)}
    try:
        model = model_without_weights(directory)
        name_of, state = renamer_of(model), model.state_dict()
        renamed = {path: name_of(path) for path in paths}
    except Exception:  # an architecture or a version of transformers that is unknown here
        return {}
    return {path: name for path, name in renamed.items() if f"{name}.weight" in state}


def renamer_of(model: Any) -> Callable[[str], str]:
    """A function from the path of a module to its path in a model, by transformers' own tables.

    The tables translate the names of checkpoints, which are also those of older versions. peft's
    build_peft_weight_mapping applies the same renamings to the keys of adapters.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def name_of(path: str) -> str:
        name, _ = rename_source_key(f"{path}.weight", renamings, [], prefix, state)
        return name.removesuffix(".weight")

    return name_of


class ClassNames:
    """The names of the modules of one class of a base."""

    def __init__(self, model: Any) -> None:
        self.name, self.renamed = type(model).__name__, renamer_of(model)
        paths = {module: path for path, module in model.named_modules()}
        self.roots = {root(path) for path in paths.values()}
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        # What another class may hold under another path; the head may lie inside of the decoder.
        self.parts = {"head": paths[head]} if head is not None else {}
        self.parts[type(decoder).__name__] = paths[decoder]

    def holds(self, path: str) -> bool:
        """Whether the class has a module at this path, or layers that the path may lead into."""
        return root(path) in self.roots

    def moved(self, path: str, to: ClassNames) -> str | None:
        """The path in another class; None for a module outside of the parts that both hold."""
        for part, start in self.parts.items():
            inside = "." + path.removeprefix(start).removeprefix(".")
            if part in to.parts and (path == start or not start or path.startswith(f"{start}.")):
                return f"{to.parts[part]}{inside}".strip(".")
        return None


class ModuleNames:
    """The names that the classes of a base give to the same modules.

    `whole` is the class with vision or sound, or the only class; `text` is the text-only class,
    None where transformers has none. Both hold the same decoder. Raises what transformers raises
    for an architecture that it does not know. config: a config of transformers.
    """

    def __init__(self, config: Any) -> None:
        whole, text = _classes(config)
        self.whole, self.text = ClassNames(whole), None if text is None else ClassNames(text)

    def is_text(self, paths: Iterable[str]) -> bool:
        """Whether paths are those of the text-only class."""
        text, whole = self.text, self.whole
        return text is not None and any(text.holds(p) and not whole.holds(p) for p in paths)

    def name(self, path: str, *, text: bool = False) -> str | None:
        """The path of a module in `whole`, or in `text`, by any of its names; None if unknown."""
        placed = self._placed(path)
        if placed is None or not text:
            return placed
        assert self.text is not None
        return self.whole.moved(placed, self.text)

    def _placed(self, path: str) -> str | None:
        """The path in `whole`, by its names today, then by those of older transformers."""
        for older in (False, True):
            for known in (self.whole, self.text):
                if known is not None:
                    here = known.renamed(path) if older else path
                    if known.holds(here):
                        return here if known is self.whole else known.moved(here, self.whole)
        return None


@functools.lru_cache(maxsize=8)
def module_names(directory: Path) -> ModuleNames | None:
    """The names of a base by its config.json; None if that does not tell them.

    It may be absent, broken, of an unknown architecture, or declare more layers than are built.
    """
    try:
        check_sizes(read_json(directory / "config.json", str(directory)), {}, str(directory))
        return ModuleNames(_config_of(directory))
    except Exception:  # transformers may raise anything
        return None


def _config_of(directory: Path) -> Any:
    from transformers import AutoConfig

    with quiet():
        return AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )


def _classes(config: Any) -> tuple[Any, Any]:
    """The class with vision (or the only one) and the text-only class of a base, on meta."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    )

    with quiet(), torch.device("meta"):
        text_config = config.get_text_config()
        if type(text_config) is type(config):  # a text-only base, whose class with vision may exist
            beside = vars(sys.modules[type(config).__module__]).values()
            kinds = [(c, getattr(c, "sub_configs", None) or {}) for c in beside]
            parents = [c for c, parts in kinds if parts.get("text_config") is type(config)]
            config = parents[0](text_config=config.to_dict()) if parents else config

        def made(*kinds: Any, of: Any) -> Any:
            known = (kind for kind in kinds if type(of) in kind._model_mapping)
            kind = next(known, None)
            return None if kind is None else kind.from_config(of, trust_remote_code=False)

        whole = made(
            AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM, of=config
        )
        text = made(AutoModelForCausalLM, of=text_config) or made(AutoModelForCausalLM, of=config)
    return whole, None if type(text) is type(whole) else text


def model_without_weights(directory: Path) -> Any:
    """The causal language model of a config on the meta device, else its class with vision.

    Raises what transformers raises for an architecture that it does not know.
    """
    from transformers import AutoModelForCausalLM

    config = _config_of(directory)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return _classes(config)[0]
    with quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def named_like(
    paths: Collection[str], adapters: Sequence[Adapter], find: Callable[[], ModuleNames | None]
) -> list[Adapter]:
    """The adapters with the names of the class whose modules have these paths.

    find: gives the names of the base's classes; it is called only where an adapter changes what the
    paths do not hold. An adapter without such a name is returned as it is.
    """
    places = {root(path) for path in paths}
    strange = [a for a in adapters if not all(root(path) in places for path in a.touched)]
    names = find() if strange else None
    if names is None:
        return list(adapters)
    text = names.is_text(paths)
    return [
        with_base_names(adapter, names, text) or adapter if adapter in strange else adapter
        for adapter in adapters
    ]


def with_base_names(
    adapter: Adapter, names: ModuleNames, text: bool, *, whole: bool = False
) -> Adapter | None:
    """The adapter with the names of a base's text-only class or of its class with vision.

    None if two modules would have one name; with `whole` also if the class lacks a module, which
    otherwise keeps its name.
    """
    new = {path: names.name(path, text=text) for path in adapter.touched}
    if whole and None in new.values():
        return None
    changed = {path: name for path, name in new.items() if name and name != path}
    if not changed:
        return adapter

    def path_of(path: str) -> str:
        module, _, what = path.rpartition(".")
        return changed.get(path) or (f"{changed[module]}.{what}" if module in changed else path)

    renamed = with_paths(adapter, path_of)
    if renamed is None:
        return None
    old, name = next(iter(changed.items()))
    kind = names.text if text and names.text else names.whole
    message = (
        f"{adapter.name} names its modules as another class of its base does, such as {root(old)}; "
        f"here they have the names of {kind.name}, {root(name)}."
    )
    note = finding("modules-renamed", (adapter.name,), message, name)
    return replace(renamed, issues=(*adapter.issues, note))
