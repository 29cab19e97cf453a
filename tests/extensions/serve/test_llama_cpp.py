"""A merge and a converted adapter write the same text in llama.cpp as in peft.

Runs where LLAMA_CPP names llama.cpp's sources (its converters need sentencepiece here) and
LLAMA_CPP_PYTHON a Python that has llama_cpp, as after `pip install llama-cpp-python`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import SHARED, peft_model
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from loraprobe.cli import app

STORIES = SHARED / "stories260K" / "hf"
SOURCES, PYTHON = os.environ.get("LLAMA_CPP", ""), os.environ.get("LLAMA_CPP_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not (SOURCES and PYTHON and STORIES.is_dir()), reason="needs llama.cpp and the shared base"
)
NEW = 40
PROMPTS = ("Once upon a time", "The big dog", "A little cat sat")
LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
WRITE = """
import json, sys
import llama_cpp, numpy
base, adapter, prompts, new = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
settings = {"n_ctx": 256, "logits_all": True, "n_threads": 1, "verbose": False}
model = llama_cpp.Llama(base, lora_path=adapter, **settings)
texts = []
for ids in prompts:
    model.reset()
    model.eval(ids)
    for _ in range(new):
        model.eval([int(numpy.argmax(model.scores[model.n_tokens - 1]))])
    texts.append([int(i) for i in model.input_ids[len(ids) : model.n_tokens]])
print(json.dumps(texts))
"""


def trained(place: Path, text: str, **settings) -> None:
    """An adapter that learned one text, so that its greedy texts do not hang on rounding."""
    model = peft_model(load(), **{"target_modules": LINEAR, "lora_alpha": 8, "r": 4, **settings})
    ids = AutoTokenizer.from_pretrained(STORIES)(text, return_tensors="pt").input_ids
    chosen = [p for n, p in model.named_parameters() if "lora_" in n]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in chosen], lr=1e-2)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)


def load():
    return AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)


def by_peft(place: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = PeftModel.from_pretrained(load(), place).eval()
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = [model.generate(input_ids=torch.tensor([ids]), **options)[0] for ids in prompts]
    return [ids.tolist()[-NEW:] for ids in written]


def gguf(script: str, *arguments: object) -> None:
    command = [sys.executable, f"{SOURCES}/{script}", *map(str, arguments), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)


def by_llama_cpp(place: Path, prompts: list[list[int]], base: Path) -> list[list[int]]:
    adapter = place.with_suffix(".gguf")
    gguf("convert_lora_to_gguf.py", place, "--base", STORIES, "--outfile", adapter)
    command = [PYTHON, "-c", WRITE, str(base), str(adapter), json.dumps(prompts), str(NEW)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=place.parent)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.needs("convert")
def test_merged_and_converted_adapters_write_what_peft_writes(tmp_path):
    trained(tmp_path / "dogs", "The big dog ran to the park and saw a red ball.", use_rslora=True)
    ranks = {"rank_pattern": {"v_proj": 6, "up_proj": 2}, "alpha_pattern": {"down_proj": 3}}
    trained(tmp_path / "cats", "A little cat sat in the tree. She was sad.", **ranks)
    dogs, cats = (str(tmp_path / name) for name in ("dogs", "cats"))
    run = CliRunner().invoke
    assert run(app, ["merge", dogs, cats, "-o", str(tmp_path / "merged")]).exit_code == 0
    assert run(app, ["convert", dogs, "-o", str(tmp_path / "mended")]).exit_code == 0
    gguf("convert_hf_to_gguf.py", STORIES, "--outfile", tmp_path / "base.gguf")
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    for name in ("merged", "mended"):
        found = by_llama_cpp(tmp_path / name, prompts, tmp_path / "base.gguf")
        assert found == by_peft(tmp_path / name, prompts), name
    unmended = by_llama_cpp(tmp_path / "dogs", prompts, tmp_path / "base.gguf")
    assert unmended != by_peft(tmp_path / "dogs", prompts)
