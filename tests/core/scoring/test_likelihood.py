"""Log-likelihoods: of continuations that share a prompt, and added up over systems."""

import itertools
import math

import making
import pytest
import torch
from words import count_calls, word_tokenizer

from loraprobe.composition import Composition
from loraprobe.errors import BaseError
from loraprobe.routing.scored import Arrow
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.likelihood import can_share, likelihood

PROMPTS = ["who is the mayor of ulm ?", "ada lives in", "", "the mayor of ulm is bo . who is cy ?"]
CHOICES = ["bo", "cy lives", "cy is", "bo of the", "cy is in the ulm ."]
PAIRS = list(itertools.product(PROMPTS, CHOICES))


def sliding():
    """A model whose cache forgets: its prompts cannot be shared."""
    return making.tiny_model("Mistral", sliding_window=4)


MODELS = {"llama": making.tiny_llama, "gpt2": making.tiny_gpt2, "sliding": sliding}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    made = making.sharpened(MODELS[request.param]())
    made.shares = request.param != "sliding"
    return made


@pytest.mark.parametrize("batch", [1, 3, "auto"])
def test_sharing_changes_no_score(model, batch):
    tokenizer = word_tokenizer()
    assert can_share(model) == model.shares
    found = ModelScorer(model, tokenizer, batch_size=batch).loglikelihood(PAIRS)
    for pair, one in zip(PAIRS, found, strict=True):
        (alone,) = ModelScorer(model, tokenizer).loglikelihood([pair])
        assert one.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-5)
        assert one.top_logprobs == pytest.approx(alone.top_logprobs, abs=1e-5)
        assert one.rank == alone.rank


@pytest.mark.parametrize("weight", [math.nan, 1e30])
def test_logits_that_are_no_numbers_end_the_run(weight):
    """Weights of a base, or of an adapter beside it, that are no numbers or far too large."""
    model = making.tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[5:] = weight
        model.lm_head.weight *= 1e30
    scorer = ModelScorer(model, word_tokenizer())
    with pytest.raises(BaseError):
        scorer.loglikelihood(PAIRS[:3])


def test_prompts_are_read_once(model, monkeypatch):
    scorer = ModelScorer(model, word_tokenizer())
    rows = count_calls(scorer, monkeypatch)
    scorer.loglikelihood(PAIRS)
    # four prompts, then their four longer choices each, of which two share their tail; where
    # nothing can be shared, each prompt with each tail
    assert rows == ([4, 12] if model.shares else [16])


def test_a_composition_is_heard_in_both_passes(model):
    scorer = ModelScorer(model, word_tokenizer())
    shapes = {"model.layers.1.self_attn.q_proj": (16, 16)}
    if hasattr(model, "transformer"):
        shapes = {"transformer.h.1.attn.c_attn": (48, 16)}
    experts = tuple(making.random_adapter(f"e{i}", shapes, seed=i, scaling=0.1) for i in range(2))
    plain = scorer.loglikelihood(PAIRS)
    with scorer.with_composition(Composition("c", experts, Arrow())):
        found = scorer.loglikelihood(PAIRS)
        alone = [scorer.loglikelihood([pair])[0] for pair in PAIRS]
    for one, other, base in zip(found, alone, plain, strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)
        if one.tokens > 1:
            assert abs(one.logprob - base.logprob) > 1e-4


def test_statistics_do_not_depend_on_the_chunk_and_survive_impossible_tokens(monkeypatch):
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = float("-inf")
    gold = torch.arange(10, 17)
    whole = likelihood(logits, gold)
    monkeypatch.setattr("loraprobe.scoring.likelihood.CHUNK", 60)
    parts = likelihood(logits, gold)
    assert whole == parts and whole.tokens == 7
    for name in ("token_logprobs", "top_logprobs", "mean", "std", "rank"):
        assert all(map(math.isfinite, getattr(whole, name)))
