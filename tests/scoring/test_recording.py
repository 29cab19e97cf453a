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


def recorded(logits, names):
    recorder = Recorder("base", {"sum": ("a", "b"), "one": ("a",)})
    for name in names:
        with recorder.of(name):
            recorder.take(PAIR, logits[name])
    return recorder


def test_the_score_is_that_of_added_logits(logits):
    found = recorded(logits, ["a", "base", "b"]).logprobs(PAIR, GOLD)
    base, a, b = (logits[name].double() for name in ("base", "a", "b"))
    gold = torch.tensor(GOLD)[:, None]
    for name, added in (("sum", base + (a - base) + (b - base)), ("one", a)):
        wanted = added.log_softmax(-1).gather(-1, gold).sum().item()
        # Each of three sums is rounded twice to float16, of size below 64, so by at most 1/32.
        assert found[name] == pytest.approx(wanted, abs=TOKENS * 2 / 32)


def test_a_system_that_is_missing_leaves_no_score(logits):
    assert recorded(logits, ["base", "a"]).logprobs(PAIR, GOLD) is None
    assert recorded(logits, ["base", "a", "b"]).logprobs(("another", "pair"), GOLD) is None


def test_a_batch_that_is_computed_again_counts_once(logits):
    again = recorded(logits, ["base", "a", "a", "b", "base"]).logprobs(PAIR, GOLD)
    assert again == recorded(logits, ["base", "a", "b"]).logprobs(PAIR, GOLD)


def test_an_impossible_token_gives_no_nan(logits):
    logits["a"][:, 7] = float("-inf")
    found = recorded(logits, ["base", "a", "b"]).logprobs(PAIR, GOLD)
    assert all(score < 0 for score in found.values())
    unlikely = recorded(logits, ["base", "a", "b"]).logprobs(PAIR, [7, 7, 7])
    assert unlikely["one"] < -2000


def test_systems_that_are_not_asked_for_are_not_taken(logits):
    recorder = Recorder("base", {"one": ("a",)})
    for name in ("base", "a", "b"):
        with recorder.of(name):
            recorder.take(PAIR, logits[name])
    recorder.take(PAIR, logits["b"])
    assert recorder.bytes(3, 50) == 3 * 50 * 2
    wanted = logits["a"].log_softmax(-1).gather(-1, torch.tensor(GOLD)[:, None]).sum().item()
    assert recorder.logprobs(PAIR, GOLD)["one"] == pytest.approx(wanted, abs=0.2)
