"""Experts and inputs by which gates of routers are checked against dense float64."""

import making
import torch
from making import random_adapter
from torch import Tensor

from loraprobe.composition import Composition, composed, prepared_layers, watched
from loraprobe.routing import ROUTERS
from loraprobe.scoring.forward import padded

PATH = "model.layers.0.mlp.up_proj"  # 16 -> 24
FOUR = [
    random_adapter(f"e{i}", {PATH: (24, 16)}, rank, seed=i, scaling=0.1, dtype=torch.float64)
    for i, rank in enumerate((2, 4, 3, 2))
]
DELTAS = [a.modules[PATH].delta() for a in FOUR]
X = torch.randn(9, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
MEANS = 0.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
STATE = {f"centroid.{PATH}": MEANS.float()}


def gates_of(spec: str, x: Tensor = X) -> Tensor:
    router = ROUTERS.make(spec)
    if router.needs_prompts:
        router = router.with_state(STATE)
    return prepared_layers(Composition("c", tuple(FOUR), router), torch.float64)[0].gates(x)


def shared_out(scores: Tensor, top_k: int, temperature: float = 1.0) -> Tensor:
    """Gates from scores [t, n], one token at a time."""
    gates = torch.zeros_like(scores)
    for row, own in zip(gates, scores, strict=True):
        chosen = sorted(range(len(own)), key=lambda i: -float(own[i]))[:top_k]
        row[chosen] = (own[chosen] / temperature).softmax(0)
    return gates


def arrows(x: Tensor = X) -> Tensor:
    return torch.stack([(x @ torch.linalg.svd(d).Vh[0]).abs() for d in DELTAS], dim=-1)


LIBRARY = tuple(
    random_adapter(f"e{i}", making.LLAMA, rank=2 + i, seed=20 + i, scaling=0.3) for i in range(3)
)
ROWS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [8, 9, 7, 9, 3]]


def composition(spec: str, adapters=LIBRARY) -> Composition:
    return Composition("c", tuple(adapters), ROUTERS.make(spec))


class Seen:
    """The gates of every module, as they were given in the passes so far."""

    def __init__(self) -> None:
        self.gates: dict[str, list[Tensor]] = {}

    def __call__(self, path, present, gates) -> None:
        self.gates.setdefault(path, []).append(gates.clone())


def one_pass(model, spec, rows=ROWS[:1], adapters=LIBRARY):
    seen, (ids, mask) = Seen(), padded(rows, 0, "right")
    with torch.no_grad(), composed(model, composition(spec, adapters), seen):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen.gates


def of_whole_prompt(model, spec: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a router with per=sequence: the gates [tokens, 3] of a prompt in the first module, those
    of another prompt's first token, and the means over the prompt of Arrow's and SpectR's scores
    [3], computed one token at a time from what reaches that module."""
    inputs = {}
    with (
        torch.no_grad(),
        watched(model, composition(spec).experts, lambda p, x, y: inputs.update({p: x})),
    ):
        model(input_ids=torch.tensor(ROWS[:1]))
    path = "model.layers.0.self_attn.q_proj"  # nothing is adapted before it
    deltas = [a.modules[path].to(torch.float64).delta() for a in LIBRARY]
    x = inputs[path][0]
    arrow = torch.stack([(x @ torch.linalg.svd(d).Vh[0]).abs().mean() for d in deltas])
    length = torch.stack([(x @ d.T).norm(dim=-1).mean() for d in deltas])
    found = one_pass(model, spec, [*ROWS[:1], ROWS[1]])[path][0]
    return found[0], found[1, 0], arrow, length
