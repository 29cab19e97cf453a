"""Texts that several systems write together: their next-token logits are added, token by token.

Every system reads the same text in a row of its own, so one forward pass a token serves all of
them, and transformers' generate() keeps its caches as it does for one. A voice with one member is
that system's own greedy text, which many systems can so write side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.scoring.batching import Batcher
from loraprobe.scoring.forward import padded, read_through
from loraprobe.scoring.generation import first_line, generate_batch

Switch = Callable[[Tensor, Tensor], None]  # gates [rows, n], lead [rows]; before a forward pass


@dataclass(frozen=True)
class Voice:
    """Systems that write one text: logits = sum_j weights[j] z_j, z_j those of member j.

    gates: [k][n], the gates of the n experts for each of the k members. Where there is more than
    one member, the first is what the others' effects are measured from (the base).
    """

    gates: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @classmethod
    def alone(cls, i: int, n: int, gate: float = 1.0) -> Voice:
        """The i-th of n experts at a gate, writing for itself."""
        return cls((_one(i, n, gate),), (1.0,))

    @classmethod
    def added(cls, n: int, gate: float) -> Voice:
        """z0 + sum_i (z_i - z0): the effects of n experts at a gate, added to the base's logits."""
        members = ((0.0,) * n, *(_one(i, n, gate) for i in range(n)))
        return cls(members, (1.0 - n, *(1.0,) * n))


def _one(i: int, n: int, gate: float) -> tuple[float, ...]:
    return tuple(gate if j == i else 0.0 for j in range(n))


@dataclass(frozen=True)
class Written:
    """One text of a voice, and how its members stood to it, averaged over its tokens.

    kept: for each member, the share of tokens that it would have chosen too. overlap: [k][k]
    cosines of the members' effects on the logits (z_j - z_0 over the vocabulary, centred); row
    and column 0 are those of the base and hold 0.
    """

    text: str
    kept: tuple[float, ...]
    overlap: tuple[tuple[float, ...], ...]


def write_together(
    scorer: Any,
    prompts: Sequence[str],
    voices: Sequence[Voice],
    switch: Switch,
    *,
    max_new_tokens: int,
    until_newline: bool = False,
) -> list[list[Written]]:
    """What each voice writes after each prompt, greedily: a list a voice, in the given order.

    The scorer's model must carry a composition whose gates `switch` sets. Ends, limits and errors
    are those of `Scorer.generate`.
    """
    if not voices:
        return []
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    unique = list(dict.fromkeys(prompts))
    ids = scorer.encoder.prompts(unique)
    room = [
        scorer.room(row, prompt, max_new_tokens) for row, prompt in zip(ids, unique, strict=True)
    ]
    copies = sum(len(voice.gates) for voice in voices)
    found: dict[int, list[Written]] = {}

    def work(batch: Sequence[int]) -> None:
        rows = [ids[i] for i in batch]
        made = _batch(scorer, rows, voices, switch, room[batch[0]], until_newline)
        found.update(zip(batch, made, strict=True))

    batcher = shared_out(scorer.batcher, copies)
    batches = (
        [group[i] for i in batch]
        for size in sorted(set(room), reverse=True)
        for group in ([i for i in range(len(unique)) if room[i] == size],)
        for batch in batcher.split([(len(ids[i]) + size) * copies for i in group])
    )
    scorer.run("generate", batches, work, len(unique))
    place = {prompt: i for i, prompt in enumerate(unique)}
    return [[found[place[prompt]][v] for prompt in prompts] for v in range(len(voices))]


