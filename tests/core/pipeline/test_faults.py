"""Faults of the machine: kills, clocks that jump, two at once, and real disks that are full,
read-only or mounted twice. All or nothing, and one sentence."""

import contextlib
import functools
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from adversarial.outputs import files
from adversarial.resume import cached, rows, world
from forks import Fork
from hubs import Misbehaving, adapter_files, use
from making import call, known, random_adapter, saved_pair

from loraprobe import hub
from loraprobe.adapters import read_adapter, staged_directory
from loraprobe.adapters import staging as staged
from loraprobe.errors import HubError, OutputError, UsageError
from loraprobe.evaluation import ResponseCache
from loraprobe.hub import load
from loraprobe.records import ItemResult

WIDE = {f"layers.{i}.up": (256, 256) for i in range(4)}  # 33 kB an adapter, 66 kB a merge


@pytest.fixture
def pair(tmp_path):
    return saved_pair(tmp_path, WIDE, scaling=0.01)


def killed_at(number: int) -> None:
    """The step of that number kills this process: a flush to the disk, or a move of a file."""
    steps = itertools.count(1)

    def step(real, *arguments, **options):
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, functools.partial(step, getattr(os, name)))


def killed_in_a_download(url: str, cache: str) -> None:
    """Half of the first file that comes from this Hub is written, and then this process dies."""
    from huggingface_hub import constants, file_download

    constants.ENDPOINT, constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = url, cache, False
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    real = file_download.http_get

    def http_get(address, file, **options):
        real(address, file, **options)
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    file_download.http_get = http_get


class TestKills:
    @pytest.mark.parametrize("old", [False, True], ids=["a new output", "over an old one"])
    def test_at_every_step_of_a_write(self, pair, tmp_path, old):
        """A merge that is killed there leaves what was there or the whole output, and goes on."""
        out, before = tmp_path / "out", tmp_path / "old"
        command = ["merge", *map(str, pair), "-o", str(out), "--overwrite"]

        def files(place: Path) -> dict[str, bytes] | None:
            return {f.name: f.read_bytes() for f in place.iterdir()} if place.exists() else None

        if old:
            assert call("merge", *pair, "--method", "sum", "-o", before).exit_code == 0
        assert call(*command).exit_code == 0
        wanted, number = files(out), 0
        while True:
            shutil.rmtree(out)
            if old:
                shutil.copytree(before, out)
            number += 1
            kill = functools.partial(killed_at, number)
            if (code := Fork.of_command(command, tmp_path / f"said-{number}", kill).end()[0]) == 0:
                break
            assert code == -signal.SIGKILL
            assert files(out) in (files(before), wanted)
            assert call(*command).exit_code == 0 and files(out) == wanted
        assert number > len(wanted) and files(out) == wanted

    def test_an_evaluation_goes_on_after_a_kill(self, tmp_path):
        arguments, answers = world(tmp_path), []
        cache = {"LORAPROBE_CACHE": str(tmp_path / "cache")}
        for number in (2, 4, 8, None):
            if number:
                kill = functools.partial(killed_at, number)
                child = Fork.of_command(arguments, tmp_path / f"said-{number}", kill, **cache)
                assert child.end()[0] == -signal.SIGKILL
            answers.append(json.loads(cached(tmp_path, [*arguments, "--resume"]).stdout))
            shutil.rmtree(tmp_path / "cache")
        assert all(one["evaluation"] == answers[-1]["evaluation"] for one in answers)
        assert all(one["verdict"] == answers[-1]["verdict"] for one in answers)

    def test_a_download_goes_on_after_a_kill(self, hub, tmp_path):
        cache = tmp_path / "cache"
        before = functools.partial(killed_in_a_download, hub.url, str(cache))
        child = Fork.of_command(["inspect", "acme/math"], tmp_path / "said", before)
        assert child.end()[0] == -signal.SIGKILL
        assert [file for file in cache.rglob("*.incomplete") if file.stat().st_size]
        place = load("acme/math").source.path
        assert all((place / name).read_bytes() == hub.files[name] for name in hub.fetched())


