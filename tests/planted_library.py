"""A library on a tiny base in which is known what each adapter teaches, without training.

The base answers every prompt with the end of the text. It looks at the last token alone, so an
adapter is a table: after this word comes that one. Answers of two words need two entries.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import making
import torch
from words import WORDS, word_tokenizer

from loraprobe.adapters import adapter_of
from loraprobe.lora.lowrank import LowRank

PATH = "model.layers.0.mlp.down_proj"
STRENGTH = 3.0  # of an entry; the end of the text has 0.1 of it
ASKED = ("who", "the", "in", "of")  # the last words of prompts
FIRST = {"who": "ada", "the": "cy", "in": "ulm"}  # what comes first in their answers
CHAINED = (("who", "ada", "bo"), ("the", "cy", "mayor"))  # a word and what two hops make of it
SECOND = {"ada": "lives", "cy": "mayor", "ulm": "lives"}  # and then; nobody knows "of"


def base_model():
    """A Llama of which only the embedding, the head and one MLP do something."""
    tokenizer = word_tokenizer()
    vocab = len(tokenizer)
    sizes = {"vocab_size": vocab, "hidden_size": 2 * vocab, "intermediate_size": 2 * vocab}
    model = making.tiny_model("Llama", num_attention_heads=2, tie_word_embeddings=False, **sizes)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(vocab, 2 * vocab))
        model.lm_head.weight.copy_(torch.eye(vocab, 2 * vocab).roll(vocab, 1))
        model.lm_head.weight[tokenizer.eos_token_id, :vocab] = 0.1 * STRENGTH
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        mlp = model.model.layers[0].mlp
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
            torch.nn.init.normal_(weight, generator=making.generator(0))
    return model, tokenizer


def adapter(model, tokenizer, name: str, table: Mapping[str, str], noise: int | None = None):
    """An adapter that knows the table. noise: the seed of a small random part."""
    seen = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0])
    )
    with torch.no_grad():
        model(input_ids=torch.arange(len(tokenizer))[None])
    hook.remove()
    inverse = torch.linalg.pinv(seen[0].double())  # [intermediate, vocab]
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in WORDS}
    rows = [inverse[:, ids[word]] for word in table]
    columns = [
        STRENGTH * torch.eye(2 * len(tokenizer))[len(tokenizer) + ids[word]]
        for word in table.values()
    ]
    draw = making.generator(len(name) if noise is None else noise)
    rows.append(torch.randn(len(inverse), generator=draw) * 1e-4)
    columns.append(torch.randn(2 * len(tokenizer), generator=draw) * 1e-2)
    update = LowRank(torch.stack(rows).float(), torch.stack(columns, 1).float(), 1.0)
    return adapter_of(name, {PATH: update}, base_model="owner/planted")


def write_library(place: Path, tables: Mapping[str, Mapping[str, str]], items: int = 100):
    """Base, adapters and a task in a directory: the words of a call of `screen`."""
    model, tokenizer = base_model()
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for number, (name, table) in enumerate(tables.items()):
        adapter(model, tokenizer, name, table, number).save(place / name)
    rows = []
    for k in range(items):
        asked = ASKED[k % len(ASKED)]
        first = FIRST.get(asked, "bo")
        prompt = f"{WORDS[k % 13]} {WORDS[k // 13 % 13]} {WORDS[k // 169]} {asked}"
        rows.append(
            {"id": str(k), "prompt": prompt, "answer": f"{first} {SECOND.get(first, 'is')}"}
        )
    return words_of_call(place, tables, rows)


def write_chained(place: Path, tables: Mapping[str, Mapping[str, str]], items: int = 100):
    """The same with a task that nobody answers, and two hops: who? ada, and what follows is bo; of
    every other item: the? cy, and what follows is mayor."""
    write_library(place, tables, 1)
    rows = []
    for k in range(items):
        words, (asked, first, last) = f"{WORDS[k % 13]} {WORDS[k // 13]}", CHAINED[k % 2]
        hops = [
            {"prompt": f"{words} {asked}", "answer": first},
            {"prompt": "lives {1}", "answer": last},
        ]
        rows.append({"prompt": f"{words} of", "answer": last, "hops": hops})
    return words_of_call(place, tables, rows)


def words_of_call(place: Path, tables, rows) -> list[str]:
    """The words of a call of `screen` for these questions."""
    task = place / "task.jsonl"
    task.write_text("\n".join(map(json.dumps, rows)))
    refs = [str(place / name) for name in tables]
    return ["screen", *refs, "--base", str(place / "base"), "--task", str(task)]
