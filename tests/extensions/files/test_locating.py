"""The sources and the base of a merge are found again, and have to be the ones that were used."""

import os
from pathlib import Path

import pytest
import tampering
from making import call, peft_adapter, random_adapter, saved_pair, tiny_llama
from test_verify import failed, merged, no_waiting  # noqa: F401

import loraprobe


@pytest.fixture
def pair(tmp_path):
    return [str(path) for path in saved_pair(tmp_path, scaling=0.1)]


def test_a_source_that_changed_is_named(pair, tmp_path):
    out = merged(pair, tmp_path)
    random_adapter("b", seed=3).save(pair[1], overwrite=True)
    assert failed(out) == ["source b"]


def test_a_source_that_is_gone_cannot_be_told(pair, tmp_path):
    """Nothing says that the directory is wrong: exit 3, with the command that gives the source."""
    out = merged(pair, tmp_path)
    kept = tmp_path / "far" / "away" / "from" / "here"
    kept.parent.mkdir(parents=True)
    Path(pair[1]).rename(kept)
    assert failed(out) == ["source b"]
    result = call("verify", out)
    assert result.exit_code == 3 and f"loraprobe verify {out} REF" in " ".join(
        result.stdout.replace("\\", " ").split()
    )
    assert loraprobe.verify(out).passed is None
    assert call("verify", out, kept).exit_code == 0


def test_sources_are_found_below_the_working_directory(pair, tmp_path, monkeypatch):
    """By hash, in three levels of folders, wherever the merge was moved to."""
    out = merged(pair, tmp_path / "elsewhere")
    work = tmp_path / "work"
    (work / "x" / "y").mkdir(parents=True)
    for place, moved in zip(pair, ("x/moved", "x/y/moved"), strict=True):
        Path(place).rename(work / moved)
    monkeypatch.chdir(work)
    assert failed(out) == []
    deeper = work / "x" / "y" / "z" / "deeper"
    deeper.parent.mkdir()
    (work / "x" / "y" / "moved").rename(deeper)
    assert failed(out) == ["source b"]


def test_sources_are_found_where_the_merge_was_made(pair, tmp_path, monkeypatch):
    """By their names in the folders above the merge, from anywhere."""
    project = tmp_path / "project"
    project.mkdir()
    moved = [str(Path(one).rename(project / Path(one).name)) for one in pair]
    out = merged(moved, project / "runs" / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert failed(out) == []
    os.rename(project / "a", project / "below")
    assert failed(out) == ["source a"]


def test_a_given_source_that_cannot_be_read_is_an_error(pair, tmp_path):
    result = call("verify", merged(pair, tmp_path), tmp_path / "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.stderr


@pytest.mark.parametrize("where", ["renamed", "beside", "deeper/down", "far/away/from/here"])
def test_a_source_is_found_by_its_hash(pair, tmp_path, where):
    """Near the directory by itself, and anywhere else once it is named."""
    place = tmp_path / "x" / "y" / "z"
    out = merged(pair, place)
    moved = place / where if where != "far/away/from/here" else tmp_path / where
    moved.parent.mkdir(parents=True, exist_ok=True)
    os.rename(pair[0], place / "a")
    os.rename(pair[1], moved)
    (tmp_path / "b" / "x").mkdir(parents=True)  # what bears its name now is no adapter
    near = where != "far/away/from/here"
    assert loraprobe.verify(out).passed is (True if near else None)
    assert loraprobe.verify(out, [moved]).passed
    assert call("verify", out, moved, "--quiet").stdout == "verified\n"


def test_a_base_is_found_and_has_to_be_the_one_that_was_used(tmp_path):
    """DoRA is merged with the base's weights."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    for seed, name in enumerate("ab"):
        peft_adapter(tmp_path / name, model, seed, use_dora=True, target_modules=["q_proj"])
    refs = [str(tmp_path / name) for name in "ab"]
    out = merged(refs, tmp_path, "--base", str(tmp_path / "base"), "--method", "uniform")
    assert failed(out) == []
    os.rename(tmp_path / "base", tmp_path / "moved")
    assert failed(out) == ["base"]
    assert loraprobe.verify(out, base=tmp_path / "moved").passed
    tiny_llama(seed=1).save_pretrained(tmp_path / "base")
    assert failed(out) == ["base"]
    scaled = tampering.weights(
        lambda t: {k: v * 1.001 if "magnitude" in k else v for k, v in t.items()}
    )
    scaled(tmp_path)
    assert not loraprobe.verify(out, base=tmp_path / "moved").passed
