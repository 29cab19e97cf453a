"""A tensor of a wrong shape fails under pytest, in every module that is checked, and only there."""

from dataclasses import replace

import pytest
import torch
from forks import Fork
from jaxtyping import TypeCheckError
from making import random_update

from loraprobe.lora.grams import gram_matrices, own_blocks
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import Stacked
from loraprobe.merging import METHODS
from loraprobe.routing import ROUTERS


def mismatched() -> None:
    """Factors of ranks 2 and 3: no update has them."""
    LowRank(torch.zeros(2, 5), torch.zeros(4, 3))


def test_factors_of_unequal_rank_are_no_update():
    LowRank(torch.zeros(2, 5), torch.zeros(4, 2))
    with pytest.raises(TypeCheckError):
        mismatched()


def test_a_joint_has_one_number_of_modules_and_adapters():
    (joint,) = gram_matrices([{"m": random_update(4, 5)}, {"m": random_update(4, 5, seed=1)}])
    with pytest.raises(TypeCheckError):
        replace(joint, scaling=joint.scaling[:, :1])
    with pytest.raises(TypeCheckError):
        replace(joint, grams_in=joint.grams_in.float())
    with pytest.raises(TypeCheckError):
        own_blocks(joint.grams_in[:, :1])


def test_matrices_of_a_space_fit_its_bases():
    Stacked(torch.zeros(3, 2, 4), torch.zeros(9, 2), torch.zeros(8, 4))
    with pytest.raises(TypeCheckError):
        Stacked(torch.zeros(3, 2, 4), torch.zeros(9, 4), torch.zeros(8, 2))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_takes_one_weight_a_delta(name):
    method, deltas = METHODS.make(name), torch.randn(2, 4, 4)
    masks = [torch.Generator().manual_seed(i) for i in range(2)]
    assert method(deltas, torch.ones(2), masks).shape == (4, 4)
    with pytest.raises(TypeCheckError):
        method(deltas, torch.ones(3), masks)
    with pytest.raises(TypeCheckError):
        method(deltas[0], torch.ones(2), masks)


def test_gates_are_checked_where_they_are_made_and_where_they_are_asked():
    experts = [random_update(4, 5, seed=i) for i in range(3)]
    gates = ROUTERS.make("arrow").gates("m", experts, range(3), 3)
    assert gates(torch.randn(2, 7, 5)).shape == (2, 7, 3)
    with pytest.raises(TypeCheckError):
        gates(torch.zeros(2, 7, 5, dtype=torch.int64))
    with pytest.raises(TypeCheckError):
        ROUTERS.make("constant").gates("m", experts[0], [0], 1)


def test_users_do_not_pay_for_the_check(tmp_path):
    code, _, error = Fork(mismatched, tmp_path / "said").end()  # as loraprobe is without pytest
    assert code == 0, error
