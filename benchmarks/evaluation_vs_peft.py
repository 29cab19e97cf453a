"""Evaluating K adapters on one base against plain passes with peft.

  python benchmarks/evaluation_vs_peft.py [--model DIR] [--runs 5] [--items 100] [--systems 3]

plain      in one process: K passes of the base with plain peft LoRA layers over the same tokens,
           in the same batches, prompts sorted by length; log-likelihoods, then generations
loraprobe  ModelScorer under K compositions; it keeps entropy, rank and spread of every token too
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from machine import aim, clocked, interleaved, ratios, table
from random_llama import NEW_TOKENS, arguments, ask, made, scorer_of, systems


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


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    with made(options) as (base, adapters, items, _):
        against_plain(base, adapters, items, options.runs)


if __name__ == "__main__":
    main()
