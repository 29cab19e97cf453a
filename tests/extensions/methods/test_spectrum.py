"""SpectR and LAG against dense float64."""

import making
import pytest
import torch
from gating import DELTAS, X, arrows, gates_of, of_whole_prompt, shared_out
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.routing import ROUTERS


def spectral(x: Tensor = X) -> Tensor:
    return torch.stack([(x @ delta.T).norm(dim=-1) for delta in DELTAS], dim=-1)


def flat(x: Tensor = X) -> Tensor:
    rows = []
    for delta in DELTAS:
        _, S, Vh = torch.linalg.svd(delta)
        rows.append((x @ Vh[: int((1e-9 * S[0] < S).sum())].T).norm(dim=-1))
    return torch.stack(rows, dim=-1)


@pytest.mark.parametrize("top_k", [1, 2, 4, 99])
def test_spectr_scores_are_norms_of_each_experts_output(top_k):
    found = gates_of(f"spectr:top_k={top_k},temperature=0.5")
    torch.testing.assert_close(found, shared_out(spectral(), top_k, 0.5), rtol=1e-9, atol=1e-9)


def test_flat_spectr_leaves_out_the_size_and_an_infinite_temperature_the_softmax():
    found = gates_of("spectr:spectrum=flat,top_k=3")
    torch.testing.assert_close(found, shared_out(flat(), 3), rtol=1e-9, atol=1e-9)
    alike = gates_of("spectr:spectrum=flat,top_k=3,temperature=inf")
    assert torch.equal(alike, (shared_out(flat(), 3) > 0).double() / 3)
    assert not torch.equal(flat().argmax(-1), spectral().argmax(-1))


@pytest.mark.parametrize(("preselect", "top_k"), [(2, 1), (2, 2), (3, 1), (1, 1), (2, 3)])
def test_lag_chooses_by_the_spectrum_among_those_that_arrow_has_kept(preselect, top_k):
    kept = shared_out(arrows(), preselect) > 0
    wanted = shared_out(spectral().masked_fill(~kept, float("-inf")), min(top_k, preselect))
    found = gates_of(f"lag:preselect={preselect},top_k={top_k}")
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    alike = gates_of(f"lag:preselect={preselect},top_k={top_k},temperature=inf")
    assert torch.equal(alike > 0, wanted > 0)
    torch.testing.assert_close(alike.sum(-1), torch.ones(9, dtype=torch.float64))


def test_lag_lies_between_arrow_and_spectr():
    assert torch.equal(gates_of("lag:preselect=1"), gates_of("arrow:top_k=1"))
    assert torch.equal(gates_of("lag:preselect=99"), gates_of("spectr:top_k=1"))
    assert not torch.equal(gates_of("arrow:top_k=1"), gates_of("spectr:top_k=1"))


def test_hard_takes_the_best_by_spectr_but_lag_ranks_by_two_scores():
    assert torch.equal(gates_of("hard:by=spectr"), gates_of("spectr:top_k=1"))
    with pytest.raises(UsageError, match="by is one of arrow, centroid, spectr"):
        ROUTERS.make("hard:by=lag")


@pytest.mark.parametrize("spec", ["spectr:spectrum=heavy", "lag:preselect=0", "lag:spectrum=x"])
def test_wrong_options_are_refused(spec):
    with pytest.raises(UsageError):
        ROUTERS.make(spec)


@pytest.mark.parametrize("spec", ["spectr:per=sequence", "lag:preselect=2,per=sequence"])
def test_a_prompt_is_decided_by_the_mean_of_its_tokens_scores(spec):
    model = making.tiny_llama(tied=False).double()
    found, other, arrow, length = of_whole_prompt(model, spec)
    if spec.startswith("lag"):
        length[arrow.argmin()] = -torch.inf
    wanted = shared_out(length[None], 1 if spec.startswith("lag") else 3)[0]
    torch.testing.assert_close(found, wanted.expand(7, 3), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(other, wanted)
