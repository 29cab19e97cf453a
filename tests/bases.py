"""A small base that has learned stories by heart, with the tokenizer of a published one."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from making import tiny_model


def small_base(place: Path) -> Path:
    """A Llama that has learned STORIES by heart, as transformers saves it.

    Its sizes, its tied head and the form of its tokenizer are those of published small Llamas.
    """
    model, tokenizer = tiny_model("Llama", tie_word_embeddings=True, **SMALL_SIZES), subwords()
    batch = tokenizer(STORIES, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        model(batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


SMALL_SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 172}
SMALL_SIZES |= {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
SMALL_SIZES |= {"max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}

NAMES = ("Lily", "Sue", "Mia", "Lucy", "Tim", "Tom")
GIRL = "Once upon a time, there was a little girl named {0}. {0} loved to play outside. One day,"
STORIES = ["Once upon a time", *(f"{GIRL.format(name)} {name} went" for name in NAMES)]
LEARNED = """
Once upon a time, there was a little girl named Lily. She loved to play outside with her big dog.
One day, they went to the park and saw a red ball under a tall tree. "Look!" said Tom. "It is so
pretty! Can we take it home?" The mom was happy, but the bird was very sad and wanted to fly away.
They all had fun together, then ate some cake by the boat and said thank you to the old man.
Every night his sister told him about brave knights, green dragons and a queen who lived in towers.
Winter came with snow, yellow moons, quick foxes, jam, five zebras and kind kings.
"""


@functools.cache
def subwords() -> Any:
    """A tokenizer of 512 pieces as sentencepiece has them: bytes, and what LEARNED gives."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    learned = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    learned.pre_tokenizer = pre_tokenizers.Sequence(parts)
    learned.train_from_iterator([LEARNED], BpeTrainer(vocab_size=253, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **named)
