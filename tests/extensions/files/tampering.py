"""Directories of merges and compositions, and ways to change one so that it is no longer theirs.

`made` writes two sources, `a` and `b`, and what loraprobe makes of them, `out`. A tampering
changes one thing in that folder; none of the changed directories may be verified.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import making
import torch
import yaml
from making import random_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraprobe.extensions.files.verifying import TOLERANCES

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 16),
    "model.layers.1.self_attn.q_proj": (12, 16),
    "model.layers.1.mlp.down_proj": (16, 24),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Tampering = Callable[[Path], Any]


def made(place: Path, command: str = "merge", dtype: str = "float32", *options: str) -> Path:
    """Sources `a` and `b` of a dtype and `out`, written by the command line.

    A merge has unequal weights unless options are given, so that exchanged sources show.
    """
    if command == "merge" and not options:
        options = ("--method", "task_arithmetic", "--weights", "0.7,0.4")
    for seed, name in enumerate("ab", 1):
        random_adapter(name, SHAPES, seed=seed, scaling=0.1, dtype=DTYPES[dtype]).save(place / name)
    call = [command, str(place / "a"), str(place / "b"), "-o", str(place / "out"), *options]
    done = making.call(*call)
    assert done.exit_code == 0, done.output
    return place


def weights(change: Callable[[dict[str, Tensor]], Any], file: str = f"out/{WEIGHTS}") -> Tampering:
    """A tampering with the tensors of a file."""

    def tamper(place: Path) -> None:
        tensors = load_file(str(place / file))
        changed = change(tensors) or tensors
        save_file(
            {k: t.contiguous().clone() for k, t in changed.items()},
            str(place / file),
            metadata={"format": "pt"},
        )

    return tamper


def document(change: Callable[[dict[str, Any]], None], file: str = f"out/{CONFIG}") -> Tampering:
    """A tampering with a JSON document."""

    def tamper(place: Path) -> None:
        held = json.loads((place / file).read_text())
        change(held)
        (place / file).write_text(json.dumps(held))

    return tamper


def card(change: Callable[[dict[str, Any]], None]) -> Tampering:
    """A tampering with the front matter of the card."""

    def tamper(place: Path) -> None:
        _, front, body = (place / "out" / CARD).read_text().split("---\n", 2)
        matter = yaml.safe_load(front)
        change(matter)
        (place / "out" / CARD).write_text(f"---\n{yaml.safe_dump(matter)}---\n{body}")

    return tamper


def written(file: str, content: str | bytes = "{}") -> Tampering:
    """A tampering by a file of this content."""

    def tamper(place: Path) -> None:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return tamper


def linked(file: str) -> Tampering:
    """A tampering that moves a file out and leaves a link to it."""

    def tamper(place: Path) -> None:
        outside = place.parent / f"{place.name}-outside"
        os.replace(place / file, outside)
        (place / file).symlink_to(outside)

    return tamper


def removed(file: str) -> Tampering:
    return lambda place: (place / file).unlink()


def _key(tensors: dict[str, Tensor], part: str, number: int = 0) -> str:
    return [key for key in sorted(tensors) if part in key][number]


def scaled(part: str, by: float, all_of_them: bool = False) -> Callable[[dict[str, Tensor]], Any]:
    """One factor times a number; in float64 and rounded again. 0: three tolerances above 1."""

    def change(tensors: dict[str, Tensor]) -> None:
        keys = [key for key in sorted(tensors) if part in key]
        for key in keys if all_of_them else keys[:1]:
            old = tensors[key]
            factor = by or 1 + 3 * TOLERANCES[old.dtype]
            tensors[key] = (old.double() * factor).to(old.dtype)
            assert not torch.equal(tensors[key], old)

    return change


def entry(part: str, value: Callable[[Tensor], Any]) -> Callable[[dict[str, Tensor]], Any]:
    """The largest entry of a factor replaced."""

    def change(tensors: dict[str, Tensor]) -> None:
        flat = tensors[_key(tensors, part)].view(-1)
        where = flat.abs().argmax()
        flat[where] = value(flat[where])

    return change


def swapped(tensors: dict[str, Tensor]) -> None:
    one, other = _key(tensors, "q_proj.lora_B"), _key(tensors, "q_proj.lora_B", 1)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def permuted(tensors: dict[str, Tensor]) -> None:
    key = _key(tensors, "lora_A")
    tensors[key] = tensors[key].roll(1, 1)


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def added(key: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors | {f"base_model.model.{key}": torch.ones(shape)}


def dropped(part: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {key: t for key, t in tensors.items() if part not in key}


def lopsided(tensors: dict[str, Tensor]) -> None:
    """The same product from factors of which one overflows and one vanishes in a half float."""
    tensors[_key(tensors, "lora_A")] *= 2.0**8
    tensors[_key(tensors, "lora_B")] *= 2.0**-8


def padded(tensors: dict[str, Tensor]) -> None:
    A, B = _key(tensors, "lora_A"), _key(tensors, "lora_B")
    tensors[A] = torch.cat([tensors[A], tensors[A][:1]])
    tensors[B] = torch.cat([tensors[B], 0 * tensors[B][:, :1]], 1)


def cast(tensors: dict[str, Tensor]) -> Any:
    wide = torch.float64 if next(iter(tensors.values())).dtype == torch.float32 else torch.float32
    return {key: tensor.to(wide) for key, tensor in tensors.items()}


def one_cast(tensors: dict[str, Tensor]) -> None:
    key = _key(tensors, "lora_A")
    tensors[key] = tensors[key].to(torch.float64)


Q = "model.layers.0.self_attn.q_proj"
OF_WEIGHTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "A scaled by three tolerances": scaled("lora_A", 0),
    "B scaled by three tolerances": scaled("lora_B", 0),
    "every B scaled by three tolerances": scaled("lora_B", 0, True),
    "A scaled by 1.01": scaled("lora_A", 1.01),
    "A with its sign turned": scaled("lora_A", -1.0),
    "every B with its sign turned": scaled("lora_B", -1.0, True),
    "one entry doubled in A": entry("lora_A", lambda x: 2 * x),
    "one entry of B with its sign turned": entry("lora_B", lambda x: -x),
    "one entry not a number": entry("lora_B", lambda x: float("nan")),
    "one entry infinite": entry("lora_A", lambda x: float("inf")),
    "two modules exchanged": swapped,
    "columns of A moved on": permuted,
    "a module renamed": renamed("q_proj", "r_proj"),
    "prefixes lost": renamed("base_model.model.", ""),
    "a factor lost": dropped(f"{Q}.lora_A"),
    "a module lost": dropped(Q),
    "a weight of the base added": added(f"{Q}.base_layer.weight", 12, 16),
    "a bias of the base added": added(f"{Q}.base_layer.bias", 12),
    "a bias of B added": added(f"{Q}.lora_B.bias", 12),
    "a magnitude added": added(f"{Q}.lora_magnitude_vector", 12),
    "a head added": added("lm_head.weight", 4, 16),
    "a module added": lambda t: added("x.q_proj.lora_B.weight", 4, 2)(
        added("x.q_proj.lora_A.weight", 2, 4)(t)
    ),
    "a rank of zeros added": padded,
    "lopsided factors": lopsided,
    "another dtype": cast,
    "one factor of another dtype": one_cast,
}

CHANGED: dict[str, list[Any]] = {  # what each field of a merge's config is changed to
    "base_model_name_or_path": ["other/base", None],
    "revision": ["main"],
    "task_type": ["SEQ_CLS"],
    "auto_mapping": [{"base_model_class": "X", "parent_library": "x"}],
    "peft_type": ["IA3"],
    "inference_mode": [False],
    "r": [4, 8.0, "8"],
    "lora_alpha": [16, True],
    "lora_dropout": [0.5],
    "modules_to_save": [["lm_head"]],
    "bias": ["all"],
    "lora_bias": [True],
    "use_rslora": [True],
    "use_dora": [True],
    "fan_in_fan_out": [True],
    "target_modules": [["q_proj"], "all-linear"],
    "init_lora_weights": ["pissa_niter_4", "olora", "loftq", "eva", False],
    "rank_pattern": [{"q_proj": 4}],
    "alpha_pattern": [{".*": 16}],
}
ADDED = {
    "use_qalora": True,
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [1],
    "exclude_modules": ["q_proj"],
    "of_the_future": 1,
}


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update({key: value})


def _pop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.pop(key) and None


def _edited(file: str, change: Callable[[bytes], bytes]) -> Tampering:
    """A tampering with the bytes of a file."""
    return lambda place: (place / file).write_bytes(change((place / file).read_bytes()))


def _metadata(place: Path) -> None:
    file = str(place / "out" / WEIGHTS)
    save_file(load_file(file), file, metadata={"format": "pt", "note": "made by somebody else"})


def of_merges() -> dict[str, Tampering]:
    """Every tampering with a merge, by its name."""
    keys = ("r", "lora_alpha", "init_lora_weights", "target_modules", "revision")
    choices = {"method": "sum", "weights": [0.5, 0.6], "rank": 2}
    choices |= {"dtype": "float64", "space": "full:x", "name": "x"}
    return {
        **{name: weights(change) for name, change in OF_WEIGHTS.items()},
        "a header with other texts": _metadata,
        "a file cut short": _edited(f"out/{WEIGHTS}", lambda data: data[:-64]),
        "the weights of a source": lambda place: shutil.copy(
            place / "a" / WEIGHTS, place / "out" / WEIGHTS
        ),
        **{
            f"config: {key} {value!r:.20}": document(_set(key, value))
            for key, values in CHANGED.items()
            for value in values
        },
        **{f"config: no {key}": document(_pop(key)) for key in keys},
        **{f"config: {key} added": document(_set(key, value)) for key, value in ADDED.items()},
        "config: a key twice": _edited(
            f"out/{CONFIG}", lambda data: data.replace(b"{", b'{"r": 1,', 1)
        ),
        "config: no JSON": written(f"out/{CONFIG}", "{"),
        "config: a list": written(f"out/{CONFIG}", "[]"),
        **_of_cards(choices),
        **_of_files(CONFIG, WEIGHTS),
    }


OF_EXPERTS = (
    "A scaled by three tolerances",
    "every B with its sign turned",
    "one entry doubled in A",
    "a weight of the base added",
    "another dtype",
    "two modules exchanged",
)
EXPERT_CONFIG = {
    "lora_alpha": 64,
    "init_lora_weights": "olora",
    "use_rslora": True,
    "base_model_name_or_path": "other/base",
}
OF_EXPERT = {"name": "c", "folder": "b", "reference": "owner/good", "commit": "0" * 40}
OF_EXPERT |= {"sha256": "0" * 64, "copied": False, "transformation": {}}
OPTIONS = {"top_k": 1, "temperature": 0.5, "normalize": True, "per": "sequence", "share": "layer"}
OF_LISTING = {"schema_version": 2, "loraprobe": "9", "name": "x", "base": {}, "more": 1}
OF_LISTING |= {"peft": {"why_not": "another reason"}}


def _listing(change: Callable[[dict[str, Any]], Any]) -> Tampering:
    """A tampering with what lists the experts and the router."""
    return document(change, "out/composition.json")


def _with_hash(tamper: Tampering, name: str) -> Tampering:
    """A file of the first expert is changed, and the hash that lists it."""

    def both(place: Path) -> None:
        tamper(place)
        digest = hashlib.sha256((place / "out/experts/a" / name).read_bytes()).hexdigest()
        _listing(lambda held: held["experts"][0]["files"].update({name: digest}))(place)

    return both


def of_compositions() -> dict[str, Tampering]:
    """Every tampering with a composition by Arrow, by its name."""
    expert = "out/experts/a"
    changed = {name: weights(OF_WEIGHTS[name], f"{expert}/{WEIGHTS}") for name in OF_EXPERTS}
    configs = {k: document(_set(k, v), f"{expert}/{CONFIG}") for k, v in EXPERT_CONFIG.items()}
    return {
        **{f"expert: {name}": one for name, one in changed.items()},
        **{f"expert, listed: {name}": _with_hash(one, WEIGHTS) for name, one in changed.items()},
        **{f"expert, listed: config {k}": _with_hash(one, CONFIG) for k, one in configs.items()},
        "experts exchanged": _listing(lambda held: held["experts"].reverse()),
        "one expert twice": _listing(lambda held: held["experts"].append(held["experts"][0])),
        "one expert lost": _listing(lambda held: held["experts"].pop()),
        **{
            f"listing: expert's {key}": _listing(
                lambda held, k=key, v=value: held["experts"][0].update({k: v})
            )
            for key, value in OF_EXPERT.items()
        },
        **{
            f"listing: {option}": _listing(
                lambda held, o=option, v=value: held["router"]["options"].update({o: v})
            )
            for option, value in OPTIONS.items()
        },
        **{f"listing: {key}": _listing(_set(key, value)) for key, value in OF_LISTING.items()},
        "listing: another router": _listing(lambda held: held["router"].update(name="hard")),
        "listing: a state": _listing(lambda held: held["router"].update(state_sha256="0" * 64)),
        "a state added": lambda place: save_file(
            {"centroid.x": torch.ones(2, 2)}, str(place / "out/router.safetensors")
        ),
        "an Arrow for peft added": written("out/peft/arrow.json"),
        **_of_cards(
            {"router": "arrow:top_k=1", "weights": [1.0, 1.0], "name": "x", "method": "sum"}
        ),
        # What a merge calls its sources decides nothing, a composition finds its experts by it.
        "card: a source's name": _source("name", "c"),
        **_of_files("composition.json", f"experts/a/{WEIGHTS}"),
    }


def _source(key: str, value: Any) -> Tampering:
    return card(lambda matter: matter["loraprobe"]["sources"][0].update({key: value}))


def _of_cards(choices: dict[str, Any]) -> dict[str, Tampering]:
    told = choices | {"balance": "norm", "schema_version": 1, "more": 1, "subtract": 3}
    told |= {"base": {"reference": "x", "commit": None, "sha256": None}}
    sources = {"sha256": "0" * 64, "commit": "0" * 40, "reference": "owner/good"}
    matters = {"base_model": "other/base", "license": "mit", "tags": ["lora"]}
    matters |= {"library_name": "x", "pipeline_tag": "x"}
    alias = (b"library_name:", b"x: &x 1\ny: *x\nlibrary_name:")
    return {
        **{
            f"card: {key}": card(lambda matter, k=key, v=value: matter["loraprobe"].update({k: v}))
            for key, value in told.items()
        },
        **{f"card: a source's {key}": _source(key, value) for key, value in sources.items()},
        "card: sources exchanged": card(lambda matter: matter["loraprobe"]["sources"].reverse()),
        **{f"card: {key}": card(_set(key, value)) for key, value in matters.items()},
        **{
            f"card: no {key}": card(_pop(key))
            for key in ("base_model", "tags", "library_name", "loraprobe")
        },
        "card: an alias": _edited(f"out/{CARD}", lambda data: data.replace(*alias)),
        "no card": removed(f"out/{CARD}"),
    }


STRANGE = (
    "adapter_model.bin",
    "adapter_model.safetensors.index.json",
    "tokenizer.json",
    "chat_template.jinja",
    "modeling.py",
    f"other/{CONFIG}",
    f"experts/c/{CONFIG}",
    ".hidden",
)


def _of_files(config: str, weights_file: str) -> dict[str, Tampering]:
    pickle = weights_file.replace("safetensors", "bin")
    return {
        **{f"{name} added": written(f"out/{name}") for name in STRANGE},
        "an empty folder added": lambda place: (place / "out" / "empty").mkdir(),
        "a link added": lambda place: (place / "out" / "x.json").symlink_to("/nowhere"),
        "a linked folder added": lambda place: (place / "out" / "x").symlink_to(place / "a"),
        "config: a link out": linked(f"out/{config}"),
        "weights: a link out": linked(f"out/{weights_file}"),
        "card: a link out": linked(f"out/{CARD}"),
        "no config": removed(f"out/{config}"),
        "no weights": removed(f"out/{weights_file}"),
        "weights as a pickle": lambda place: os.replace(
            place / "out" / weights_file, place / "out" / pickle
        ),
        "a source with other weights": weights(scaled("lora_A", 2.0), f"b/{WEIGHTS}"),
        "a source with another config": document(_set("lora_alpha", 9), f"b/{CONFIG}"),
        "a source lost": removed(f"b/{WEIGHTS}"),
        "a source of another type": document(_set("peft_type", "IA3"), f"b/{CONFIG}"),
    }
