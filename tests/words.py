"""A word-level tokenizer, and models whose weights produce a fixed chain of words."""

import inspect
import itertools
import json

import making
import torch

WORDS = ["ada", "bo", "cy", "lives", "in", "ulm", "the", "mayor", "of", "is", "?", ".", "who"]


def word_tokenizer(**special):
    """A word-level tokenizer with BOS and EOS, like that of the small worlds."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "\n", "!\n", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(" ", "removed")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_world(root, make, adapters, items, tokenizer=None):
    """A base that `make` makes, with a tokenizer, adapters of it as peft writes them, and a task.

    adapters: name -> its config. items: the rows of task.jsonl.
    """
    make().save_pretrained(root / "base")
    (tokenizer or word_tokenizer()).save_pretrained(root / "base")
    for seed, (name, config) in enumerate(adapters.items(), 1):
        place = making.peft_adapter(root / name, make(), seed, **config)
        making.edit(place / "adapter_config.json", base_model_name_or_path=str(root / "base"))
    (root / "task.jsonl").write_text("\n".join(map(json.dumps, items)))
    return root


def silent(vocab: int = 40):
    """A tiny Llama whose embeddings, head and layers give nothing."""
    model = making.tiny_llama(vocab=vocab, tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def chained(chain: list[int], vocab: int = 40):
    """A tiny Llama that answers token chain[i] with chain[i + 1] in any context."""
    model = silent(vocab)
    with torch.no_grad():
        for i, (a, b) in enumerate(itertools.pairwise(chain)):
            model.model.embed_tokens.weight[a, i] = 1
            model.lm_head.weight[b, i] = 1
    return model


def count_calls(scorer, monkeypatch) -> list[int]:
    """Rows of every forward pass."""
    rows, real = [], scorer.model.forward

    def forward(*args, **kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        return real(*args, **kwargs)

    forward.__signature__ = inspect.signature(real)
    monkeypatch.setattr(scorer.model, "forward", forward)
    return rows


PROMPTS = [
    "ada lives in",
    "who is the mayor of ulm ?",
    "",
    "cy",
    "the mayor of ulm is",
    "bo is bo",
    "who",
    "ada lives in",
]
PAIRS = [
    ("ada lives in", "ulm"),
    ("who is the mayor of ulm ?", "bo"),
    ("", "ada lives"),
    ("the mayor of ulm is", "bo ."),
    ("the mayor of ulm is", "cy ."),
    ("the mayor of ulm is", "bo"),
    ("cy", "lives in ulm . who is ada ?"),
    ("ada lives in", "ulm"),
]
