"""The scorer: the same answer for every batch size, and the answer of the model itself."""

import making
import pytest
import torch
from composing import learnable, scene
from torch import Tensor
from words import PAIRS, PROMPTS, WORDS, count_calls, word_tokenizer

from loraprobe.composition import Composition, watched
from loraprobe.errors import TaskError, UsageError
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import Arrow
from loraprobe.scoring import ModelScorer, loss_with_gradients, read_texts
from loraprobe.scoring.forward import Batcher


@pytest.fixture(scope="module")
def words():
    return word_tokenizer()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request, words):
    """Rotary and absolute positions; random weights, so that every token matters."""
    model = making.tiny_llama() if request.param == "llama" else making.tiny_gpt2()
    return making.sharpened(model), words


@pytest.mark.parametrize("batch", [2, 3, 8, "auto"])
def test_every_batch_size_gives_the_same_score(tiny, batch):
    one, many = ModelScorer(*tiny, batch_size=1), ModelScorer(*tiny, batch_size=batch)
    assert many.generate(PROMPTS, max_new_tokens=9) == one.generate(PROMPTS, max_new_tokens=9)
    for a, b in zip(many.loglikelihood(PAIRS), one.loglikelihood(PAIRS), strict=True):
        assert a.token_logprobs == pytest.approx(b.token_logprobs, abs=1e-5)
        assert a.rank == b.rank
        assert a.std == pytest.approx(b.std, abs=1e-5)
    torch.testing.assert_close(
        many.first_token_distribution(PROMPTS), one.first_token_distribution(PROMPTS)
    )


def test_greedy_is_the_argmax_loop(tiny):
    model, tokenizer = tiny
    for prompt, text in zip(
        PROMPTS, ModelScorer(*tiny).generate(PROMPTS, max_new_tokens=6), strict=True
    ):
        ids = tokenizer(prompt)["input_ids"]
        new: list[int] = []
        while len(new) < 6:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def oracle(model, ids: list[int], start: int) -> list[Tensor]:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return [logits[i - 1].log_softmax(-1) for i in range(start, len(ids))]


