"""The fuzzer's corpus, replayed: every input that once reached new code still ends well."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
CORPUS = {place.name: sorted(place.iterdir()) for place in sorted((FUZZ / "corpus").iterdir())}


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("fuzz_targets", FUZZ / "targets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_ends_well(targets, name):
    assert set(CORPUS) == set(targets.TARGETS) and len(CORPUS[name]) > 10
    for file in CORPUS[name]:
        targets.TARGETS[name](file.read_bytes())


def test_a_target_finds_what_it_should(targets, monkeypatch):
    """Each oracle fails where the code under it does wrong."""
    sound = (FUZZ / "corpus" / "adapter" / "missing-alpha").read_bytes()
    read = targets.read_adapter
    targets.adapter(sound)

    def forgetful(place):
        from dataclasses import replace

        adapter = read(place)
        infos = dict(list(adapter.modules.infos.items())[1:])
        return replace(adapter, modules=type(adapter.modules)(infos, adapter.modules.__getitem__))

    monkeypatch.setattr(targets, "read_adapter", forgetful)
    with pytest.raises(AssertionError, match="not accounted for"):
        targets.adapter(sound)


@pytest.mark.parametrize(
    ("name", "called", "data"),
    [
        ("adapter", "read_adapter", struct.pack("<BH", 0, 2) + b"{}"),
        ("tokenizer", "tokenizer_size", b"\0{}"),
        ("card", "declared_licence", b""),
        ("card", "read_provenance", b""),
        ("composition", "load_composition", b"{}"),
    ],
)
def test_a_mistake_of_our_own_is_a_finding(targets, monkeypatch, name, called, data):
    def careless(*_):
        raise ValueError("a mistake of our own")

    targets.TARGETS[name](data)
    monkeypatch.setattr(targets, called, careless)
    with pytest.raises(ValueError, match="our own"):
        targets.TARGETS[name](data)
