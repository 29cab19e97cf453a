"""The registry of a folder: members, families, names, options."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from making import dense, random_adapter

from loraprobe import merging, wiring
from loraprobe.cli import methods
from loraprobe.diagnostics import DIAGNOSTICS
from loraprobe.errors import UsageError
from loraprobe.extension import Extension
from loraprobe.merging import METHODS
from loraprobe.probes import PROBES
from loraprobe.registry import Registry, name_of, spec_of
from loraprobe.routing import ROUTERS

ALL = [METHODS, ROUTERS, DIAGNOSTICS, PROBES]

BASE = """
from dataclasses import dataclass
class Animal: ...
"""
FAMILY = """
from dataclasses import dataclass
from typing import Literal
from {package}._base import Animal

@dataclass(frozen=True)
class _Feline(Animal):
    legs: int = 4

@dataclass(frozen=True)
class Cat(_Feline):
    colour: Literal["black", "white"] = "black"
    lambda_: float = 1.0
    age: int | None = None

@dataclass(frozen=True)
class SnowLeopard(_Feline):
    def __post_init__(self):
        if self.legs < 0:
            raise ValueError("legs cannot be negative")
"""
LONE = """
from dataclasses import dataclass
from {package}._base import Animal
from {package}.felines import Cat

@dataclass(frozen=True)
class OWL(Animal):
    registry_name = "night_bird"
"""


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A folder with a family of two and a file of one, which imports from the family."""
    package = f"animals_{tmp_path.name.replace('-', '_')}"
    home = tmp_path / package
    home.mkdir()
    for name, text in {"__init__": "", "_base": BASE, "felines": FAMILY, "owl": LONE}.items():
        (home / f"{name}.py").write_text(text.format(package=package))
    monkeypatch.syspath_prepend(str(tmp_path))
    base = __import__(f"{package}._base", fromlist=["Animal"]).Animal
    return Registry(package, base, "animal")


def test_every_public_class_of_every_file_is_a_member_once(animals: Registry) -> None:
    assert animals.names() == ["cat", "night_bird", "snow_leopard"]
    assert [name_of(cls) for cls in animals] == animals.names()
    assert animals.get("snow_leopard").__name__ == "SnowLeopard"


def test_options_come_from_the_fields(animals: Registry) -> None:
    cat = animals.make("cat: legs=3, colour=white, lambda=0.5, age=none")
    assert (cat.legs, cat.colour, cat.lambda_, cat.age) == (3, "white", 0.5, None)
    assert animals.make(cat) is cat
    assert animals.make(spec_of(cat)) == cat
    assert spec_of(animals.make("night-bird")) == "night_bird"


@pytest.mark.parametrize(
    "spec",
    ["dog", "cat:wings=2", "cat:legs", "cat:legs=two", "cat:colour=red", "snow_leopard:legs=-1"],
)
def test_invalid_values_are_usage_errors(animals: Registry, spec: str) -> None:
    with pytest.raises(UsageError):
        animals.make(spec)


def test_a_file_without_a_member_and_two_of_one_name_are_mistakes(animals: Registry) -> None:
    home = Path(sys.modules[animals.package].__file__ or "").parent
    for text in ("x = 1", FAMILY.format(package=animals.package)):
        (home / "more.py").write_text(text)
        sys.modules.pop(f"{animals.package}.more", None)
        with pytest.raises((TypeError, UsageError), match=r"defines no Animal|have the animal cat"):
            Registry(animals.package, animals.base, "animal").names()


def test_an_extension_adds_members_by_the_noun(animals: Registry, tmp_path, monkeypatch) -> None:
    """Modules of another noun are not imported; a name that is taken names both modules."""
    own = f"theirs_{tmp_path.name.replace('-', '_')}"
    text = FAMILY.format(package=animals.package).replace("SnowLeopard", "Lynx")
    (tmp_path / f"{own}.py").write_text(text)
    several = text.replace("class Cat", "class Ocelot")
    (tmp_path / f"{own}_more.py").write_text(several)
    modules = {"animal": (f"{own}_more",), "plant": ("nowhere",)}
    monkeypatch.setattr(wiring, "extensions", lambda: (SimpleNamespace(members=modules),))
    registry = Registry(animals.package, animals.base, "animal")
    assert registry.names() == ["cat", "lynx", "night_bird", "ocelot", "snow_leopard"]
    assert registry.make("lynx:legs=3").legs == 3
    modules["animal"] = (own,)
    with pytest.raises(UsageError, match=rf"felines and {own} both have the animal cat"):
        Registry(animals.package, animals.base, "animal").names()


STRANGER = """
from dataclasses import dataclass
from loraprobe.extension import Extension
from loraprobe.merging import LinearMethod

@dataclass(frozen=True)
class Thirds(LinearMethod):
    \"\"\"A third of each.\"\"\"

    takes_weights = False
    formula = "dW = sum_i dW_i / 3"
    paper = "none"

    def default_weights(self, n):
        return (1 / 3,) * n
"""


def test_a_method_of_a_stranger_is_merged_by_and_listed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "thirds_of_a_stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    added = type("Added", (Extension,), {"members": {"merge method": ["thirds_of_a_stranger"]}})()
    both = (*wiring.extensions(), added)
    for module in (wiring, methods):
        monkeypatch.setattr(module, "extensions", lambda: both)
    known = Registry(METHODS.package, METHODS.base, METHODS.noun)
    assert {*known.names()} == {*METHODS.names(), "thirds"}
    monkeypatch.setattr(merging, "METHODS", known)
    rows = {row["name"]: row for row in methods.described()}
    assert rows["thirds"]["kind"] == "merge method" and len(rows) > len(known.names())
    one, other = (random_adapter(name, seed=n) for n, name in enumerate("ab"))
    made = merging.merge([one, other], merging.MergeConfig(known.make("thirds"))).adapter
    path = next(iter(one.modules))
    torch.testing.assert_close(
        dense(made.modules[path]), (dense(one.modules[path]) + dense(other.modules[path])) / 3
    )


@pytest.mark.parametrize("registry", ALL, ids=lambda r: r.noun)
def test_every_member_is_built_from_its_name_and_from_its_spec(registry: Registry) -> None:
    assert registry.names()
    for name in registry.names():
        made = registry.make(name)
        assert name_of(made) == name and made.formula and made.paper
        assert made.__doc__.splitlines()[0].endswith(".")  # what listings show
        if name != "constant":  # its weights are given by --weights
            assert registry.make(spec_of(made)) == made
