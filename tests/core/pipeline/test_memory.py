"""Work that cannot fit in memory is refused with a number before it starts."""

import gc
from pathlib import Path

import pytest
import torch
from forks import Fork
from making import random_adapter
from merges import merge

from loraprobe import memory
from loraprobe.base import load_base, open_base
from loraprobe.base.loading import weight_bytes
from loraprobe.errors import OutOfMemory

WIDE = {"layers.0.up": (900, 700), "layers.1.up": (60, 70)}


def pair():
    return [random_adapter(name, WIDE, seed=seed) for name, seed in (("a", 1), ("b", 2))]


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the free memory of the machine, in bytes."""
    return lambda size: monkeypatch.setattr(memory, "_kernel", lambda: size)


def test_a_dense_merge_beyond_memory_is_refused_and_a_small_space_fits(machine):
    machine(8 << 20)
    with pytest.raises(OutOfMemory, match=r"up, \[900, 700\].*17.1 MiB.*8.0 MiB.*--space core"):
        merge(pair(), "ties")
    assert merge(pair(), "ties", space="core").adapter.modules
    assert merge(pair(), "uniform").adapter.modules
    machine(20 << 20)
    assert merge(pair(), "ties").adapter.modules


def test_a_merge_in_factors_counts_its_result(machine):
    machine(100_000)
    with pytest.raises(OutOfMemory, match="smaller --rank"):
        merge(pair(), "uniform")


def kilobytes(field: str) -> int:
    """A figure of this process."""
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])


def measured() -> None:
    """Prints what TIES on a module of 3000 x 2000 claims to need, and what it takes at its peak."""
    claims = []
    memory.require = lambda needed, *rest: claims.append(needed)
    shapes = {"layers.0.up": (3000, 2000)}
    adapters = [random_adapter(name, shapes, seed=seed) for seed, name in enumerate("abc")]
    merge([random_adapter(name, {"x": (64, 64)}) for name in "ab"], "ties")  # imports what it needs
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    merge(adapters, "ties:density=0.3")
    print(claims[-1], (kilobytes("VmHWM") - before) * 1024)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_the_estimate_of_a_dense_merge_is_an_upper_bound(tmp_path):
    code, told, error = Fork(measured, tmp_path / "said").end()
    assert code == 0, error
    claimed, taken = map(int, told.split())
    assert taken < 1.2 * claimed and claimed < 6 * taken, (claimed, taken)


def test_a_base_beyond_memory_is_refused_with_alternatives(machine, small_base):
    base = open_base(small_base)
    exact = sum(p.numel() * 4 for p in load_base(base).model.parameters())
    found = weight_bytes(base, torch.float32)
    assert 0.9 * exact < found < 1.2 * exact
    machine(found // 2)
    with pytest.raises(OutOfMemory, match=r"float32.*--dtype bfloat16 needs.*--quantize 4bit"):
        load_base(base)
    machine(2 * found)
    load_base(base)


def test_available_memory_agrees_with_the_kernel(monkeypatch, tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 100 kB\nMemAvailable:   60 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", file)
    limit, usage = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(usage)),))
    assert memory.available() == 60 * 1024
    usage.write_text("10000")
    limit.write_text("max\n")
    assert memory.available() == 60 * 1024
    limit.write_text("30000\n")
    assert memory.available() == 20000
    assert memory.available("mps") is None
