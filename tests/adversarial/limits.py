"""Input that demands endless time or memory: declared sizes, expressions, texts that multiply."""

import json
import os
from pathlib import Path
from typing import Any

import making

from adversarial import case, cases, timed
from adversarial.errors import (
    CONFIG,
    INDEX,
    REFUSED,
    TOKENIZER,
    ask,
    evaluated,
    inspected,
    tiny,
    told,
)
from loraprobe.base.quiet import quiet
from loraprobe.errors import TaskError
from loraprobe.tasks import answered, load_task

MANY = 10_000_000
SIZES: dict[str, dict[str, Any]] = {
    "layers": {"num_hidden_layers": MANY},
    "layers-half": {"num_hidden_layers": 1000},
    "layers-float": {"num_hidden_layers": 1e300},
    "vocabulary": {"vocab_size": 10**12},
    "hidden": {"hidden_size": 10**9},
    "intermediate": {"intermediate_size": 10**12},
    "head": {"head_dim": 10**12},
    "heads": {"num_attention_heads": 10**9},
    "experts": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": MANY},
    "nested": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text", "num_hidden_layers": MANY}},
    "vision": {"vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": MANY}},
}  # fmt: skip


@cases("base", SIZES)
def _(place: Path, changes: dict[str, Any]) -> str:
    return evaluated(tiny(place, **changes), names=CONFIG)


@case("base-nested-inspected")
def _(place: Path) -> str:
    return inspected(tiny(place, **SIZES["nested"]), names=CONFIG)


@case("positions")
def _(place: Path) -> str:
    return evaluated(tiny(place, max_position_embeddings=10**12))


@case("gpt2-positions")
def _(place: Path) -> str:
    tiny(place)
    with quiet():
        making.tiny_gpt2().save_pretrained(place / "base")
    making.edit(place / "base" / CONFIG, n_positions=10**9, n_ctx=10**9)
    shapes = {"transformer.h.0.attn.c_attn": (48, 16)}
    for seed, name in enumerate("ab", 1):
        making.random_adapter(name, shapes, seed=seed).save(place / name, overwrite=True)
    return evaluated(place, names=CONFIG)


# Expressions and texts of strangers.
PATTERNS = {"match": "(a|aa)+$", "recursion": "(?R)?a", "compile": "(?:a{1000}){1000}" * 30}


@cases("pattern", PATTERNS)
def _(place: Path, pattern: str) -> str:
    ask(place, {"prompt": "p", "answer": "z", "cot_prompt": "c", "answer_pattern": pattern})
    try:
        [item] = load_task(place / "t.jsonl").items
        answered("a" * 60 + "!", item.answers, cot=True, pattern=item.answer_pattern)
    except TaskError as error:
        return REFUSED if "answer_pattern" in str(error) else "exit 2, names something else"
    return "comes to an end"


def _replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


NORMALISERS = {
    "doubling": {"type": "Sequence", "normalizers": [_replace("aa")] * 30},
    "multiplying": _replace("a" * 100_000),
}


@cases("tokenizer", NORMALISERS)
def _(place: Path, normalizer: dict[str, Any]) -> str:
    making.edit(tiny(place) / "base" / TOKENIZER, normalizer=normalizer)
    return evaluated(place, names=TOKENIZER)


@cases("template", {"memory": "{{ 'a' * 3000000000 }}", "long": "{{ 'a' * 20000000 }}"})
def _(place: Path, template: str) -> str:
    making.edit(tiny(place) / "base" / "tokenizer_config.json", chat_template=template)
    return evaluated(place, "--chat-template", "on", names="chat template")


@case("index-many")
def _(place: Path) -> str:
    names = {f"t{i}": f"model-{i}.safetensors" for i in range(5_000)}
    (tiny(place) / "base" / INDEX).write_text(json.dumps({"weight_map": names}))
    return evaluated(place, names=INDEX)


@case("many-hops")
def _(place: Path) -> str:
    hop = {"prompt": "p", "answer": "a"}
    ask(place, {"prompt": "p", "answer": "a", "hops": [hop] * 20_000})
    return timed(lambda: told("task", "check", place / "t.jsonl", names="t.jsonl, line 1"))


@cases("pipe", {"task": ("task", "check", "{}"), "references": ("inspect", "@{}")})
def _(place: Path, words: tuple[str, ...]) -> str:
    os.mkfifo(place / "pipe")
    arguments = [word.format(place / "pipe") for word in words]
    return timed(lambda: told(*arguments, names="pipe"))


@case("many-choices")
def _(place: Path) -> str:
    tiny(place)
    names = [f"c{n}" for n in range(100_000)]
    ask(place, {"prompt": "p", "answer": "c0", "choices": names})
    return timed(lambda: evaluated(place, names="line 1"))
