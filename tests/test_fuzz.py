"""The fuzzer's corpus, replayed: every input that once reached new code still ends well."""

import importlib.util
from pathlib import Path

import pytest
from making import skip_without

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
    if name == "card":
        skip_without("verify")  # which reads them
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
