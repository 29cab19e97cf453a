"""Input that demands endless time or memory: declared sizes, expressions, texts that multiply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adversarial import case
from adversarial.errors import REFUSED, UNNAMED, ask, edit, evaluated, inspected, tiny

HANGS = "more than 20 seconds"
SIZES: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers": ("`num_hidden_layers` is 10,000,000", {"num_hidden_layers": 10_000_000}, HANGS),
    "layers-half": ("`num_hidden_layers` is 1,000", {"num_hidden_layers": 1000}, HANGS),
    "layers-float": ("`num_hidden_layers` is 1e300", {"num_hidden_layers": 1e300}, UNNAMED),
    "vocabulary": ("`vocab_size` is 10^12", {"vocab_size": 10**12}, UNNAMED),
    "hidden": ("`hidden_size` is 10^9", {"hidden_size": 10**9}, UNNAMED),
    "intermediate": ("`intermediate_size` is 10^12", {"intermediate_size": 10**12}, UNNAMED),
    "head": ("`head_dim` is 10^12", {"head_dim": 10**12}, UNNAMED),
    "heads": ("`num_attention_heads` is 10^9", {"num_attention_heads": 10**9}, UNNAMED),
    "experts": (
        "a mixture of 10,000,000 experts",
        {
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": 10_000_000,
        },
        UNNAMED,
    ),
    "nested": (
        "`text_config` asks for 10,000,000 layers",
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 10_000_000},
        },
        HANGS,
    ),
    "vision": (
        "`vision_config` asks for 10,000,000 layers",
        {"vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 10_000_000}},
        "exit 3",
    ),
}


def _declared(name: str, what: str, changes: dict[str, Any], before: str) -> None:
    @case(f"base-{name}", f"a base of two layers: {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        return evaluated(tiny(place, **changes), names="config.json")


for _name, (_what, _changes, _before) in SIZES.items():
    _declared(_name, _what, _changes, _before)


@case(
    "base-nested-inspected", "the same base, which inspect does not load", before=HANGS, now=REFUSED
)
def _(place: Path) -> str:
    return inspected(tiny(place, **SIZES["nested"][1]), names="config.json")


@case("positions", "`max_position_embeddings` is 10^12", before="exit 3", now="exit 3")
def _(place: Path) -> str:
    return evaluated(tiny(place, max_position_embeddings=10**12))


@case(
    "gpt2-positions",
    "a GPT-2 whose `n_positions` is 10^9",
    before=UNNAMED,
    now=REFUSED,
)
def _(place: Path) -> str:
    import making

    from loraprobe.base.quiet import quiet

    tiny(place)
    with quiet():
        making.tiny_gpt2().save_pretrained(place / "base")
    edit(place / "base" / "config.json", n_positions=10**9, n_ctx=10**9)
    shapes = {"transformer.h.0.attn.c_attn": (48, 16)}
    for seed, name in enumerate("ab", 1):
        making.random_adapter(name, shapes, seed=seed).save(place / name, overwrite=True)
    return evaluated(place, names="config.json")


# Expressions and texts of strangers.
PATTERNS = {
    "match": ("(a|aa)+$", "backtracks without end on 60 letters", REFUSED),
    "recursion": ("(?R)?a", "calls itself", "traceback MemoryError"),
    "compile": (
        "(?:a{1000}){1000}" * 30,
        "takes half a minute to compile",
        HANGS,
    ),
}


def _pattern(name: str, pattern: str, what: str, before: str) -> None:
    @case(f"pattern-{name}", f"an `answer_pattern` that {what}", before=before, now=REFUSED)
    def _(place: Path) -> str:
        from loraprobe.errors import TaskError
        from loraprobe.tasks import answered, load_task

        ask(place, {"prompt": "p", "answer": "z", "cot_prompt": "c", "answer_pattern": pattern})
        try:
            [item] = load_task(place / "t.jsonl").items
            answered("a" * 60 + "!", item.answers, cot=True, pattern=item.answer_pattern)
        except TaskError as error:
            return REFUSED if "answer_pattern" in str(error) else "exit 2, names something else"
        return "comes to an end"


for _name, (_pattern_, _what, _before) in PATTERNS.items():
    _pattern(_name, _pattern_, _what, _before)


def _normaliser(name: str, what: str, normalizer: dict[str, Any], before: str) -> None:
    @case(f"tokenizer-{name}", what, before=before, now=REFUSED)
    def _(place: Path) -> str:
        file = tiny(place) / "base" / "tokenizer.json"
        edit(file, normalizer=normalizer)
        return evaluated(place, names="tokenizer.json")


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


_normaliser(
    "doubling",
    "a normaliser that doubles every `a` thirty times",
    {"type": "Sequence", "normalizers": [_replace("a", "aa")] * 30},
    HANGS,
)
_normaliser(
    "multiplying",
    "a normaliser that makes 100,000 letters of each",
    _replace("a", "a" * 100_000),
    "exit 3",
)


@case(
    "template-memory",
    "a chat template that makes a text of 3 GB",
    before=HANGS,
    now=REFUSED,
)
def _(place: Path) -> str:
    tiny(place)
    edit(place / "base" / "tokenizer_config.json", chat_template="{{ 'a' * 3000000000 }}")
    return evaluated(place, "--chat-template", "on", names="chat template")


@case(
    "template-long",
    "a chat template that makes a text of 20 MB",
    before=HANGS,
    now=REFUSED,
)
def _(place: Path) -> str:
    tiny(place)
    edit(place / "base" / "tokenizer_config.json", chat_template="{{ 'a' * 20000000 }}")
    return evaluated(place, "--chat-template", "on", names="chat template")


@case(
    "index-many",
    "an index of shards that names 5,000 files that are not there",
    before=REFUSED,
    now=REFUSED,
)
def _(place: Path) -> str:
    base = tiny(place) / "base"
    names = {f"t{i}": f"model-{i}.safetensors" for i in range(5_000)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return evaluated(place, names="model.safetensors.index.json")
