"""A base, adapters and items for the benchmarks of evaluation.

Without --model the base is a Llama of 10 million random weights with the shipped world's tokenizer
(its answers do not matter here), and the adapters are peft's, of rank 16 on all linear layers. The
prompts are the shipped world's questions after zero to six examples, so that lengths differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

NEW_TOKENS = 8


def world() -> Path:
    """The shipped world."""
    import loraprobe

    return Path(loraprobe.__file__).parent / "demo/small-world"


def make_base(directory: str) -> str:
    """A random Llama with the shipped tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(world() / "base")
    torch.manual_seed(0)
    size = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        **size,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_adapter(base: str, directory: str, seed: int) -> str:
    """A random adapter as peft writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(directory)
    return directory


def make_items(count: int) -> list[dict[str, Any]]:
    """Questions of the shipped world behind 0 to 6 examples, with four choices."""
    lines = (world() / "tasks/newcomers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [
        row["answer"] if isinstance(row["answer"], str) else row["answer"][0] for row in rows
    ]
    found = []
    for i in range(count):
        shots = [(i + k) % len(rows) for k in range(1, 1 + i % 7)]
        before = "".join(f"{rows[s]['prompt']} {answers[s]}\n" for s in shots)
        own = answers[i % len(rows)]
        others = list(dict.fromkeys(answer for answer in answers if answer != own))
        choices = [own, *(others[(i + k) % len(others)] for k in range(3))]
        order = [(k + i) % 4 for k in range(4)]
        choices = [choices[k] for k in order]
        found.append(
            {
                "prompt": before + rows[i % len(rows)]["prompt"],
                "answer": own,
                "choices": choices,
                "gold": choices.index(own),
            }
        )
    return found


def systems(adapters: list[str]) -> list[Any]:
    """Each adapter alone, as a composition."""
    import loraprobe
    from loraprobe.composition import Composition
    from loraprobe.routing.constant import ConstantGates

    return [
        Composition(f"s{n}", (loraprobe.load(path),), ConstantGates((1.0,)))
        for n, path in enumerate(adapters)
    ]


def scorer_of(base: str) -> Any:
    """A ModelScorer over the base on the CPU in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraprobe.scoring import ModelScorer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return ModelScorer(model, AutoTokenizer.from_pretrained(base))


def ask(scorer: Any, compositions: list[Any], what: Any) -> list[Any]:
    """Calls `what(scorer)` under every composition; the results in order."""
    found = []
    for composition in compositions:
        with scorer.with_composition(composition):
            found.append(what(scorer))
    return found


def arguments(doc: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark of evaluation."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--systems", type=int, default=3)
    return parser


@contextmanager
def made(options: argparse.Namespace) -> Iterator[tuple[str, list[str], list[dict[str, Any]], str]]:
    """The base, the adapters, the items, and a directory for more."""
    with tempfile.TemporaryDirectory() as scratch:
        base = options.model or make_base(f"{scratch}/base")
        adapters = [make_adapter(base, f"{scratch}/adapter{n}", n) for n in range(options.systems)]
        print(
            f"{options.systems} systems, {options.items} items, {torch.get_num_threads()} threads, "
            f"base {options.model or 'random Llama'}"
        )
        yield base, adapters, make_items(options.items), scratch
