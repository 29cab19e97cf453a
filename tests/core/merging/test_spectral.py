"""The space knots against algebra written out in numpy, and methods of singular vectors, slerp and
model_stock against what other projects give on the same deltas (tests/core/vectors/spectral.json).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from making import random_update
from merges import F64, adapters_of, close, delta, merge, sources, ties_dense, trimmed

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import knots
from loraprobe.merging import METHODS

PEERS = json.loads((Path(__file__).parents[1] / "vectors" / "spectral.json").read_text())
INSTALLED = [v for v in PEERS["vectors"] if "masks" in v or v["method"] in METHODS]


def dense_of(adapters: list[Adapter]) -> list[np.ndarray]:
    return [delta(adapter).numpy() for adapter in adapters]


# What other projects give.


@pytest.mark.parametrize(
    "vector", INSTALLED, ids=lambda v: f"{v['project']}: {v['method']}: {v['call']}"
)
def test_parity_with_other_projects(vector):
    updates = [
        LowRank(torch.tensor(u["A"], dtype=F64), torch.tensor(u["B"], dtype=F64), u["scaling"])
        for u in PEERS["updates"][vector["updates"]]
    ]
    expected = np.array(vector["output"])
    limit = vector.get("tolerance", 1e-7)
    if "masks" in vector:  # random there: their masks on our matrices
        stacked = knots(updates)
        kept = torch.tensor(vector["masks"]) * stacked.matrices / 0.6
        ours = stacked.back(kept.sum(0)).delta().numpy()
    else:
        given = {key: vector[key] for key in ("method", "weights", "space")}
        merged = merge(adapters_of(updates), allow=["no-effect"], **given)
        ours = delta(merged.adapter).numpy()
    assert np.linalg.norm(ours - expected) < limit * np.linalg.norm(expected)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_model_stock_of_equal_adapters_is_that_adapter(n):
    twins = [adapter_of(f"a{i}", {"up": random_update(9, 8, 3, 1, 0.5, F64)}) for i in range(n)]
    close(merge(twins, "model_stock").adapter, delta(twins[0]).numpy())


# knots


def test_ties_in_knots_is_ties_on_the_rows_of_s_v():
    adapters = sources(out=12, inp=10)
    deltas = dense_of(adapters)
    U, S, _ = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    U = U[:, : int((S > 1e-9).sum())]
    parts = [trimmed(torch.as_tensor(U.T @ d), 0.3) for d in deltas]
    expected = U @ ties_dense(parts, [1.0] * 3, "peft").numpy()
    merged = merge(adapters, "ties:density=0.3", space="knots")
    close(merged.adapter, expected)
    assert merged.config.space == "knots" and merged.rank == np.linalg.matrix_rank(expected) <= 9
    cut = merge(adapters, "ties:density=0.3", space="knots", rank=4)
    assert cut.rank == 4
    tail = np.linalg.svd(expected)[1]
    assert cut.compression_error == pytest.approx(
        float(np.linalg.norm(tail[4:]) / np.linalg.norm(tail)), rel=1e-6
    )
