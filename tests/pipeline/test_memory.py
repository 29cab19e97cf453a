"""Work that cannot fit in memory is refused with a number before it starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import random_adapter

from loraprobe import memory
from loraprobe.base import open_base
from loraprobe.base.model import weight_bytes
from loraprobe.errors import OutOfMemory
from loraprobe.merging import merge

WIDE = {"layers.0.up": (900, 700), "layers.1.up": (60, 70)}


def pair():
    return [random_adapter(name, WIDE, seed=seed) for name, seed in (("a", 1), ("b", 2))]


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the free memory of the machine, in bytes."""
    return lambda size: monkeypatch.setattr(memory, "_kernel", lambda: size)


def test_a_dense_merge_beyond_memory_is_refused_and_a_small_space_fits(machine):
    machine(8 << 20)
    with pytest.raises(OutOfMemory, match=r"up, \[900, 700\].*12 MiB.*8 MiB.*--space core"):
        merge(pair(), "ties")
    assert merge(pair(), "ties", space="core").adapter.modules
    assert merge(pair(), "uniform").adapter.modules
    machine(20 << 20)
    assert merge(pair(), "ties").adapter.modules


def test_a_merge_in_factors_counts_its_result(machine):
    machine(100_000)
    with pytest.raises(OutOfMemory, match="smaller --rank"):
        merge(pair(), "uniform")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_the_estimate_of_a_dense_merge_is_an_upper_bound():
    """In a process of its own: the peak of TIES on one module of 3000 x 2000, against the claim."""
    code = """
import gc
from making import random_adapter
from loraprobe import memory
from loraprobe.merging import merge

def kilobytes(field):
    text = open("/proc/self/status").read()
    return int(text.split(field + ":")[1].split()[0])

seen = []
memory.require = lambda needed, *rest: seen.append(needed)
shapes = {"layers.0.up": (3000, 2000)}
adapters = [random_adapter(n, shapes, seed=s) for n, s in (("a", 1), ("b", 2), ("c", 3))]
merge([random_adapter(n, {"x": (64, 64)}, seed=s) for n, s in (("a", 1), ("b", 2))], "ties")
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
merge(adapters, "ties:density=0.3")
print(seen[-1], (kilobytes("VmHWM") - before) * 1024)
"""
    here = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    claimed, taken = map(int, done.stdout.split())
    assert taken < 1.2 * claimed and claimed < 6 * taken, (claimed, taken)


def test_a_base_beyond_memory_is_refused_with_alternatives(machine, small_base):
    base = open_base(small_base)
    exact = sum(p.numel() * 4 for p in base.load().model.parameters())
    found = weight_bytes(base, torch.float32)
    assert 0.9 * exact < found < 1.2 * exact
    machine(found // 2)
    with pytest.raises(OutOfMemory, match=r"float32.*--dtype bfloat16 needs.*--quantize 4bit"):
        base.load()
    machine(2 * found)
    base.load()


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
