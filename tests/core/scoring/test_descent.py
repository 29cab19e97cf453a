"""The loop of AdamW, against its formula computed with numpy."""

from itertools import islice

import numpy as np
import torch

from loraprobe.scoring.descent import adamw

RATE, DECAY, CLIP, STEPS = 0.1, 0.01, 1.0, 7


def test_steps_are_those_of_the_formula():
    point = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([3.0, 0.2, 1.0], dtype=torch.float64)
    asked = []

    def descend():
        assert point.grad is None
        (scale * point**4).sum().backward()

    def factor(step):
        asked.append(step)
        return min(1.0, (step + 1) / 3)

    steps = adamw([point], descend, RATE, factor, clip=CLIP, decay=DECAY)
    assert [*islice(steps, STEPS)] == [*range(1, STEPS + 1)] and asked[:STEPS] == [*range(STEPS)]
    x, first, second = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3)
    for k in range(1, STEPS + 1):
        slope = 4 * scale.numpy() * x**3
        slope *= min(1.0, CLIP / (np.linalg.norm(slope) + 1e-6))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        rate = RATE * min(1.0, k / 3)
        away = first / (1 - 0.9**k) / (np.sqrt(second / (1 - 0.999**k)) + 1e-8)
        x = x * (1 - rate * DECAY) - rate * away
    np.testing.assert_allclose(point.detach().numpy(), x, rtol=1e-9)