def shared_out(batcher: Batcher, copies: int) -> Batcher:
    """A batcher for sequences that take `copies` rows each."""
    rows, forced = (
        None if size is None else max(1, size // copies) for size in (batcher.rows, batcher.forced)
    )
    return replace(batcher, rows=rows, forced=forced)


def _batch(
    scorer: Any,
    rows: Sequence[Sequence[int]],
    voices: Sequence[Voice],
    switch: Switch,
    max_new_tokens: int,
    until_newline: bool,
) -> list[list[Written]]:
    members = _Members(voices, len(rows))
    switch(*members.rows())
    newlines = scorer.newlines
    new = generate_batch(
        scorer.model,
        [row for row in rows for _ in range(members.count)],
        pad=scorer.pad,
        stops=scorer.stops,
        max_new_tokens=max_new_tokens,
        stopper=newlines.stopper() if until_newline else None,
        processor=members,
    )
    found = []
    for b in range(len(rows)):
        own = []
        for v in range(len(voices)):
            tokens = new[b * members.count + members.starts[v]]
            text = scorer.decode(tokens)
            # The token that ends a text is a choice like the others, so it is counted too.
            end = newlines.end(tokens) if until_newline else len(tokens)
            kept, overlap = members.seen(b, v, min(end + 1, len(members.kept[v])))
            own.append(Written(first_line(text) if until_newline else text, kept, overlap))
        found.append(own)
    return found


class _Members:
    """A logits processor: makes the members of a voice choose the same token, and watches them.

    Rows of a batch: for each prompt, for each voice, its members.
    """

    def __init__(self, voices: Sequence[Voice], prompts: int) -> None:
        self.voices, self.prompts = voices, prompts
        sizes = [len(voice.gates) for voice in voices]
        self.starts = [sum(sizes[:v]) for v in range(len(voices))]
        self.count = sum(sizes)
        self.kept: list[list[Tensor]] = [[] for _ in voices]  # a step each: [prompts, k]
        self.overlap: list[list[Tensor]] = [[] for _ in voices]  # [prompts, k, k]

    def rows(self) -> tuple[Tensor, Tensor]:
        """gates [rows, n], and for each row the index of its voice's first member [rows]."""
        gates = torch.tensor([gates for voice in self.voices for gates in voice.gates])
        sizes = [len(voice.gates) for voice in self.voices]
        lead = torch.tensor([s for s, k in zip(self.starts, sizes, strict=True) for _ in range(k)])
        steps = torch.arange(self.prompts)[:, None] * self.count
        return gates.repeat(self.prompts, 1), (steps + lead).reshape(-1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        z = scores.float().reshape(self.prompts, self.count, -1)
        made = torch.empty_like(z)
        for v, voice in enumerate(self.voices):
            own = z[:, self.starts[v] : self.starts[v] + len(voice.gates)]
            # Clamped, so that a token which a model rules out (-inf) gives no NaN when weighed.
            own = own.clamp_min(-1e4)
            together = torch.einsum("bkv,k->bv", own, torch.tensor(voice.weights).to(own))
            made[:, self.starts[v] : self.starts[v] + len(voice.gates)] = together[:, None]
            choice = together.argmax(-1, keepdim=True)
            self.kept[v].append((own.argmax(-1) == choice).float().cpu())
            self.overlap[v].append(_cosines(own).cpu())
        return made.reshape(scores.shape)

    def seen(
        self, prompt: int, voice: int, steps: int
    ) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """Means over the first so many tokens of one text: kept [k], overlap [k][k]."""
        kept = torch.stack([step[prompt] for step in self.kept[voice][:steps]]).mean(0)
        overlap = torch.stack([step[prompt] for step in self.overlap[voice][:steps]]).mean(0)
        return tuple(kept.tolist()), tuple(tuple(row) for row in overlap.tolist())


def _cosines(z: Tensor) -> Tensor:
    """[b, k, k] cosines of z_j - z_0, centred over the vocabulary; z: [b, k, vocab]."""
    effect = z - z[:, :1]
    effect = effect - effect.mean(-1, keepdim=True)
    effect = torch.nn.functional.normalize(effect, dim=-1)
    return effect @ effect.mT


def read_together(scorer: Any, pairs: Sequence[tuple[str, str]], see: Callable[[Tensor], None]
                  ) -> None:  # fmt: skip
    """Reads prompts, each with the continuation that follows it ("" for none), for who watches.

    Rows are padded on the right; before each forward pass see(mask) is told which tokens [b, n]
    are text. The first token of a row is left out where others follow: trained models keep
    activations of quite another size there.
    """
    unique = list(dict.fromkeys(pairs))
    alone = scorer.encoder.prompts([prompt for prompt, _ in unique])
    follow = [pair for pair in unique if pair[1].strip()]
    known = dict(zip(follow, (ids for ids, _ in scorer.encoder.pairs(follow)), strict=True))
    rows = [known.get(pair, ids) for pair, ids in zip(unique, alone, strict=True)]
    for row, (prompt, _) in zip(rows, unique, strict=True):
        scorer.room(row, prompt, 1)

    def work(batch: Sequence[int]) -> None:
        ids, mask = padded([rows[i] for i in batch], scorer.pad, "right")
        counted = mask.bool()
        counted[:, 0] &= mask.sum(-1) == 1
        see(counted.to(scorer.model.device))
        read_through(scorer.model, ids, mask)

    scorer.run("hidden", scorer.batcher.split([len(row) for row in rows]), work, len(rows))
