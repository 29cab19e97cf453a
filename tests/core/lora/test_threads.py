"""Pieces of work on several threads come back in order."""

import pytest
import torch

from loraprobe.lora.threads import in_order


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_keep_their_order_and_the_number_of_threads():
    taken = []
    items = (taken.append(i) or i for i in range(50))
    found = in_order(lambda i: (i, torch.get_num_threads()), items)
    assert next(found) == (0, 1)
    assert len(taken) < 10  # not all are read at once
    assert [i for i, _ in found] == list(range(1, 50))
    assert torch.get_num_threads() == 3


def test_an_error_in_a_worker_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // (5 - i), range(10)))
