"""Merged and routed directories that were changed after loraprobe wrote them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import tampering as t

from adversarial import case, outcome

NOT = "not verified"


def _verified(out: Path) -> str:
    """The result of `verify`: `verified`, or `not verified` for exit codes 1, 2 and 3."""
    told = outcome("verify", out)
    return {"exit 0": "verified", "exit 1": NOT, "exit 2": NOT, "exit 3": NOT}.get(told, told)


def _after(tamper: t.Tampering, command: str = "merge", dtype: str = "float32") -> Callable:
    def act(place: Path) -> str:
        t.made(place, command, dtype)
        tamper(place)
        return _verified(place / "out")

    return act


def _config(key: str, value: object) -> t.Tampering:
    return t.document(lambda held: held.update({key: value}))


SINGLE: dict[str, tuple[str, Callable]] = {
    "a-weight-of-the-base-added": (
        "a merge with a `base_layer.weight`, which peft writes over the base's",
        _after(t.weights(t.OF_WEIGHTS["a weight of the base added"])),
    ),
    "initialisation-changed-to-pissa": (
        "`init_lora_weights: pissa_niter_4`, which changes the base on loading",
        _after(_config("init_lora_weights", "pissa_niter_4")),
    ),
    "initialisation-changed-to-olora": (
        "`init_lora_weights: olora`",
        _after(_config("init_lora_weights", "olora")),
    ),
    "base-renamed": (
        "another `base_model_name_or_path`",
        _after(_config("base_model_name_or_path", "other/base")),
    ),
    "revision-changed": ("another `revision`", _after(_config("revision", "v0"))),
    "task-type-changed": ("another `task_type`", _after(_config("task_type", "SEQ_CLS"))),
    "auto-mapping-changed": (
        "another `auto_mapping`",
        _after(_config("auto_mapping", {"base_model_class": "X", "parent_library": "x"})),
    ),
    "four-spacings-in-bfloat16": (
        "a factor in bfloat16 times 1 + 4 eps, 0.031 of the module's norm",
        _after(t.weights(t.scaled("lora_B", 1 + 2.0**-5)), dtype="bfloat16"),
    ),
    "code-beside-a-merge": (
        "`modeling.py` beside the adapter",
        _after(t.written("out/modeling.py")),
    ),
    "licence-changed-in-the-card": (
        "`license: mit` put into the card's front matter",
        _after(t.card(lambda matter: matter.update(license="mit"))),
    ),
    "expert-changed-with-its-hash": (
        "an expert of a composition and the hash that lists it",
        _after(dict(t.of_compositions())["expert, listed: every B with its sign turned"], "route"),
    ),
}
for _name, (_what, _act) in SINGLE.items():
    # The first version knew no compositions: it found nothing to verify in them.
    _before = "not verified, nor is what nobody touched" if "expert" in _name else "verified"
    case(_name, _what, before=_before, now=NOT)(_act)


def _all(command: str, tamperings: dict[str, t.Tampering], dtype: str) -> Callable[[Path], str]:
    """How many of the changed directories are not verified, once the untouched one is."""

    def act(place: Path) -> str:
        t.made(place / "made", command, dtype)
        found = {"untouched": _verified(place / "made" / "out")}
        for name, tamper in tamperings.items():
            tree = place / "tree"
            shutil.copytree(place / "made", tree, symlinks=True)
            tamper(tree)
            found[name] = _verified(tree / "out")
            shutil.rmtree(tree)
        caught = sum(told == NOT for name, told in found.items() if name != "untouched")
        return f"untouched {found['untouched']}; {caught} of {len(tamperings)} not verified"

    return act


NOTHING = "no composition is verified, touched or not"
for _command, _tamperings, _figures in (
    ("merge", dict(t.of_merges()), {"float32": 62, "bfloat16": 60, "float16": 62}),
    ("route", dict(t.of_compositions()), {"float32": 0, "bfloat16": 0, "float16": 0}),
):
    for _dtype, _caught in _figures.items():
        _count = len(_tamperings)
        _seen = f"untouched verified; {_caught} of {_count} not verified" if _caught else NOTHING
        case(
            f"{_command}-tampered-with-{_dtype}",
            f"{_count} ways to change what `{_command}` wrote in {_dtype}",
            before=_seen,
            now=f"untouched verified; {_count} of {_count} not verified",
            slow=True,
        )(_all(_command, _tamperings, _dtype))