def test_likelihood_is_the_models_own(tiny):
    model, tokenizer = tiny
    for (prompt, continuation), found in zip(
        PAIRS, ModelScorer(*tiny).loglikelihood(PAIRS), strict=True
    ):
        ids = tokenizer(f"{prompt} {continuation}".strip())["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        rows = oracle(model, ids, start)
        logprobs = [float(row[t]) for row, t in zip(rows, ids[start:], strict=True)]
        assert found.token_logprobs == pytest.approx(logprobs, abs=1e-4)
        assert found.logprob == pytest.approx(sum(logprobs), abs=1e-4)
        assert found.tokens == len(rows)
        assert found.per_token == pytest.approx(found.logprob / len(rows))
        assert found.top_logprobs == pytest.approx([float(r.max()) for r in rows], abs=1e-4)
        assert found.rank == tuple(
            int((row > row[t]).sum()) + 1 for row, t in zip(rows, ids[start:], strict=True)
        )
        mean = [float((row.exp() * row).sum()) for row in rows]
        second = [float((row.exp() * row**2).sum()) for row in rows]
        assert found.mean == pytest.approx(mean, abs=1e-4)
        std = [(s - m * m) ** 0.5 for s, m in zip(second, mean, strict=True)]
        assert found.std == pytest.approx(std, abs=1e-4)


def test_what_is_asked_twice_is_run_once(tiny, monkeypatch):
    scorer = ModelScorer(*tiny)
    rows = count_calls(scorer, monkeypatch)
    scorer.generate(["ada", "bo", "ada"] * 5, max_new_tokens=1)
    assert sum(rows) == 2
    rows.clear()
    # one pass serves all one-token choices of a prompt
    scorer.loglikelihood([("ada lives in", w) for w in WORDS[:10]] + [("bo lives in", "ulm")])
    assert sum(rows) == 2


@pytest.mark.parametrize("router", [ConstantGates(), Arrow(), Arrow(per="sequence")])
def test_what_all_prompts_begin_with_is_read_once(words, monkeypatch, router):
    """Unless gates are decided by passes that read whole prompts; no answer changes."""
    start = "the mayor of ulm is bo . "
    prompts = [start + end for end in ("who is cy ?", "ada lives in", "cy")]
    pairs = [(prompt, answer) for prompt in prompts for answer in ("bo", "ulm is cy")]
    scorer = ModelScorer(making.sharpened(making.tiny_llama()), words)
    experts = tuple(making.random_adapter(n, seed=i, scaling=2.0) for i, n in enumerate("ab"))
    with scorer.with_composition(Composition("c", experts, router)):
        texts = [scorer.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
        likely = [scorer.loglikelihood([pair])[0].logprob for pair in pairs]
        rows = count_calls(scorer, monkeypatch)
        assert scorer.generate(prompts, max_new_tokens=6) == texts
        shares = getattr(router, "per", "token") == "token"
        assert rows[:2] == ([1, 3] if shares else [3, 3])
        found = [one.logprob for one in scorer.loglikelihood(pairs)]
    assert found == pytest.approx(likely, abs=1e-5)


def test_the_models_generation_config_does_not_leak_in(tiny):
    from transformers import GenerationConfig

    model, _ = tiny
    scorer = ModelScorer(*tiny)
    wanted = scorer.generate(PROMPTS, max_new_tokens=8)
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        max_length=3,
        repetition_penalty=5.0,
        num_beams=2,
        suppress_tokens=[7],
        forced_eos_token_id=2,
        no_repeat_ngram_size=1,
    )
    try:
        assert scorer.generate(PROMPTS, max_new_tokens=8) == wanted
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config = before


def test_bad_calls_are_refused(words):
    with pytest.raises(UsageError, match="no chat template"):
        ModelScorer(making.tiny_llama(), words, chat_template=True)
    with pytest.raises(UsageError, match="max_new_tokens"):
        ModelScorer(making.tiny_llama(), words).generate(["ada"], max_new_tokens=0)


def test_the_models_context_is_respected(tiny):
    model, tokenizer = tiny
    scorer = ModelScorer(model, tokenizer, batch_size=4)
    full = " ".join(["ada"] * 63)  # and BOS: 64 positions, the last predicts one token
    near = " ".join(["bo"] * 60)
    texts = scorer.generate(["cy", near, full], max_new_tokens=12)
    alone = [scorer.generate([p], max_new_tokens=12)[0] for p in ("cy", near, full)]
    assert texts == alone
    assert [len(text.split()) <= most for text, most in zip(texts, (12, 4, 1), strict=True)]
    long = full + " ada"
    with pytest.raises(TaskError, match=r"'ada ada.*has 65 tokens.*holds 64"):
        scorer.generate(["cy", long])
    assert scorer.loglikelihood([(full, "bo")])[0].tokens == 1
    with pytest.raises(TaskError, match="holds 64"):
        scorer.loglikelihood([(full, "bo cy")])
    with pytest.raises(TaskError, match="holds 64"):
        scorer.first_token_distribution([long])


def test_batches_respect_the_budgets(monkeypatch):
    batcher = Batcher(torch.device("cpu"))
    monkeypatch.setattr("loraprobe.scoring.forward.TOKENS", {"cpu": (100, 120)})
    monkeypatch.setattr("loraprobe.scoring.forward.LOGITS", 1000)
    lengths = [3, 30, 20, 25, 200, 21, 22]
    batches = list(batcher.split(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches == [[4], [1, 3, 6], [5, 2, 0]]
    wide = list(batcher.split([10] * 4, [5] * 4, vocab=100))  # 5 positions * 100 tokens each
    assert [len(batch) for batch in wide] == [2, 2]
    # of 120 tokens that are read at once before others are written, or of those that fit in memory
    assert [len(batch) for batch in batcher.split([10] * 7, new=10)] == [6, 1]
    assert [len(batch) for batch in batcher.split([10] * 12, new=10, kept=180)] == [9, 3]


def test_the_model_is_left_as_it_was(tiny):
    model, _ = tiny
    scorer = ModelScorer(*tiny)
    wanted = scorer.generate(PROMPTS, max_new_tokens=4)
    model.train()
    model.lm_head.eval()
    try:
        assert scorer.generate(PROMPTS, max_new_tokens=4) == wanted
        assert model.training and not model.lm_head.training
        assert all(p.requires_grad for p in model.parameters())
    finally:
        model.eval()


def test_sampling_is_seeded_and_leaves_the_generator_alone(tiny):
    scorer = ModelScorer(*tiny)
    state = torch.get_rng_state()
    first = scorer.sample(20, seed=1, max_new_tokens=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == scorer.sample(20, seed=1, max_new_tokens=8)
    assert first != scorer.sample(20, seed=2, max_new_tokens=8)
    assert len(set(first)) > 5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "embedded"])
@pytest.mark.parametrize("batch", [1, 7, "auto"])
def test_the_loss_of_answers_and_its_slopes(kind, batch):
    """Of the likeliest answer of each item, by the token; slopes by differences of the loss."""
    scorer, adapters = scene(kind, batch)
    scorer.model.double()
    items = [PAIRS[:2], PAIRS[2:3], PAIRS[3:]]
    shares = [0.5, 0.25, 0.25]

    def loss(*gates: float) -> float:
        with scorer.with_composition(Composition("c", adapters, ConstantGates(gates))):
            likely = [scorer.loglikelihood(pairs) for pairs in items]
        best = (max(one.per_token for one in own) for own in likely)
        return -sum(share * one for share, one in zip(shares, best, strict=True))

    router, modes = learnable(0.7, 0.4), [m.training for m in scorer.model.modules()]
    with scorer.with_composition(Composition("learn", adapters, router)):
        found = loss_with_gradients(scorer, items, shares)
    assert found == pytest.approx(loss(0.7, 0.4), abs=1e-4)
    slopes = [loss(0.701, 0.4) - loss(0.699, 0.4), loss(0.7, 0.401) - loss(0.7, 0.399)]
    assert router.values.grad[0].tolist() == pytest.approx([s / 0.002 for s in slopes], rel=2e-2)
    assert all(parameter.grad is None for parameter in scorer.model.parameters())
    assert all(parameter.requires_grad for parameter in scorer.model.parameters())
    assert [m.training for m in scorer.model.modules()] == modes


def test_a_watched_model_says_what_it_says_and_is_left_as_it_was():
    scorer, adapters = scene("llama", 3)
    seen: dict[str, int] = {}
    masks = []
    before = scorer.generate(PROMPTS, max_new_tokens=4)

    def look(path, x, output):
        counted = masks[-1]
        assert x.shape[:2] == counted.shape == output.shape[:2]
        seen[path] = seen.get(path, 0) + int(counted.sum())

    with watched(scorer.model, adapters, look):
        read_texts(scorer, [*PROMPTS, "ada lives in ulm"], masks.append)
    assert set(seen) == set(making.LLAMA)
    rows = scorer.encoder.prompts([*dict.fromkeys(PROMPTS), "ada lives in ulm"])
    assert set(seen.values()) == {sum(map(len, rows))}
    assert scorer.generate(PROMPTS, max_new_tokens=4) == before
    assert not any(m._forward_hooks for m in scorer.model.modules())