def small_files_alone() -> None:
    """The kernel refuses to write files of over 20,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


class TestDisks:
    def test_a_real_limit_on_file_size(self, pair, tmp_path):
        """The kernel refuses to write beyond a limit, as a quota would."""

        merge = ["merge", *pair, "-o", tmp_path / "out"]
        code, _, said = Fork.of_command(merge, tmp_path / "said", small_files_alone).end()
        assert code == 2 and said.count("\n") == 1, said
        assert "cannot be written" in said
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "said"]

    @pytest.mark.needs("--html")
    def test_what_is_protected_stays(self, pair, tmp_path):
        """A directory that takes nothing, and an old output and an old page that are read-only."""
        locked, out, page = tmp_path / "locked", tmp_path / "out", tmp_path / "page.html"
        locked.mkdir()
        assert call("merge", *pair, "-o", out, "--html", page).exit_code == 0
        before = sorted(tmp_path.rglob("*"))
        for place in (locked, out, page):
            place.chmod(0o500 if place.is_dir() else 0o400)
        if os.access(locked, os.W_OK):
            pytest.skip("root writes everywhere")
        for more in (
            ["-o", locked / "out"],
            ["-o", out, "--overwrite"],
            ["-o", tmp_path / "new", "--html", page],
        ):
            result = call("merge", *pair, *more)
            assert result.exit_code == 2 and "cannot be written" in result.stderr
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("one_step", [True, False])
    def test_an_output_is_replaced(self, tmp_path, monkeypatch, one_step):
        """In one step where the system can; either way the new one is there and nothing else."""
        if not one_step:
            monkeypatch.setattr(staged, "_exchanged", lambda *_: False)
        for number in range(2):
            with staged_directory(tmp_path / "out", overwrite=True) as staging:
                (staging / "README.md").write_text(str(number))
        assert (tmp_path / "out" / "README.md").read_text() == "1"
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
    def test_who_may_read_an_output_is_what_the_umask_says(self, pair, tmp_path, mask, monkeypatch):
        """Also the weights, which safetensors itself writes for the owner alone.

        The umask is not set for this, not even for a moment: other threads would write with it.
        """
        umask = os.umask
        before = umask(mask)
        monkeypatch.setattr(os, "umask", None)
        try:
            assert call("merge", *pair, "-o", tmp_path / "out").exit_code == 0
            assert call("route", *pair, "-o", tmp_path / "routed").exit_code == 0
        finally:
            umask(before)
        for path in [*tmp_path.glob("out/*"), *tmp_path.glob("routed/**/*"), tmp_path / "out"]:
            assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


class TestTwoAtOnce:
    def test_one_output(self, pair, tmp_path):
        """Many write the same output: the last is there whole, the others say why not."""
        out = tmp_path / "out"
        running = [
            Fork.of_command(
                ["merge", *pair, "-o", out, "--method", method, "--quiet"], tmp_path / f"said-{i}"
            )
            for i, method in enumerate(("uniform", "sum", "uniform"))
        ]
        ended = [one.end() for one in running]
        codes = sorted(code for code, *_ in ended)
        assert codes[0] == 0 and set(codes) <= {0, 2}
        for said in (said for code, _, said in ended if code == 2):
            assert "exists already" in said or "cannot be written" in said
        assert codes.count(0) == 1, "without --overwrite one alone may win"
        assert read_adapter(out).modules
        there = [p.name for p in tmp_path.iterdir() if not p.name.startswith("said")]
        assert sorted(there) == ["a", "b", "out"]
        alone = [tmp_path / "uniform", tmp_path / "sum"]
        for place in alone:
            assert call("merge", *pair, "-o", place, "--method", place.name).exit_code == 0
        files = [{p.name: p.read_bytes() for p in place.iterdir()} for place in (out, *alone)]
        assert files[0] in files[1:]

    def test_staging_that_meets_another_at_the_end(self, tmp_path):
        target = tmp_path / "out"
        with pytest.raises(OutputError), staged_directory(target) as staging:
            (staging / "README.md").write_text("mine")
            target.mkdir()
            (target / "README.md").write_text("theirs")
        assert (target / "README.md").read_text() == "theirs"
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def test_one_response_cache(self, tmp_path):
        """Two runs of one call share their results' file: the second is told."""
        first = ResponseCache(tmp_path / "results.jsonl", fingerprint={"x": 1})
        with pytest.raises((OutputError, UsageError), match="another run"):
            ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"x": 1})
        first.close()
        ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"x": 1}).close()


class TestClocks:
    def test_a_clock_that_jumps_back(self, pair, tmp_path, monkeypatch):
        """Durations come from a clock that cannot; dates are not used to decide anything."""
        now = [2e9]

        def backwards() -> float:
            now[0] -= 3600
            return now[0]

        monkeypatch.setattr(time, "time", backwards)
        result = call("merge", *pair, "-o", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        seconds = json.loads(result.stdout)["provenance"]["seconds"]
        assert all(0 <= value < 600 for value in seconds.values())


class TestNetworks:
    def test_a_revision_that_moves_between_two_calls(self, hub, tmp_path):
        """Each call pins what it saw, and what was pinned stays readable."""
        first = load("acme/math")
        moved = tmp_path / "moved"
        random_adapter("m", seed=99).save(moved)
        hub.files = {f.name: f.read_bytes() for f in moved.iterdir()}
        hub.commit = "d1" * 20
        second = load("acme/math")
        assert (first.source.commit, second.source.commit) == ("c0" * 20, "d1" * 20)
        assert first.sha256 != second.sha256
        path = next(iter(first.modules))
        again = load(f"acme/math@{first.source.commit}")
        assert torch.equal(again.modules[path].A, first.modules[path].A)


Mount = Callable[..., Path]


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


@pytest.mark.needs("--html")
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


@pytest.fixture(params=["a file in the way", "read-only"])
def unwritable(request, mount, tmp_path) -> Path:
    """A place at which nothing can be written."""
    if request.param == "read-only":
        return mount("disk", "-t", "tmpfs", "-o", "ro", "tmpfs")
    (tmp_path / "file").write_text("x")
    return tmp_path / "file"


def test_a_cache_that_cannot_be_written(unwritable, tmp_path):
    """Known before the base is loaded, in one sentence that names the variable to set."""
    arguments = world(tmp_path)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"broken")
    for more in ([], ["--resume"]):
        told = refused(*arguments, *more, env={"LORAPROBE_CACHE": str(unwritable / "cache")})
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


def test_a_hub_cache_that_cannot_be_written(served, unwritable):
    served(unwritable / "hub")
    assert "HF_HOME" in refused("inspect", "acme/math")


def test_an_output_on_a_read_only_disk_is_refused_before_anything_is_read(mount, pair):
    place = mount("disk", "-t", "tmpfs", "-o", "ro", "tmpfs")
    (pair[1] / "adapter_model.safetensors").write_bytes(b"broken")
    for command in ("merge", "route"):
        assert "read-only" in refused(command, *pair, "-o", place / "out")
    if known("--html"):
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
