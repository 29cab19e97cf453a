"""Sums of log-probabilities against the logits of all systems added in one batch."""

from __future__ import annotations

import pytest
import torch

from loraprobe.scoring import Recorder

VOCABULARY, TOKENS = 50, 3
PAIR = ("prompt", "continuation")
GOLD = [4, 0, 49]


@pytest.fixture
def logits():
    draws = torch.Generator().manual_seed(0)
    return {
        name: 4 * torch.randn(TOKENS, VOCABULARY, generator=draws) for name in ("base", "a", "b")
    }


def recorded(logits, names, adapters=("a", "b")):
    recorder = Recorder("base", adapters)
    for name in names:
        with recorder.of(name):
            recorder.take(PAIR, logits[name])
    return recorder


@pytest.mark.parametrize("adapters", ["ab", "a"])
def test_the_score_is_that_of_added_logits(logits, adapters):
    found = recorded(logits, ["a", "base", "b"], adapters).logprob(PAIR, GOLD)
    base = logits["base"].double()
    added = base + sum(logits[name].double() - base for name in adapters)
    wanted = added.log_softmax(-1).gather(-1, torch.tensor(GOLD)[:, None]).sum().item()
    # Each of three sums is rounded twice to float16, of size below 64, so by at most 1/32.
    assert found == pytest.approx(wanted, abs=TOKENS * 2 / 32)


def test_a_system_that_is_missing_leaves_no_score(logits):
    assert recorded(logits, ["base", "a"]).logprob(PAIR, GOLD) is None
    assert recorded(logits, ["base", "a", "b"]).logprob(("another", "pair"), GOLD) is None


def test_a_batch_that_is_computed_again_counts_once(logits):
    again = recorded(logits, ["base", "a", "a", "b", "base"]).logprob(PAIR, GOLD)
    assert again == recorded(logits, ["base", "a", "b"]).logprob(PAIR, GOLD)


def test_an_impossible_token_gives_no_nan(logits):
    logits["a"][:, 7] = float("-inf")
    assert recorded(logits, ["base", "a", "b"]).logprob(PAIR, GOLD) < 0
    assert recorded(logits, ["base", "a"], "a").logprob(PAIR, [7, 7, 7]) < -2000


def test_what_no_system_scored_is_not_taken(logits):
    recorder = recorded(logits, ["base", "a"], "a")
    once = recorder.logprob(PAIR, GOLD)
    recorder.take(PAIR, logits["b"])
    assert recorder.logprob(PAIR, GOLD) == once
