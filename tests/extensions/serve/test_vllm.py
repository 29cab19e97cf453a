"""A real vLLM answers as transformers do. Runs where `vllm` is on PATH, or LORAPROBE_VLLM names it.

vLLM on a CPU takes heads of 32, 64 or more values (docs/serving.md), so the base has such.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import making
import pytest
from words import WORDS, word_tokenizer

from loraprobe.base import open_base

VLLM = os.environ.get("LORAPROBE_VLLM") or shutil.which("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(VLLM is None, reason="needs vLLM")]
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """merge-and-eval of two random adapters on a base of random weights."""
    root = tmp_path_factory.mktemp("vllm")
    model = making.sharpened(making.tiny_model("Llama", vocab_size=40, **SIZES))
    model.save_pretrained(root / "base")
    word_tokenizer().save_pretrained(root / "base")
    shapes = {p: s for p, s in open_base(root / "base").shapes.items() if "_proj" in p}
    adapters = making.saved_pair(root, shapes, scaling=0.05)
    pairs = [(one, other) for one in WORDS[:6] for other in WORDS[3:8]]
    asked = [
        {"prompt": f"{a} {b} the", "answer": "mayor of", "group": f"{a} {b}"} for a, b in pairs
    ]
    scored = [{**row, "choices": ["mayor of", "ulm", "is in"]} for row in asked]
    tasks = []
    for name, rows in (("asked", asked), ("scored", scored)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tasks += ["--task", str(root / f"{name}.jsonl")]
    call = ["merge-and-eval", *map(str, adapters), "--base", str(root / "base"), *tasks]
    return [*call, "--max-new-tokens", "12", "--dtype", "float32", "--json", "--all-items"]


def answers(words: list[str], place: Path, *more: str) -> tuple[dict[str, Any], dict[Any, str]]:
    """The document of a run, and every reply."""
    making.skip_without("--save-samples")
    found, bin_ = {}, str(Path(VLLM or "").parent)
    env = {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "VLLM_CPU_KVCACHE_SPACE": "1"}
    env |= {"LORAPROBE_CACHE": str(place / "cache")}
    samples = place / "samples.jsonl"
    ended = making.call(*words, "--save-samples", str(samples), *more, env=env)
    assert ended.exit_code in (0, 1, 3), ended.output
    for line in samples.read_text().splitlines():
        row = json.loads(line)
        for reply in row["replies"]:
            found[row["task"], row["item"], reply["system"]] = reply["text"]
    return json.loads(ended.stdout), found


def test_vllm_answers_as_transformers_do(words, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, mine = answers(words, tmp_path / "here")
    there, theirs = answers(words, tmp_path / "there", "--engine", "vllm")
    assert mine.keys() == theirs.keys()
    equal = sum(mine[key] == theirs[key] for key in mine)
    assert equal >= 0.99 * len(mine)
    assert there["provenance"]["engine"].startswith("vllm ")
    keys = ("decision", "action", "system")
    assert [here["verdict"][k] for k in keys] == [there["verdict"][k] for k in keys]
