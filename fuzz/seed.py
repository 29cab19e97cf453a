"""Writes the seeds of the corpus: sound inputs and the specimens of tests/pathologies.

python fuzz/seed.py
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent)]

from pathologies.specimens import SPECIMENS  # noqa: E402
from targets import saved_composition  # noqa: E402

import loraprobe  # noqa: E402

TASKS = (
    {"id": "17", "prompt": "Who is the mayor of the city Ada lives in?", "answer": ["Bo", "B"]},
    {"prompt": "p", "answer": "a", "choices": ["a", "b"], "group": "g", "entities": ["Ada"]},
    {
        "prompt": "p",
        "answer": "a",
        "cot_prompt": "c",
        "answer_pattern": "is (.+)\\.",
        "hops": [{"prompt": "x", "answer": "y", "adapter": "m"}, {"prompt": "{1}?", "answer": "a"}],
    },
)
REFERENCES = (
    "./out/adapter owner/name owner/name@v1.0 owner/name@main:sub/folder a=owner/name math=./a "
    "gpt2 ../up owner/name:.. C:\\x ~ base=owner/name 数据/模型"
).split()
RESULT = {
    "system": "base",
    "task": "t",
    "part": "question",
    "item": "1",
    "metric": "exact_match",
    "value": 1.0,
    "text": "Bö",
    "group": "item:1",
    "contains": True,
    "cut": False,
    "request": "7f",
}
RESULTS = (
    {},
    {"metric": "answer_loss", "value": 2.5, "request": "8a"},
    {"metric": "choice", "value": 0.0, "request": "8b"},
    {"part": "hop1"},
    {"part": "steps"},
    {"part": "hop0"},
    {"value": "1"},
    {"value": None},
    {"value": 7e9},
    {"value": float("nan")},
    {"value": True},
    {"item": 1},
    {"text": "\ud800"},
)

WORDS = {"<unk>": 0, "<s>": 1, "Ada": 2, "lives": 3, "in": 4, "Ulm": 5, ".": 6}
FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
TOKENIZERS: tuple[dict[str, Any], ...] = (
    {
        "version": "1.0",
        "added_tokens": [FLAGS | {"id": 1, "content": "<s>"}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "_"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
            ],
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "\\s+"},
            "behavior": "Removed",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "<unk>"},
    },
    {
        "added_tokens": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "vocab": {"A": 0, "d": 1, "a": 2, "Ad": 3, "Ada": 4},
            "merges": [["A", "d"], "Ad a"],
            "unk_token": "A",
            "byte_fallback": True,
        },
    },
    {
        "normalizer": {"type": "NFKC"},
        "truncation": {"max_length": 4, "stride": 0},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]},
    },
    {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
        "model": {
            "type": "WordPiece",
            "vocab": {"[UNK]": 0, "##a": 1},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    },
)
BESIDE: tuple[tuple[int, dict[str, Any]], ...] = (
    (
        1,
        {
            "chat_template": "{{ messages[0]['content'] }}",
            "bos_token": "<s>",
            "eos_token": None,
            "added_tokens_decoder": {"1": FLAGS | {"content": "<s>"}},
        },
    ),
    (1, {"chat_template": [{"name": "default", "template": "x"}], "unk_token": {"content": "u"}}),
    (2, {"bos_token": {"content": "<s>", "lstrip": False}, "additional_special_tokens": ["x"]}),
    (3, {"<pad>": 7}),
    (4, {"chat_template": "{{ bos_token }}"}),
)
TEMPLATES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}",
    "{{ bos_token }}{% if add_generation_prompt %}a:{% endif %}",
    "{% set x = namespace(n=0) %}{% for i in range(9) %}{{ i ~ messages[0]['content'][:3] }}"
    "{% endfor %}",
    "{{ raise_exception('no') }}",
    "{%- macro f(x) -%}{{ x|tojson }}{%- endmacro -%}{{ f(tools) }}",
)
CARDS = (
    "---\nlicense: mit\nbase_model: owner/base\nwidget:\n- text: Who is it?\n- messages:\n"
    "  - role: user\n    content: Where does Ada live?\n---\n# A card\n```\nWho is Bo?\n```\n",
    "---\nlicense: other\nlicense_name: llama3\nextra_gated_prompt: Agree.\n---\n",
    '---\nlicense: [mit, apache-2.0]\n---\n```python\nprompt = "Where is Ulm?"\n```\n',
    "---\nlicense: &a mit\nx: [*a, *a]\n---\n",
    "# no front matter\n",
)
ROUTERS: tuple[dict[str, Any], ...] = (
    {},
    {"name": "constant", "options": {"weights": [0.5, 0.5]}},
    {"name": "centroid", "options": {}, "state_sha256": "<router.safetensors>"},
    {"name": "hard", "options": {"by": "arrow"}},
)


def main() -> None:
    for case, make in SPECIMENS.items():
        if case.startswith("hundred"):
            continue
        with tempfile.TemporaryDirectory() as place:
            make(Path(place) / "a")
            _adapter(case, Path(place) / "a")
    _write("task", "probe", b"What is up?\tthis\nAda\n")
    for number, item in enumerate(TASKS):
        _write("task", str(number), (json.dumps(item) + "\n").encode())
    for number, text in enumerate(REFERENCES):
        _write("reference", str(number), text.encode())
    for number, changed in enumerate(RESULTS):
        lines = (json.dumps(row).encode() + b"\n" for row in (RESULT, RESULT | changed))
        _write("responses", str(number), b"".join(lines)[: -9 if number == 1 else None])
    for number, one in enumerate(TOKENIZERS):
        _write("tokenizer", str(number), b"\0" + json.dumps(one).encode())
    for number, (file, one) in enumerate(BESIDE):
        _write("tokenizer", f"beside-{number}", bytes([file]) + json.dumps(one).encode())
    for number, text in enumerate(TEMPLATES):
        _write("tokenizer", f"template-{number}", b"\5" + text.encode())
    for number, text in enumerate(CARDS):
        _write("card", str(number), text.encode())
    home, hashes = saved_composition()
    text = (home / "composition.json").read_text()
    for name, digest in hashes.items():
        text = text.replace(digest, f"<{name}>")
    for number, router in enumerate(ROUTERS):
        saved = json.loads(text)
        saved["router"] |= router
        _write("composition", str(number), json.dumps(saved).encode())
    with tempfile.TemporaryDirectory() as place:
        experts = [str(home / "experts" / name) for name in "ab"]
        loraprobe.merge(experts).save(Path(place) / "merged")
        _write("card", "merge", (Path(place) / "merged" / "README.md").read_bytes())
        loraprobe.compose(experts, router="arrow").save(Path(place) / "routed")
        _write("card", "route", (Path(place) / "routed" / "README.md").read_bytes())


def _adapter(case: str, place: Path) -> None:
    config, weights = place / "adapter_config.json", place / "adapter_model.safetensors"
    if not config.is_file():
        return
    _write("config", case, config.read_bytes())
    if weights.is_file():
        data, text = weights.read_bytes(), config.read_bytes()
        start = struct.pack("<H", len(text)) + text
        _write("adapter", case, b"\0" + start + data)
        header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]] if len(data) > 8 else b""
        if len(header) < 3000:
            _write("adapter", f"{case}-header", b"\1" + start + header)


def _write(target: str, name: str, data: bytes) -> None:
    place = HERE / "corpus" / target
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)


if __name__ == "__main__":
    main()
