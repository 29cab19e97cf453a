"""Where the tests of this folder run: LORAPROBE_GPU=cuda (a card), or cpu, to check them alone."""

import os

import pytest
import torch


@pytest.fixture
def device():
    """The device of a test, beside the CPU."""
    if os.environ.get("LORAPROBE_GPU") == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; LORAPROBE_GPU=cpu runs without one")
    return "cuda"


@pytest.fixture
def two_devices(device):
    """Two devices for the layers of one model; the second is the CPU where there is one card."""
    if device == "cpu":
        return ["cpu", "cpu"]
    return ["cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cpu"]
