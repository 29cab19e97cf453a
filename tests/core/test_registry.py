"""The registry of a folder: members, families, names, options."""

import sys
from pathlib import Path

import pytest

from loraprobe.diagnostics import DIAGNOSTICS
from loraprobe.errors import UsageError
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
        with pytest.raises(TypeError):
            Registry(animals.package, animals.base, "animal").names()


@pytest.mark.parametrize("registry", ALL, ids=lambda r: r.noun)
def test_every_member_is_built_from_its_name_and_from_its_spec(registry: Registry) -> None:
    assert registry.names()
    for name in registry.names():
        made = registry.make(name)
        assert name_of(made) == name and made.formula and made.paper
        assert made.__doc__.splitlines()[0].endswith(".")  # what listings show
        if name != "constant":  # its weights are given by --weights
            assert registry.make(spec_of(made)) == made
