"""What is fuzzed: each target takes bytes and raises only where loraprobe does what it must not.

A target is a plain function, so that the test suite replays the corpus without any fuzzer. Errors
of loraprobe's own are what bad input should give; everything else, a hang included, is a finding.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from loraprobe.adapter import Adapter, read_adapter
from loraprobe.adapter.config import judge_config
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Ledger
from loraprobe.hub.reference import Reference, unique_names
from loraprobe.tasks import load_probe, load_task
from loraprobe.tasks.answers import compile_pattern

PAYLOAD = 1 << 12  # bytes of tensors that an assembled file holds
MEMORY = Path("/dev/shm")  # files of a fuzzer need no disk


def adapter(data: bytes) -> None:
    """A config and a weights file: read, every tensor accounted for, every module read.

    The first byte says how the file is made of the rest: 0 raw bytes, else a header in JSON to
    which length and payload are added, which reaches deeper. Two more bytes are the config's
    length.
    """
    if len(data) < 3:
        return
    length = struct.unpack("<H", data[1:3])[0]
    config, rest = data[3 : 3 + length], data[3 + length :]
    weights = rest if data[0] == 0 else struct.pack("<Q", len(rest)) + rest + b"\x3c" * PAYLOAD
    with _directory() as place:
        (place / "adapter_config.json").write_bytes(config)
        (place / "adapter_model.safetensors").write_bytes(weights)
        with contextlib.suppress(LoraprobeError):
            _accounted(read_adapter(place), weights)


def _accounted(read: Adapter, weights: bytes) -> None:
    """Each tensor of the file is a factor of one module or one extra."""
    header = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    keys = set(header) - {"__metadata__"}
    extras = [extra.key for extra in read.extras]
    assert len(set(extras)) == len(extras) and set(extras) <= keys, "an extra counts twice"
    assert len(keys) == len(extras) + 2 * len(read.modules), "a tensor is not accounted for"
    for path, update in read.modules.items():
        info = read.layout[path]
        assert update.A.shape == (info.rank, info.in_features)
        assert update.B.shape == (info.out_features, info.rank)
        assert update.A.dtype == update.B.dtype == info.dtype and info.dtype.is_floating_point
        assert math.isfinite(info.scaling)
        assert not torch.is_complex(update.A)


def config(data: bytes) -> None:
    """adapter_config.json alone: judged, and asked for a module's rank and scaling."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(raw, dict):
        return
    with contextlib.suppress(LoraprobeError):
        judged = judge_config(raw, "config")
        for path in ("model.layers.0.self_attn.q_proj", "lm_head", ""):
            assert judged.rank(path) >= 1
            assert math.isfinite(judged.scaling(path))


def task(data: bytes) -> None:
    """A task file and a probe file; patterns and prompts of what is read are used."""
    with _directory() as place:
        file = place / "task.jsonl"
        file.write_bytes(data)
        with contextlib.suppress(LoraprobeError):
            found = load_task(file)
            assert found.items and len({item.id for item in found.items}) == len(found.items)
            for item in found.items:
                assert item.prompt and item.answers and item.cluster is not None
                if item.answer_pattern:
                    compile_pattern(item.answer_pattern)
        with contextlib.suppress(LoraprobeError):
            assert all(item.prompt for item in load_probe(file).items)


def reference(data: bytes) -> None:
    """What a user types for an adapter or a base: it never leads out of its repository."""
    text = data.decode("utf-8", errors="replace")
    for bare in (False, True):
        with contextlib.suppress(LoraprobeError):
            found = Reference.parse(text, bare=bare)
            assert found.short
            if found.kind == "hub":
                parts = found.folder.split("/")
                assert ".." not in parts and not found.folder.startswith("/")
                assert "\\" not in found.folder and "/" not in found.repo.partition("/")[2]
                assert found.name is None or "/" not in found.name
            with contextlib.suppress(UsageError):
                names = unique_names([(found.short, False), (found.short, False)])
                assert len(set(names)) == 2


def ledger(data: bytes) -> None:
    """A list of results after its first line: rows that a run writes, or an error; it is written
    again as it was read."""
    with _directory() as place:
        file = place / "results.jsonl"
        Ledger(file).close()
        file.write_bytes(file.read_bytes() + data)
        with contextlib.suppress(LoraprobeError):
            read = Ledger(file, resume=True)
            rows = list(read)
            for row in rows:
                assert 0 <= row.value <= (1e4 if row.metric == "answer_loss" else 1)
                assert read.get(row.system, row.task, row.part, row.item) is row
            read.append(rows)
            read.close()
            assert list(Ledger(file, resume=True)) == rows, "it is read in another way"


@contextlib.contextmanager
def _directory():
    where = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as place:
        yield Path(place)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "adapter": adapter, "config": config, "task": task, "reference": reference,
    "ledger": ledger,
}  # fmt: skip
