"""What is fuzzed: each target takes bytes and raises only where loraprobe does what it must not.

A target is a plain function, so that the test suite replays the corpus without any fuzzer. Errors
of loraprobe's own are what bad input should give; everything else, a hang included, is a finding.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.adapters.config import judge_config
from loraprobe.base.declared import TOKENIZER_FILES, tokenizer_size
from loraprobe.base.quiet import silenced
from loraprobe.cache import file_hash
from loraprobe.composition import Composition
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import ResponseCache
from loraprobe.front_matter import declared_licence, is_gated
from loraprobe.hub.reference import Reference, unique_names
from loraprobe.lora.lowrank import LowRank
from loraprobe.probes._taskless import card_prompts
from loraprobe.routing import ROUTERS
from loraprobe.routing._saved import Routed, load_composition
from loraprobe.scoring import encoding
from loraprobe.scoring.encoding import Encoder
from loraprobe.tasks import load_probe, load_task
from loraprobe.tasks.metrics import compile_pattern

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
    """Each tensor of the file is a factor of one module, one extra, or named as left out."""
    header = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    keys = set(header) - {"__metadata__"}
    extras = [extra.key for extra in read.extras]
    assert len(set(extras)) == len(extras) and set(extras) <= keys, "an extra counts twice"
    left = len(keys) - len(extras) - 2 * len(read.modules)
    said = any(issue.code == "tensors-unused" for issue in read.issues)
    assert left == 0 or (left > 0 and said), "a tensor is not accounted for"
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
        paths = ("model.layers.0.self_attn.q_proj", "lm_head", "")
        for rank, scaling in judged.ranks_and_scalings(paths).values():
            assert rank >= 1
            assert math.isfinite(scaling)


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
            assert all(load_probe(file).answers)


def reference(data: bytes) -> None:
    """What a user types for an adapter or a base: it never leads out of its repository."""
    text = data.decode("utf-8", errors="replace")
    for bare in (False, True):
        with contextlib.suppress(LoraprobeError):
            found = Reference.parse(text, bare=bare)
            assert found.short
            if found.path is None:
                parts = found.folder.split("/")
                assert ".." not in parts and not found.folder.startswith("/")
                assert "\\" not in found.folder and "/" not in found.repo.partition("/")[2]
                assert found.name is None or "/" not in found.name
            with contextlib.suppress(UsageError):
                names = unique_names([(found.short, False), (found.short, False)])
                assert len(set(names)) == 2


def responses(data: bytes) -> None:
    """A list of results after its first line: rows that a run writes, or an error; it is written
    again as it was read."""
    with _directory() as place:
        file = place / "results.jsonl"
        ResponseCache(file).close()
        file.write_bytes(file.read_bytes() + data)
        with contextlib.suppress(LoraprobeError):
            read = ResponseCache(file, resume=True)
            rows = list(read.results.values())
            for row in rows:
                assert 0 <= row.value <= (1e4 if row.metric == "answer_loss" else 1)
                assert read.get(row.request) is row
            read.append(rows)
            read.close()
            again = ResponseCache(file, resume=True)
            assert [*again.results.values()] == rows, "it is read in another way"


TEXTS = ["Ada lives in Ulm.", "aaaa!"]


def tokenizer(data: bytes) -> None:
    """One file of a tokenizer, which the first byte names: checked, and its size asked for.

    A sound tokenizer.json is loaded by the library, without transformers' search for a class, and
    encodes two texts. Beyond the last file the rest is a chat template, which is filled.
    """
    if not data:
        return
    name, content = data[0], data[1:]
    if name >= len(TOKENIZER_FILES):
        _template(content.decode("utf-8", errors="replace"))
        return
    with _directory() as place, contextlib.suppress(LoraprobeError):
        (place / TOKENIZER_FILES[name]).write_bytes(content)
        size = tokenizer_size(place, "base")
        assert size is None or size > 0
        loaded = _loaded(content) if name == 0 else None
        if loaded is not None:
            for ids in Encoder(loaded, rows=size).prompts(TEXTS):
                assert ids and all(0 <= i < (size or 0) for i in ids)


def _loaded(content: bytes) -> Any:
    """The tokenizer of a tokenizer.json; None for what the library refuses."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        with silenced():
            return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(content))
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:  # as load_tokenizer takes it, panics of the library included
        return None


def _template(text: str) -> None:
    quick = mock.patch.object(encoding, "TEMPLATE_SECONDS", 0.5)  # a loop costs a fuzzer no more
    with quick, contextlib.suppress(LoraprobeError):
        filled = _fillable(text).text("Who is it?")
        assert filled.strip()


def _fillable(template: str) -> Encoder:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="a", eos_token="a")
    made.chat_template = template
    return Encoder(made, chat=bool(template))


def card(data: bytes) -> None:
    """A model card: licence, terms, prompts of its widgets, and what it says of a merge."""
    from loraprobe.extensions.files.provenance import read_provenance

    text = data.decode("utf-8", errors="replace")
    licence = declared_licence(text)
    assert licence is None or (licence.strip() and len(licence) <= 100)
    assert isinstance(is_gated(text), bool)
    for prompt in card_prompts(text):
        assert prompt.strip() and prompt.encode()
    with _directory() as place, contextlib.suppress(LoraprobeError):
        (place / "README.md").write_bytes(data)
        assert read_provenance(place)


def composition(data: bytes) -> None:
    """composition.json of a saved composition whose other files are sound.

    `<FILE>` stands for the sha256 of a file of the directory, so that a corpus outlives versions of
    the libraries that write these files.
    """
    home, hashes = saved_composition()
    for name, digest in hashes.items():
        data = data.replace(f"<{name}>".encode(), digest.encode())
    (home / "composition.json").write_bytes(data)
    with contextlib.suppress(LoraprobeError):
        found = load_composition(home)
        assert found.experts and found.name is not None
        for expert in found.experts:
            assert expert.weights_file is not None
            assert expert.weights_file.resolve().is_relative_to(home.resolve())


@functools.cache
def saved_composition() -> tuple[Path, dict[str, str]]:
    """A composition of two small adapters on the disk, with what a router of centroids has learned
    beside it; sha256 of each file by its name."""
    kept = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
    atexit.register(kept.cleanup)
    home, path = Path(kept.name) / "saved", "model.layers.0.mlp.up_proj"
    experts = tuple(
        adapter_of(name, {path: LowRank(torch.eye(2, 4) + n, torch.eye(4, 2), 1.0)})
        for n, name in enumerate("ab")
    )
    Routed(Composition("arrow", experts, ROUTERS.make("arrow"))).save(home)
    save_file({f"centroid.{path}": torch.ones(2, 4)}, str(home / "router.safetensors"))
    files = (file for file in home.rglob("*") if file.is_file())
    return home, {str(file.relative_to(home)): file_hash(file) for file in files}


@contextlib.contextmanager
def _directory():
    where = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as place:
        yield Path(place)


FUNCTIONS = adapter, config, task, reference, responses, tokenizer, card, composition
TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in FUNCTIONS}
