"""Scoring: where texts begin, join and end."""

import making
import pytest
from words import chained, count_calls, word_tokenizer

from loraprobe.errors import TaskError
from loraprobe.scoring import ModelScorer, joined
from loraprobe.scoring.generation import LOOP, REPEATED, period


@pytest.fixture(scope="module")
def words():
    return word_tokenizer()


def test_generation_ends_at_eos_and_at_a_newline_after_words(words):
    ids = words.get_vocab()
    eos = chained([ids["ada"], ids["bo"], ids["cy"], ids["</s>"], ids["ulm"]])
    assert ModelScorer(eos, words).generate(["ada", "bo"]) == ["bo cy", "cy"]
    lines = chained([ids["ada"], ids["\n"], ids["bo"], ids["cy"], ids["!\n"], ids["ulm"]])
    scorer = ModelScorer(lines, words)
    assert scorer.generate(["ada"], max_new_tokens=5) == ["\n bo cy !\n ulm"]
    assert scorer.generate(["ada"], until_newline=True) == [" bo cy !"]
    assert scorer.generate(["ulm", "cy"], until_newline=True, max_new_tokens=3)[1] == "!"


def test_replies_tell_whether_the_limit_cut_them(words):
    ids = words.get_vocab()
    chain = chained([ids["ada"], ids["bo"], ids["cy"], ids["</s>"], ids["ulm"]])
    scorer = ModelScorer(chain, words, batch_size=4)
    prompts = ["ada", "bo", "cy"]  # replies of three, two and one tokens with the end
    for limit, cut in [(1, (True, True, False)), (2, (True, False, False)), (3, (False,) * 3)]:
        found = scorer.write_all(prompts, max_new_tokens=limit)
        assert tuple(reply.cut for reply in found) == cut
        alone = [scorer.write_all([prompt], max_new_tokens=limit)[0] for prompt in prompts]
        assert found == alone
    lines = ModelScorer(chained([ids["ada"], ids["bo"], ids["\n"], ids["cy"]]), words)
    for line, cut in [(True, False), (False, True)]:
        (reply,) = lines.write_all(["ada"], max_new_tokens=2, until_newline=line)
        assert reply.cut == cut
    assert lines.write_all(["ada"], max_new_tokens=1, until_newline=True)[0].cut


@pytest.mark.parametrize("eos", ["</s>", None])
def test_a_reply_may_end_with_the_line_that_completes_it(words, monkeypatch, eos):
    words = word_tokenizer(eos_token=eos)
    ids = words.get_vocab()
    chain = [ids[w] for w in ("ada", "bo", "\n", "cy", "!\n", "ulm", ".", "ulm")]
    scorer = ModelScorer(chained(chain), words)
    whole, _ = scorer.write_all(["ada", "ulm"], max_new_tokens=6)
    rows = count_calls(scorer, monkeypatch)
    found = scorer.write_all(["ada", "ulm"], max_new_tokens=6, until=lambda text: "cy" in text)
    assert found[0].text == whole.text[: len(found[0].text)] and not found[0].cut
    assert found[0].text.count("\n") == 2 and found[0].text.endswith("\n")
    assert found[1].cut, "a text without an end goes on to the limit"
    rows.clear()
    scorer.write_all(["ada"], max_new_tokens=6, until=lambda text: "cy" in text)
    assert len(rows) == 4, "nothing is computed after the end"


def test_rows_that_have_ended_leave_their_batch(words, monkeypatch):
    ids = words.get_vocab()
    chain = [ids[w] for w in ("ada", "bo", "cy", "ulm", "is", "</s>")]
    scorer = ModelScorer(chained(chain), words, batch_size=4)
    rows = count_calls(scorer, monkeypatch)
    prompts = ["is", "ulm", "cy", "ada"]  # replies of none, one, two and four tokens
    assert scorer.generate(prompts, max_new_tokens=9) == ["", "is", "ulm is", "bo cy ulm is"]
    assert rows == [4, 3, 2, 1, 1]


def test_a_text_that_repeats_itself_is_filled_up(words, monkeypatch):
    """As the model would write it, in fewer steps; the limit of tokens has cut it."""
    ids = words.get_vocab()
    chain = chained([ids[w] for w in ("ada", "bo", "cy", "ulm", "ada")])
    scorer = ModelScorer(chain, words)
    rows = count_calls(scorer, monkeypatch)
    monkeypatch.setattr("loraprobe.scoring.generation.LOOP", 24)
    found = scorer.write_all(["ada"], max_new_tokens=60)[0]
    steps = len(rows)
    assert steps == 4 * REPEATED < 60 and found.cut
    monkeypatch.setattr("loraprobe.scoring.generation.LOOP", 1000)
    assert scorer.write_all(["ada"], max_new_tokens=60)[0] == found
    assert len(rows) == steps + 60


