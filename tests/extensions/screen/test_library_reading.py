"""A library is read once, and whatever is wrong with an adapter is named and ends nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from making import edit, random_adapter, regauged, write_adapter
from safetensors.torch import load_file, save_file
from shelves import DOMAINS

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.cache import cache_directory
from loraprobe.extensions.screen import reading
from loraprobe.extensions.screen.comparing import compare_members, mark_unfit
from loraprobe.extensions.screen.reading import read_library

WEIGHTS = "adapter_model.safetensors"
SHAPES = {f"model.layers.{i}.self_attn.q_proj": (16, 16) for i in range(2)}


def small(name: str, seed: int, **options) -> Adapter:
    return random_adapter(name, SHAPES, 2, seed=seed, **options)


def changed(name: str, adapter: Adapter, change) -> Adapter:
    modules = {path: change(update) for path, update in adapter.modules.items()}
    return adapter_of(name, modules, base_model=adapter.base_model)


@pytest.fixture
def library(tmp_path) -> Path:
    """Adapters of every kind that a library may hold."""
    home = tmp_path / "my adapters"
    good = [small(f"good-{seed}", seed) for seed in range(3)]
    for adapter in good:
        adapter.save(home / adapter.name)
    shutil.copytree(home / "good-0", home / "same-file")
    changed("rebased", good[0], regauged).save(home / "rebased")
    changed("cast", good[1], lambda u: u.to(torch.bfloat16)).save(home / "cast")
    changed("scaled", good[2], lambda u: u.scaled(2)).save(home / "scaled")
    changed("empty", good[0], lambda u: u.scaled(0)).save(home / "zero")
    small("nan", 7).save(home / "nan")
    tensors = load_file(home / "nan" / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, home / "nan" / WEIGHTS)
    shutil.copytree(home / "good-1", home / "cut")
    (home / "cut" / WEIGHTS).write_bytes((home / "good-1" / WEIGHTS).read_bytes()[:-9])
    write_adapter(home / "ia3", {"x": torch.ones(1)}, peft_type="IA3")
    write_adapter(home / "loha", {"x": torch.ones(1)}, peft_type="LOHA")
    (home / "nothing").mkdir()
    small("other", 8, base_model="other/model").save(home / "other")
    wide = dict.fromkeys(SHAPES, (16, 24))
    random_adapter("wide", wide, 2, seed=9).save(home / "wide")
    return home


STATES = dict.fromkeys(("good-0", "good-1", "good-2"), ("usable", None))
STATES |= dict.fromkeys(("cast", "rebased", "same-file"), ("duplicate", "duplicate"))
STATES |= {"cut": ("broken", "adapter"), "nothing": ("broken", "adapter")}
STATES |= {"nan": ("broken", "not-finite"), "zero": ("broken", "no-effect")}
STATES |= {"other": ("unfit", "base-mismatch"), "wide": ("unfit", "shapes-differ")}
STATES |= dict.fromkeys(("ia3", "loha"), ("broken", "unsupported-adapter"))
STATES |= {"scaled": ("usable", "scaled-copy")}


def read(home: Path, *more: str | Adapter, **options):
    references = [str(home / name) for name in STATES]
    return compare_members(mark_unfit(read_library([*references, *more], **options)))


def test_every_adapter_is_named_with_its_state_and_its_cure(library):
    found = read(library, str(library / "nowhere"), "no reference", f"mine={library / 'good-0'}")
    rows = {row.name: row for row in found.library.adapters}
    assert list(rows) == [*STATES, "nowhere", "no reference", "mine"]
    for name, (state, code) in STATES.items():
        assert rows[name].state == state, name
        issues = {issue.code: issue for issue in rows[name].issues}
        assert code is None or issues[code].cure, name
        if state == "usable":
            assert not [i for i in issues.values() if i.severity == "error"]
    assert rows["nowhere"].state == rows["no reference"].state == "broken"
    assert rows["nowhere"].issues[0].code == "reference" and rows["nowhere"].sha256 == ""
    copies = {name: row.same_as for name, row in rows.items() if row.same_as}
    of_good_0 = dict.fromkeys(("mine", "rebased", "same-file"), "good-0")
    assert copies == of_good_0 | {"cast": "good-1", "scaled": "good-2"}
    assert "2 times" in rows["scaled"].issues[-1].message
    assert found.compared == [row.name for row in rows.values() if row.state == "usable"]
    assert rows["good-1"].norm == pytest.approx(small("x", 1).norm())
    assert rows["scaled"].norm == pytest.approx(2 * rows["good-2"].norm)


def test_nothing_private_is_told(library):
    names = [*map(str, library.iterdir()), f"lost={library / 'none'}"]
    text = str([member.record for member in mark_unfit(read_library(names))])
    assert "adapters/" not in text and str(library.parent) not in text and "adapter_model" in text


def test_a_second_run_reads_no_tensor(library, monkeypatch):
    first = read(library)
    monkeypatch.delattr(reading, "gram_matrices")
    again = read(library)
    assert again.library == first.library and np.array_equal(again.cosines, first.cosines)


def test_a_changed_config_is_read_anew(library):
    before = {m.record.name: m.record for m in read_library([str(library / "good-0")])}
    config = library / "good-0" / "adapter_config.json"
    edit(config, lora_alpha=4 * json.loads(config.read_text())["lora_alpha"])
    (after,) = read_library([str(library / "good-0")])
    assert after.record.norm == pytest.approx(4 * before["good-0"].norm)
    assert after.record.sha256 == before["good-0"].sha256


TYPES = {"norm": 1.0, "not_finite": [], "without_effect": [], "largest": [1.0, "a"]}
TYPES |= {"numbers": None, "error": 0.0}
WRONG = {"norm": "1", "not_finite": [3], "without_effect": "a", "largest": [1.0, 2], "error": None}


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[]", b'{"norm": 1', b"\xff", b'{"numbers": 3}']
    + [json.dumps(TYPES | {key: value}).encode() for key, value in WRONG.items()],
)
def test_a_damaged_stored_reading_is_read_again(library, damage):
    (first,) = read_library([str(library / "good-0")])
    (stored,) = (cache_directory() / "library").iterdir()
    stored.write_bytes(damage)
    (again,) = read_library([str(library / "good-0")])
    assert again.record == first.record
    assert np.array_equal(again.reading.numbers, first.reading.numbers)
    assert stored.read_bytes() != damage


def test_a_cache_that_cannot_be_written_is_no_error(library, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAPROBE_CACHE", str(tmp_path / "file"))
    (found,) = read_library([str(library / "good-0")])
    assert found.usable


def test_an_interrupted_run_goes_on_where_it_was(library, monkeypatch):
    real, turns = reading.gram_matrices, iter([1, 1])

    def until(modules, **options):
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return real(modules, **options)

    names = [str(library / f"good-{n}") for n in range(3)]
    monkeypatch.setattr(reading, "gram_matrices", until)
    with pytest.raises(KeyboardInterrupt):
        read_library(names)
    turns = iter([1])  # one more may be read
    assert all(member.usable for member in read_library(names))


def test_an_issue_may_be_accepted_by_name(library):
    member = read_library([str(library / "nan")], allow=["not-finite"])[0]
    assert member.record.state == "usable" and member.record.norm is None
    both = [str(library / "good-0"), str(library / "good-1"), str(library / "other")]
    made = mark_unfit(read_library(both), allow=["base-mismatch"])
    assert [member.record.state for member in made] == ["usable"] * 3


def test_adapters_in_memory_are_members_too():
    found = compare_members(read_library([small("a", 1), small("b", 2), small("a", 1)]))
    assert [row.name for row in found.library.adapters] == ["a", "b", "a-2"]
    assert [row.state for row in found.library.adapters] == ["usable", "usable", "duplicate"]
    assert found.usable[0].open().modules.keys() == SHAPES.keys()


def test_adapters_with_more_than_deltas_are_copies_only_as_files(library, tmp_path):
    paths = [str(tmp_path / name) for name in ("one", "other")]
    for size, place in enumerate(paths, 1):
        adapter = small("a", 1)
        sizes = {path: torch.full((16,), float(size)) for path in SHAPES}
        adapter_of("a", dict(adapter.modules), magnitudes=sizes).save(Path(place))
    shutil.copytree(paths[0], tmp_path / "again")
    found = compare_members(mark_unfit(read_library([*paths, str(tmp_path / "again")])))
    assert [row.state for row in found.library.adapters] == ["usable", "usable", "duplicate"]
    assert found.library.adapters[1].same_as is None


def test_a_library_is_compared_as_by_its_deltas(shelf):
    names = [str(shelf.paths[name]) for name in (*DOMAINS, "godspeed", "distil")]
    found = compare_members(mark_unfit(read_library(names)))
    rows = found.library.adapters
    assert rows[4].state == "unfit"
    near = 3 * found.library.cosine_error + shelf.near
    for i, j, cosine in ((0, 1, shelf.apart), (0, 2, shelf.apart), (1, 2, shelf.cosine)):
        assert found.cosines[i, j] == pytest.approx(cosine, abs=near)
    assert [row.family for row in rows[:3]] == [None, 1, 1]


def test_a_missing_path_is_named_as_it_was_given_unless_it_is_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near, far = read_library(["./runs/a", str(tmp_path / "runs" / "b")])
    (near,), (far,) = near.record.issues, far.record.issues
    assert "./runs/a" in near.message
    assert "b" in far.message and str(tmp_path) not in far.message
