"""Evaluating K adapters on one base: against plain passes with peft, and against the harness.

    python benchmarks/evaluation_vs_harness.py [--model DIR] [--runs 5] [--items 100] [--systems 3]

Without --model the base is a Llama of 10 million random weights with the shipped world's tokenizer
(its answers do not matter here), and the adapters are peft's, of rank 16 on all linear layers. The
prompts are the shipped world's questions after zero to six examples, so that lengths differ.

  plain      in one process: K passes of the base with plain peft LoRA layers over the same tokens,
             in the same batches, prompts sorted by length; log-likelihoods, then generations
  loraprobe  ModelScorer under K compositions; it keeps entropy, rank and spread of every token too
  harness    lm-evaluation-harness (where it is installed), a process for each adapter, the items
             as a task with four choices; loraprobe answers them in one process, loading included
  lm_eval:   the same items asked by loraprobe, as tasks of the harness and as items of our own
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from machine import aim, clocked, interleaved, ratios, script, table

NEW_TOKENS = 8
TASK = """task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}]
"""
WRITTEN = """task: local_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""


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


class Plain:
    """peft's layers with as little code around them as possible."""

    def __init__(self, base: str, adapters: list[str], scorer: Any) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        own = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(own, adapters[0], adapter_name="0").eval()
        for number, directory in enumerate(adapters[1:], 1):
            self.model.load_adapter(directory, adapter_name=str(number))
        self.names, self.scorer = [str(n) for n in range(len(adapters))], scorer

    @torch.inference_mode()
    def score(self, pairs: list[tuple[str, str]]) -> list[list[float]]:
        """Log-likelihoods, a list a system."""
        from loraprobe.scoring.forward import tail_logits

        encoded = self.scorer.encoder.pairs(pairs)
        lengths, starts = [len(ids) - 1 for ids, _ in encoded], [s - 1 for _, s in encoded]
        found = []
        for name in self.names:
            self.model.set_adapter(name)
            own = [0.0] * len(pairs)
            for batch in self.scorer.batcher.split(lengths, starts, self.scorer.vocab_size):
                rows = [encoded[i][0][:-1] for i in batch]
                kept = tail_logits(
                    self.model.base_model.model, rows, [starts[i] for i in batch], self.scorer.pad
                )
                for i, logits in zip(batch, kept, strict=True):
                    gold = torch.tensor(encoded[i][0][encoded[i][1] :])
                    own[i] = float(logits.log_softmax(-1).gather(-1, gold[:, None]).sum())
            found.append(own)
        return found

    @torch.inference_mode()
    def generate(self, prompts: list[str]) -> list[list[str]]:
        """Greedy continuations, a list a system."""
        from loraprobe.scoring.forward import padded

        ids, pad = self.scorer.encoder.prompts(prompts), self.scorer.pad
        found = []
        for name in self.names:
            self.model.set_adapter(name)
            own = [""] * len(prompts)
            for batch in self.scorer.batcher.split([len(row) + NEW_TOKENS for row in ids]):
                rows, mask = padded([ids[i] for i in batch], pad, "left")
                out = self.model.generate(
                    input_ids=rows,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    pad_token_id=pad,
                )
                for i, tokens in zip(batch, out[:, rows.shape[1] :].tolist(), strict=True):
                    end = next((k for k, t in enumerate(tokens) if t in self.scorer.stops), None)
                    own[i] = self.scorer.decode(tokens[:end])
            found.append(own)
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


def against_plain(base: str, adapters: list[str], items: list[dict], runs: int) -> None:
    scorer = scorer_of(base)
    plain, compositions = Plain(base, adapters, scorer), systems(adapters)
    pairs = [(item["prompt"], item["answer"]) for item in items]
    prompts = [item["prompt"] for item in items]

    def score() -> list[list[float]]:
        rows = ask(scorer, compositions, lambda s: s.loglikelihood(pairs))
        return [[one.logprob for one in row] for row in rows]

    def generate() -> list[list[str]]:
        return ask(scorer, compositions, lambda s: s.generate(prompts, max_new_tokens=NEW_TOKENS))

    torch.testing.assert_close(
        torch.tensor(score()), torch.tensor(plain.score(pairs)), rtol=1e-4, atol=1e-3
    )
    mine, theirs = (list(chain.from_iterable(x)) for x in (generate(), plain.generate(prompts)))
    same = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
    print(f"  log-likelihoods agree to 1e-4; {same:.1%} of the generated texts are the same")
    for name, ours, reference in (
        ("log-likelihoods", score, lambda: plain.score(pairs)),
        ("generations", generate, lambda: plain.generate(prompts)),
    ):
        found = interleaved(
            {"plain peft": lambda r=reference: clocked(r), "loraprobe": lambda o=ours: clocked(o)},
            runs,
        )
        print(f"  {name}:")
        table(found, "plain peft", "plain peft")
        aim(
            f"{name} of {len(adapters)} systems / as many plain passes with peft",
            ratios(found["loraprobe"], found["plain peft"]),
            1.1,
        )