@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        ([5] * LOOP, 1),
        ([1, 2, 3, 4] * (LOOP // 4), 4),
        ([0] * 16 + [*range(1, 9)] * REPEATED, 8),
        ([0, *[5] * (LOOP - 1)], 0),  # not over so many tokens
        ([*range(LOOP // 4)] * 4, 0),  # not so often
        ([5] * (LOOP + 1), 1),
        ([], 0),
    ],
)
def test_what_counts_as_a_repetition(tokens, size):
    assert period(tokens) == size


def test_end_tokens_of_the_model_count_where_the_tokenizer_knows_them(words):
    ids = words.get_vocab()
    model = chained([ids["ada"], ids["bo"], ids["cy"], ids["ulm"]])
    model.generation_config.eos_token_id = [ids["bo"]]  # an ordinary word: a stale default
    assert ModelScorer(model, words).generate(["ada"], max_new_tokens=2) == ["bo cy"]
    tokenizer = word_tokenizer(additional_special_tokens=["bo"])
    assert ModelScorer(model, tokenizer).generate(["ada"], max_new_tokens=2) == [""]


def test_padding_needs_no_pad_token(words):
    assert words.pad_token_id is None
    tokenizer = word_tokenizer(eos_token=None)
    model = chained([5, 6, 7, 8])
    assert (
        ModelScorer(model, tokenizer).generate(["ada", "the of bo"], max_new_tokens=2)[0] == "bo cy"
    )


@pytest.mark.parametrize(
    ("prompt", "continuation", "wanted"),
    [
        ("Who?", "Bo", " Bo"),
        ("Who? ", "Bo", "Bo"),
        ("Who?\n", "Bo", "Bo"),
        ("", "Bo", "Bo"),
        ("Who?", " Bo", " Bo"),
        ("Who? ", " Bo", "Bo"),
        ("He said (", "no", "no"),
        ("Yes", ".", "."),
        ("首都は", "東京", "東京"),
        ("Costs $", "18", "18"),
        ("Costs", "$18", " $18"),
    ],
)
def test_a_space_joins_prompt_and_continuation(prompt, continuation, wanted):
    assert joined(prompt, continuation) == wanted


def seam(scorer, prompt, continuation):
    ((ids, start),) = scorer.encoder.pairs([(prompt, continuation)])
    return scorer.tokenizer.convert_ids_to_tokens(ids), start


def bytewise_tokenizer(*pieces):
    """A tokenizer like GPT-2's, of bytes and these pieces."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    merges = {(piece[:k], piece[k]): None for piece in pieces for k in range(1, len(piece))}
    merges |= {("..", ".."): None}
    joined_pieces = [left + right for left, right in merges]
    vocab = dict.fromkeys(["<|endoftext|>", *sorted(ByteLevel.alphabet()), *joined_pieces])
    model = BPE({piece: number for number, piece in enumerate(vocab)}, list(merges))
    made = Tokenizer(model)
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end)


def test_the_seam_of_a_subword_tokenizer():
    tokenizer = bytewise_tokenizer(*"ĠBob Ġis Ġit Ġno Who Bob good Hello () ...".split())
    scorer = ModelScorer(making.tiny_gpt2(vocab=len(tokenizer)), tokenizer)
    assert seam(scorer, "Who is it?", "Bob") == (["Who", "Ġis", "Ġit", "?", "ĠBob"], 4)
    # the space at the prompt's end belongs to the continuation's first token
    assert seam(scorer, "Who is it? ", "Bob") == (["Who", "Ġis", "Ġit", "?", "ĠBob"], 4)
    # and so does a space that stays a token of its own
    assert seam(scorer, "Who  ", "Bob") == (["Who", "Ġ", "ĠBob"], 1)
    # "(" + "(" is one token of its own: the continuation begins with the merged one
    assert seam(scorer, "f(", "()") == (["f", "(", "()"], 2)
    tokens, start = seam(scorer, "good", ".... no")
    assert tokens[start:] == ["....", "Ġno"]
    merged, start = seam(scorer, "Hello.", "..")
    assert merged == ["Hello", "..."] and start == 1
    # nothing before it: the model needs a token to start from
    assert seam(scorer, "", "Bob") == (["<|endoftext|>", "Bob"], 1)
    with pytest.raises(TaskError, match="continuation of prompt 'Who' is empty"):
        seam(scorer, "Who", " ")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} who {{ m['content'] }} .{% endfor %}"
    "{% if add_generation_prompt %} is {% endif %}"
)


def test_chat_template_is_filled_without_a_second_bos():
    model = making.tiny_llama()
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    chat = ModelScorer(model, tokenizer).with_template(True)
    assert chat.chat_template and not chat.with_template(False).chat_template
    (ids,) = chat.encoder.prompts(["ada lives"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "who", "ada", "lives", ".", "is"]
    tokens, start = seam(chat, "ada lives", " ulm")
    assert tokens == ["<s>", "who", "ada", "lives", ".", "is", "ulm"] and start == 6
    assert tokenizer.convert_ids_to_tokens(chat.encoder.opening()) == ["<s>", "who"]
    plain = ModelScorer(model, tokenizer).generate(["who ada lives . is"], max_new_tokens=5)
    assert chat.generate(["ada lives"], max_new_tokens=5) == plain
    alone, plain = (
        chat.encoded([("", "the fox")]),
        chat.with_template(False).encoded([("", "the fox")]),
    )
    assert alone == plain, "a text without a prompt is no turn"


def test_a_prompt_that_brings_its_own_bos_gets_no_second(words):
    scorer = ModelScorer(making.tiny_llama(), words)
    assert scorer.encoder.prompts(["<s> ada", "ada"]) == [[1, 5], [1, 5]]


def test_an_eos_that_the_tokenizer_appends_is_left_out():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    scorer = ModelScorer(making.tiny_llama(), tokenizer)
    assert scorer.encoder.prompts(["ada", ""]) == [[1, 5], [1]]
    assert scorer.encoder.pairs([("ada", "bo")]) == [([1, 5, 6], 2)]
