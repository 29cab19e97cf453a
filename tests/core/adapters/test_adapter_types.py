"""What an adapter tells of itself, and when its tensors are read."""

import making
import pytest

from loraprobe.adapters import read_adapter

Q = "model.layers.0.self_attn.q_proj"


def test_what_it_says_of_itself(tmp_path):
    shapes = {"l.10.q": (6, 5), "l.2.q": (6, 5), "l.2.k": (3, 5)}
    making.random_adapter("x", shapes, {"l.10.q": 1, "l.2.q": 2, "l.2.k": 3}).save(tmp_path / "x")
    adapter = read_adapter(tmp_path / "x", "y")
    assert list(adapter.modules) == ["l.2.k", "l.2.q", "l.10.q"]  # layer 2 before layer 10
    assert adapter.rank_range == (1, 3) and adapter.parameters == 11 + 2 * 11 + 3 * 8
    summary = adapter.summary(norm=2.0)
    assert (summary.name, summary.modules, summary.norm) == ("y", 3, 2.0)
    assert summary.rank == {"min": 1, "max": 3} and summary.base_model == "owner/base"
    assert adapter.renamed("z").name == "z"
    with pytest.raises(KeyError):
        adapter.modules["nowhere"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Overwriting the values after opening changes what is read later."""
    making.random_adapter().save(tmp_path / "x")
    adapter = read_adapter(tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    with file.open("r+b") as stream:
        header = int.from_bytes(stream.read(8), "little")
        stream.seek(8 + header)
        stream.write(b"\0" * (file.stat().st_size - 8 - header))
    assert adapter.modules[Q].A.abs().max() == 0


def test_digest_follows_the_weights(tmp_path):
    making.random_adapter(seed=1).save(tmp_path / "x")
    making.random_adapter(seed=1).save(tmp_path / "y")
    making.random_adapter(seed=2).save(tmp_path / "z")
    x, y, z = (read_adapter(tmp_path / n).sha256 for n in "xyz")
    assert x == y != z and len(x) == 64
    memory = making.random_adapter(seed=1)
    assert memory.sha256 == making.random_adapter(seed=1).sha256
    assert memory.sha256 != making.random_adapter(seed=2).sha256