def answer(base: str, adapters: list[str], file: str) -> list[float]:
    """The accuracy of every system on the four choices, by loraprobe, the base loaded once."""
    items = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    pairs = [(item["prompt"], choice) for item in items for choice in item["choices"]]
    rows = ask(scorer_of(base), systems(adapters), lambda s: s.loglikelihood(pairs))
    gold = torch.tensor([item["gold"] for item in items])
    return [
        float(
            (torch.tensor([one.logprob for one in row]).view(-1, 4).argmax(1) == gold)
            .double()
            .mean()
        )
        for row in rows
    ]


def harness(base: str, adapters: list[str], folder: str) -> list[float]:
    """The accuracy of the one adapter given, by lm-evaluation-harness."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": base, "peft": adapters[0], "dtype": "float32"},
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        device="cpu",
        batch_size=64,
        bootstrap_iters=0,
    )
    return [found["results"]["local_choice"]["acc,none"]]


def write_tasks(items: list[dict], scratch: str) -> Path:
    """A folder with the items as tasks of the harness."""
    folder = Path(scratch) / "task"
    folder.mkdir(exist_ok=True)
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK.format(file=file), encoding="utf-8")
    (folder / "written.yaml").write_text(WRITTEN.format(file=file), encoding="utf-8")
    return folder


def against_own(base: str, adapters: list[str], items: list[dict], scratch: str, runs: int) -> None:
    """The same tokens asked through the harness's tasks, and as items of our own."""
    from loraprobe.evaluation.asking import ask as ask_questions
    from loraprobe.evaluation.plan import questions
    from loraprobe.tasks import Item, Task
    from loraprobe.tasks.harness import load_harness

    folder, scorer, compositions = write_tasks(items, scratch), scorer_of(base), systems(adapters)
    own = {
        name: Task(
            name,
            tuple(
                Item(
                    str(i), one["prompt"], (one["answer"],), tuple(one["choices"]) if choice else ()
                )
                for i, one in enumerate(items)
            ),
        )
        for name, choice in (("local_choice", True), ("local_written", False))
    }
    for name, ours in own.items():
        (theirs,) = load_harness(f"lm_eval:{name}@{folder}", run_unsafe_code=True)

        def asked(task: Task) -> Any:
            every = questions([task])
            return ask(scorer, compositions, lambda s: ask_questions(s, every, "one", NEW_TOKENS))

        kinds = {
            "own items": lambda task=ours: clocked(lambda: asked(task)),
            "lm_eval:": lambda task=theirs: clocked(lambda: asked(task)),
        }
        found = interleaved(kinds, runs)
        aim(
            f"{name} through the harness's task / as own items",
            ratios(found["lm_eval:"], found["own items"]),
            1.1,
        )


def against_harness(base: str, adapters: list[str], items: list[dict], scratch: str) -> None:
    folder = write_tasks(items, scratch)
    file = folder / "items.jsonl"
    told: dict[str, list[float]] = {}

    def child(kind: str, some: list[str], where: Path) -> float:
        command = script("evaluation_vs_harness.py", "--child", kind, base, where, *some)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        told.setdefault(kind, []).extend(json.loads(done.stdout.splitlines()[-1]))
        return 0.0

    def ours() -> None:
        child("answer", adapters, file)

    def theirs() -> None:
        for adapter in adapters:
            child("harness", [adapter], folder)

    kinds = {"harness": lambda: clocked(theirs), "loraprobe": lambda: clocked(ours)}
    found = interleaved(kinds, 3, warm=0)
    k = len(adapters)
    gap = max(abs(a - b) for a, b in zip(told["answer"], told["harness"], strict=True))
    print(
        f"  whole processes, {k} systems, {len(items)} items with 4 choices; accuracies differ "
        f"by at most {gap:.3f}"
    )
    table(found, "the harness", "harness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--systems", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, base, where, *adapters = options.child
        print(json.dumps((answer if kind == "answer" else harness)(base, adapters, where)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = options.model or make_base(f"{scratch}/base")
        adapters = [make_adapter(base, f"{scratch}/adapter{n}", n) for n in range(options.systems)]
        items = make_items(options.items)
        threads = torch.get_num_threads()
        print(
            f"{options.systems} systems, {options.items} items, {threads} threads, "
            f"base {options.model or 'random Llama'}"
        )
        against_plain(base, adapters, items, options.runs)
        try:
            import lm_eval  # noqa: F401
        except ImportError:
            print("  lm-evaluation-harness is not installed (pip install lm-eval): left out")
            return
        against_own(base, adapters, items, scratch, options.runs)
        against_harness(base, adapters, items, scratch)


if __name__ == "__main__":
    main()
