"""Memory that runs out: batches halve, nothing is counted twice, the report says so, and at last
one sentence says what to change. The model is real; its forward pass refuses large batches.
"""

import json
import re

import making
import pytest
import torch
from shipped_audits import SHORT, audit, call, calm, differences
from words import word_tokenizer

from loraprobe.composition import Composition
from loraprobe.errors import OutOfMemory
from loraprobe.memory import is_out_of_memory
from loraprobe.routing import ROUTERS
from loraprobe.routing.scored import InputSums
from loraprobe.scoring import ModelScorer, read_texts
from loraprobe.scoring.forward import Batcher

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "linux": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 b"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "python": MemoryError(),
    "mmap": OSError(12, "Cannot allocate memory"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_allocator_is_understood(kind):
    assert is_out_of_memory(ERRORS[kind])
    done: list[int] = []

    def work(batch):
        if len(batch) > 3:
            raise ERRORS[kind]
        done.extend(batch)

    batcher = Batcher(torch.device("cpu"))
    batcher.run(range(13), work)
    assert done == list(range(13))
    assert (batcher.failed, batcher.kept) == (13, 3)
    assert "13 sequences" in batcher.note() and "--batch-size 3" in batcher.note()


def test_other_errors_are_left_alone():
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("a")):
        assert not is_out_of_memory(error)
    assert Batcher(torch.device("cpu")).note() == ""


def test_a_batch_size_is_learned():
    batcher = Batcher(torch.device("cpu"))

    def work(batch):
        if len(batch) > 4:
            raise MemoryError

    batcher.run(range(24), work)
    assert [len(batch) for batch in batcher.split([1] * 9)] == [3, 3, 3]

    def never(batch):
        raise MemoryError

    with pytest.raises(OutOfMemory, match="Even a batch of one"):
        batcher.run(range(2), never)


def test_a_batch_inside_a_batch_gets_room_from_the_outer_one():
    batcher, done = Batcher(torch.device("cpu")), []

    def outer(prompts):
        def inner(tails):
            if len(prompts) + len(tails) > 4:
                raise MemoryError
            done.append((len(prompts), len(tails)))

        batcher.run(range(4), inner)

    batcher.run(range(8), outer)
    assert done and all(a + b <= 4 for a, b in done)


class TestWatchers:
    """What watches a forward pass sees the layers before the one in which memory ran out; those
    rows come again in a smaller batch and must count once."""

    prompts = ("ada lives in ulm", "who is cy ?", "the mayor of ulm is bo", "cy", "bo lives in")

    def read(self, watcher, place) -> None:
        scorer = ModelScorer(making.tiny_llama(), word_tokenizer(), batch_size=5)
        with place(scorer.model):
            read_texts(scorer, self.prompts, watcher.see)

    def both(self, monkeypatch, made, place) -> tuple:
        plain, halved = made(), made()
        self.read(plain, place(plain))
        seen = making.narrow(monkeypatch, 2, ERRORS["cuda"])
        self.read(halved, place(halved))
        assert max(seen) == 5 and 1 in seen
        return plain, halved

    @pytest.fixture
    def routed(self):
        experts = tuple(making.random_adapter(name, seed=i) for i, name in enumerate("ab", 1))
        return Composition("arrow", experts, ROUTERS.make("arrow"))

    def test_means_of_inputs(self, monkeypatch, routed):
        from loraprobe.composition import watched

        plain, halved = self.both(
            monkeypatch,
            lambda: InputSums(dict.fromkeys(routed.paths)),
            lambda sums: lambda model: watched(model, routed.experts, sums.add),
        )
        for path in plain.sums:
            assert torch.equal(halved.of(path, "a")[:, -1], plain.of(path, "a")[:, -1])
            torch.testing.assert_close(halved.of(path, "a"), plain.of(path, "a"))


def test_samples_are_drawn_in_smaller_batches(monkeypatch):
    scorer = ModelScorer(making.tiny_llama(), word_tokenizer())
    making.narrow(monkeypatch, 3, ERRORS["linux"])
    assert len(scorer.sample(20, seed=1, max_new_tokens=3)) == 20
    assert scorer.batcher.failed == 16


def test_an_audit_halves_the_batch_with_a_note(monkeypatch):
    first = calm()
    seen = making.narrow(monkeypatch, 7, ERRORS["cuda"])
    found = call(*audit("skill-and-facts"), *SHORT)
    assert max(seen) > 7
    *notes, last = found.pop("notes")
    assert notes == first.pop("notes")
    assert last.startswith("A batch of ") and "did not fit into the memory of cpu" in last
    assert 1 <= int(re.search(r": (\d+) at a time", last)[1]) <= 7
    assert not differences(first, found)


def test_one_sequence_beyond_memory_names_the_option_to_change(monkeypatch):
    making.narrow(monkeypatch, 0, ERRORS["cuda"])
    done = making.call(*audit("skill-and-facts"), *SHORT, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["code"] == "out-of-memory"
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: Even a batch of one sequence does not fit into the memory of")
    assert "--dtype bfloat16" in line and "--max-new-tokens" in line


def test_a_base_that_runs_out_while_it_is_loaded(monkeypatch):
    from transformers import AutoModelForCausalLM

    def fail(*_: object, **__: object) -> None:
        raise ERRORS["cuda"]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    done = making.call(*audit("skill-and-facts"), *SHORT)
    assert done.exit_code == 2
    assert "ran out while" in done.stderr and "--quantize 4bit" in done.stderr
