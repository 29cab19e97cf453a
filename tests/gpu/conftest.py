"""Where the tests of this folder run: LORAPROBE_GPU=cuda (a card), pretended, or cpu."""

import os

import pytest
import torch
from pretend_cuda import pretended_cuda

WHERE = os.environ.get("LORAPROBE_GPU", "cuda")


@pytest.fixture
def where() -> str:
    """cuda, pretended or cpu."""
    return WHERE


@pytest.fixture
def device(where):
    """The device of a test, beside the CPU."""
    if where == "cpu":
        yield "cpu"
    elif where == "pretended":
        with pretended_cuda(devices=2):
            yield "cuda"
    else:
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; LORAPROBE_GPU=pretended or cpu runs without one")
        yield "cuda"


@pytest.fixture
def two_devices(device):
    """Two devices for the layers of one model; the second is the CPU where there is one card."""
    if device == "cpu":
        return ["cpu", "cpu"]
    return ["cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cpu"]


@pytest.fixture
def no_backward(where, monkeypatch):
    """Pretended devices have no backward pass, before which torch asks the driver: gates stay."""
    if where == "pretended":
        monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
