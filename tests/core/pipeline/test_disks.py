"""Real disks that are full, read-only or mounted twice: one sentence, nothing half-written."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adversarial.outputs import files
from adversarial.resume import rows, world
from hubs import Misbehaving, adapter_files, use
from making import call, saved_pair

from loraprobe import hub
from loraprobe.adapters import read_adapter
from loraprobe.errors import HubError, OutputError
from loraprobe.evaluation import ResponseCache
from loraprobe.records import ItemResult

Mount = Callable[..., Path]
WIDE = {f"layers.{i}.up": (256, 256) for i in range(4)}  # 33 kB an adapter, 66 kB a merge


@pytest.fixture
def mount(tmp_path) -> Iterator[Mount]:
    """Mounts a file system at a new directory below tmp_path; skips where that is not allowed."""
    places: list[Path] = []

    def make(name: str, *arguments: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        command = ["mount", *arguments, str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        if place not in places:
            places.append(place)
        return place

    yield make
    for place in reversed(places):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def disk(mount) -> Callable[[int], Path]:
    """A file system in memory that holds so many kilobytes."""
    return lambda size: mount("disk", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs")


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    return saved_pair(tmp_path, WIDE, scaling=0.01)


def refused(*arguments: object, env: dict[str, str] | None = None) -> str:
    """The one sentence of a call that ends in 2 and prints nothing, with --json an error."""
    result = call(*arguments, env=env)
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    if "--json" in arguments:
        assert list(json.loads(result.stdout)) == ["error"]
    else:
        assert result.stdout == "", result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes what is free on a disk but for `leave` kilobytes."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - leave * 1024))
    return filler


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("command", ["merge", "route"])
def test_an_output_on_a_full_disk(disk, pair, command, size):
    place = disk(size)
    assert "No space left" in refused(command, *pair, "-o", place / "new" / "out")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("command", ["merge", "route"])
def test_a_full_disk_keeps_the_old_output(disk, pair, command):
    out = disk(132) / "out"
    assert call(command, *pair, "-o", out).exit_code == 0
    before = files(out.parent)
    swapped = [pair[1], pair[0]]
    assert "No space left" in refused(command, *swapped, "-o", out, "--overwrite")
    assert files(out.parent) == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_page_on_a_full_disk(disk, pair):
    place = disk(64)
    page = place / "report.html"
    inspect = ["inspect", *pair, "--html", page, "--quiet"]
    assert call(*inspect).exit_code == 0
    before, filler = page.read_bytes(), fill(place)
    result = call(*inspect)
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert page.read_bytes() == before
    assert sorted(place.iterdir()) == [filler, page]


@pytest.mark.parametrize("leave", [0, 4, 6])
def test_results_on_a_full_disk(disk, tmp_path, own_cache, leave):
    """Finished results stay readable, and --resume continues once there is space again."""
    arguments, place = world(tmp_path), disk(64)
    environment = {"LORAPROBE_CACHE": str(place)}
    filler = fill(place, leave)
    told = refused(*arguments, env=environment)
    assert "No space left" in told and "LORAPROBE_CACHE" in told
    kept = rows(place)
    assert all(json.loads(line) for f in place.rglob("*.jsonl") for line in f.open())
    filler.unlink()
    resumed = call(*arguments, "--resume", env=environment)
    whole = call(*arguments)
    assert resumed.exit_code == whole.exit_code and rows(place) == rows(own_cache) > kept
    first, second = json.loads(resumed.stdout), json.loads(whole.stdout)
    assert first["evaluation"] == second["evaluation"]


def test_a_batch_is_kept_whole_or_not_at_all(disk):
    place = disk(64)
    batch = [
        ItemResult("s", "t", "question", i, "exact_match", 1.0, "x" * 900, "g", request=i)
        for i in map(str, range(10))
    ]
    responses = ResponseCache(place / "results.jsonl")
    responses.append(batch[:1])
    filler, before = fill(place, 4), (place / "results.jsonl").read_bytes()
    with pytest.raises(OutputError):
        responses.append(batch)
    assert (place / "results.jsonl").read_bytes() == before and len(responses.results) == 1
    filler.unlink()
    responses.append(batch)
    responses.close()
    assert [*ResponseCache(place / "results.jsonl", resume=True).results.values()] == batch


@pytest.mark.parametrize("how", ["a file in the way", "read-only"])
def test_a_cache_that_cannot_be_written(mount, tmp_path, how):
    """Known before the base is loaded, in one sentence that names the variable to set."""
    arguments = world(tmp_path)
    if how == "read-only":
        cache = mount("disk", "-t", "tmpfs", "-o", "ro", "tmpfs")
    else:
        cache = tmp_path / "task.jsonl" / "cache"
    (tmp_path / "base" / "model.safetensors").write_bytes(b"broken")
    for more in ([], ["--resume"]):
        told = refused(*arguments, *more, env={"LORAPROBE_CACHE": str(cache)})
        assert "LORAPROBE_CACHE" in told


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A Hub on loopback, and a function that says where its client's cache is."""
    server = Misbehaving(adapter_files(tmp_path / "made"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with server.running():
        yield lambda cache: use(monkeypatch, server.url, cache)


def test_a_download_to_a_full_disk(served, disk):
    place = disk(64)
    filler = fill(place, 12)
    served(place / "hub")
    with pytest.raises(HubError, match="HF_HOME"):
        hub.load("acme/math")
    left = [p for p in place.rglob("*") if p.is_file() and p.suffix != ".lock" and p != filler]
    assert not [p for p in left if p.name.startswith("adapter_model")]
    filler.unlink()
    assert hub.load("acme/math").modules


@pytest.mark.parametrize("how", ["a file in the way", "read-only"])
def test_a_hub_cache_that_cannot_be_written(served, mount, tmp_path, how):
    if how == "read-only":
        cache = mount("disk", "-t", "tmpfs", "-o", "ro", "tmpfs") / "hub"
    else:
        (tmp_path / "file").write_text("x")
        cache = tmp_path / "file" / "hub"
    served(cache)
    assert "HF_HOME" in refused("inspect", "acme/math")


def test_an_output_on_a_read_only_disk_is_refused_before_anything_is_read(mount, pair):
    place = mount("disk", "-t", "tmpfs", "-o", "ro", "tmpfs")
    (pair[1] / "adapter_model.safetensors").write_bytes(b"broken")
    for command in ("merge", "route"):
        assert "read-only" in refused(command, *pair, "-o", place / "out")
    assert "read-only" in refused("inspect", *pair, "--html", place / "page.html")


def test_an_output_that_is_a_source_mounted_elsewhere(mount, pair):
    """Nothing but device and inode tells that the two directories are one."""
    bound = mount("bound", "--bind", str(pair[0]))
    before = files(pair[0])
    for target in (bound, bound / "sub"):
        told = refused("merge", *pair, "-o", target, "--overwrite")
        assert str(pair[0]) in told
    assert files(pair[0]) == before


def test_a_mount_point_is_not_replaced(disk, pair):
    place = disk(256)
    assert "mount point" in refused("merge", *pair, "-o", place, "--overwrite")
    assert call("merge", *pair, "-o", place / "adapter", "--overwrite").exit_code == 0
    assert read_adapter(place / "adapter").modules


def test_a_bind_that_cannot_be_replaced_leaves_nothing_behind(mount, pair, tmp_path):
    (tmp_path / "real").mkdir()
    bound = mount("bound", "--bind", str(tmp_path / "real"))
    before = sorted(tmp_path.iterdir())
    refused("merge", *pair, "-o", bound, "--overwrite")
    assert sorted(tmp_path.iterdir()) == before and list(bound.iterdir()) == []
