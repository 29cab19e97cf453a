"""Shares of the parts of a run, and workers that compute them, some of which are lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from working import Squares

from loraprobe.errors import UsageError
from loraprobe.execution import Pool, open_pool, share_of
from loraprobe.execution.pool import RESTARTS, LocalWorker, local_workers
from loraprobe.options import Options

HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
NUMBERS = list(range(8))


@pytest.mark.parametrize("of", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("weights", [[1.0] * 12, [1, 50, 1, 1, 300, 2, 2, 90], [0.0, 0.0], []])
def test_every_part_belongs_to_one_share(weights, of):
    shares = [share_of(weights, (number, of)) for number in range(1, of + 1)]
    assert [index for share in shares for index in share] == list(range(len(weights)))


def test_shares_are_of_about_equal_weight():
    weights = [120.0, 148.0, 332.0] * 7
    sums = [sum(weights[i] for i in share_of(weights, (n, 4))) for n in range(1, 5)]
    assert max(sums) - min(sums) <= 2 * max(weights)


def pool(place: Path, count: int = 2, seconds: float = 0.0) -> Pool:
    return Pool([LocalWorker(Squares(place, seconds), HERE) for _ in range(count)])


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def test_workers_and_this_process_share_the_parts(tmp_path):
    square = Squares(tmp_path, seconds=0.1).open()
    with pool(tmp_path, seconds=0.02) as opened:
        for _ in range(2):
            found = dict(opened.map(NUMBERS, lambda index: square(NUMBERS[index])))
            assert {index: value for index, (value, _) in found.items()} == {
                n: n**2 for n in NUMBERS
            }
            until(lambda: opened._started.get(0, False))
    processes = {pid for _, pid in found.values()}
    assert os.getpid() in processes and len(processes) > 1


def test_the_part_of_a_killed_worker_is_computed_again(tmp_path):
    parts = ["die once", *NUMBERS]

    def here(index: int) -> object:
        until((tmp_path / "died").exists)
        return Squares(tmp_path).open()(parts[index])

    with pool(tmp_path, 1) as opened:
        found = dict(opened.map(parts[::-1], lambda index: here(len(parts) - 1 - index)))
        assert opened.lost == 1
    assert sorted(value for value, _ in found.values()) == sorted([0, *(n**2 for n in NUMBERS)])


def test_a_worker_that_is_lost_again_and_again_is_given_up(tmp_path, monkeypatch):
    original, starts = LocalWorker.start, list[LocalWorker]()
    monkeypatch.setattr(LocalWorker, "start", lambda self: (starts.append(self), original(self)))
    with pool(tmp_path, 1) as opened:

        def here(_: int) -> str:
            until(lambda: opened.lost > RESTARTS)
            time.sleep(0.1)
            return "here"

        assert dict(opened.map(["die"] * 3, here)) == dict.fromkeys(range(3), "here")
        assert opened.lost == len(starts) == RESTARTS + 1


def test_an_error_of_a_worker_is_raised_as_it_was(tmp_path):
    with pool(tmp_path, 1) as opened:

        def here(_: int) -> None:
            until(lambda: opened._started.get(0, False))  # or this process computes all parts
            time.sleep(0.5)

        with pytest.raises(UsageError, match="cannot be computed"):
            list(opened.map(["fail", "fail"], here))


def test_local_workers_have_a_gpu_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    made = local_workers(None, None, 1)
    assert [w.environment["CUDA_VISIBLE_DEVICES"] for w in made] == ["5", "6"]


@pytest.mark.parametrize("text", ["slurm", "local:0", "local:", "ray://", "ray:8265"])
def test_an_unknown_executor_is_refused(text):
    with pytest.raises(UsageError, match="--executor"):
        Options.of({"executor": text})


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'loraprobe\[ray\]'"):
        open_pool("ray", None, 1)
