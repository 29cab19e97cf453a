"""What a composition adds is computed on the device of its layer, which is tested without a card.

The layers are on torch's device `meta`. torch's fake tensors have no values, and an operation on
those of two devices fails as it does on a card.
"""

from types import SimpleNamespace

import pytest
import torch
from test_gpu_parity import CASES, ROUTED
from torch._subclasses.fake_tensor import FakeTensorMode
from words import PROMPTS, word_tokenizer

from loraprobe.composition import Composition, composed
from loraprobe.routing import ROUTERS
from loraprobe.scoring import ModelScorer

NAMES = [*(f"router {spec}" for spec in ROUTED), "merge uniform", "rslora", "bias of lora_B"]
NAMES += ["embedding", "embedding, routed", "Conv1D", "fused layers, routed"]


@pytest.mark.parametrize("name", NAMES)
def test_factors_and_gates_are_on_the_device_of_their_layer(tmp_path, name):
    case = CASES[name]
    model, adapters = case.model(), tuple(case.experts(tmp_path))
    router = ROUTERS.make(case.router)
    if router.needs_prompts:
        prompts = {a.name: PROMPTS[i::3] for i, a in enumerate(adapters)}
        router = router.fit(ModelScorer(model, word_tokenizer()), adapters, prompts)
    for module in model.to("meta").modules():  # as accelerate says where a module computes
        module._hf_hook = SimpleNamespace(execution_device="meta")
    with (
        torch.no_grad(),
        composed(model, Composition("c", adapters, router)),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        logits = model(input_ids=torch.ones(2, 5, dtype=torch.long, device="meta")).logits
    assert logits.device.type == "meta"
