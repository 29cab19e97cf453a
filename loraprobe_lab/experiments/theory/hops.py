"""Two hops in one layer: edits of A -> B and B -> C, apart and together, and what they answer.

Every chain is a person a with a spouse b who lives in c, all unknown to the base. The edit of a hop
is made at the key of its own question. *One chain at a time* every chain has a base of its own with
rank-one edits, as in the theory; *all at once* one edit holds the hop of all chains exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.experiments.theory import edits
from loraprobe_lab.experiments.theory.fact_store import FactStore, PromptKeys
from loraprobe_lab.worlds.chains import Chain
from loraprobe_lab.worlds.couples import COUPLES

SPOUSE_QUESTION, CITY_QUESTION = COUPLES.first[0], COUPLES.second[0]
TARGET_QUESTION = COUPLES.both[0]
TOLD = f"{TARGET_QUESTION}{COUPLES.said}{COUPLES.then.partition(' {c}')[0]}"
ASKED_AGAIN = f"{TARGET_QUESTION}{COUPLES.said} {CITY_QUESTION}"
Change = Callable[[PromptKeys], Tensor]  # what an edit adds to the values: [N, hidden]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ChainKeys:
    """N chains as the layer sees their prompts, and the changes that make each hop's answer.

    hop1, hop2, target: the three questions. again: the composed question, its first step written
    out, and the second hop's question. told: the same with the second hop as a sentence to finish.
    spouses, cities: tokens [N]. hop1_change ...: what each edit adds to the value [N, hidden].
    """

    hop1: PromptKeys
    hop2: PromptKeys
    target: PromptKeys
    again: PromptKeys
    told: PromptKeys
    spouses: Tensor
    cities: Tensor
    hop1_change: Tensor
    hop2_change: Tensor
    target_change: Tensor

    @classmethod
    def of(cls, store: FactStore, chains: Sequence[Chain]) -> ChainKeys:
        """Asks the base about every chain and finds the value that each edit has to write."""
        questions = (SPOUSE_QUESTION, CITY_QUESTION, TARGET_QUESTION, ASKED_AGAIN, TOLD)
        hop1, hop2, target, again, told = (
            store.ask([chain.fill(question) for chain in chains]) for question in questions
        )
        spouses = store.token([chain.b for chain in chains])
        cities = store.token([chain.c for chain in chains])
        changes = (
            store.towards(hop1, spouses),
            store.towards(hop2, cities),
            store.towards(target, cities),
        )
        return cls(hop1, hop2, target, again, told, spouses, cities, *changes)

    def __len__(self) -> int:
        return len(self.spouses)

    def first(self, count: int) -> ChainKeys:
        return ChainKeys(*(getattr(self, field.name)[:count] for field in fields(self)))

    def keys(self, name: str) -> Tensor:
        """The keys at which the edit "hop1", "hop2" or "target" is made. [N, inner]"""
        return getattr(self, name).keys

    def change(self, name: str) -> Tensor:
        return getattr(self, f"{name}_change")


def answered(store: FactStore, chains: ChainKeys, change: Change) -> dict[str, float]:
    """Shares of chains that are right with an edit, for each way of asking.

    `in one text` and `sentence` need the first hop right, which is what the model writes down
    first; `chain` asks the second hop anew with the first hop's answer.
    """

    def right(asked: PromptKeys, answers: Tensor) -> Tensor:
        return store.says(asked, change(asked)) == answers

    first, second = right(chains.hop1, chains.spouses), right(chains.hop2, chains.cities)
    found = {
        "hop 1": first,
        "hop 2": second,
        "composed": right(chains.target, chains.cities),
        "in one text": first & right(chains.again, chains.cities),
        "sentence": first & right(chains.told, chains.cities),
        "chain": first & second,
    }
    return {name: float(rows.double().mean()) for name, rows in found.items()}


def one_at_a_time(store: FactStore, chains: ChainKeys, others: Tensor | None = None) -> Rows:
    """Rank-one edits, every chain on a base of its own. `others`: keys to spare (see `dual`)."""
    names = ("hop1", "hop2", "target")
    duals = {name: edits.dual(chains.keys(name), others) for name in names}

    def change_of(parts: Sequence[str]) -> Change:
        def change(asked: PromptKeys) -> Tensor:
            total = torch.zeros_like(asked.values)
            for name in parts:
                reach = (asked.keys * duals[name]).sum(-1, keepdim=True)
                total = total + reach * chains.change(name)
            return total

        return change

    systems = {
        "no edit": (),
        "edit A->B": ("hop1",),
        "edit B->C": ("hop2",),
        "edit A->B + edit B->C": ("hop1", "hop2"),
        "edit A->C": ("target",),
        "all three edits": names,
    }
    return [
        {"system": name, "facts": 1, **answered(store, chains, change_of(parts))}
        for name, parts in systems.items()
    ]


def all_at_once(store: FactStore, chains: ChainKeys) -> Rows:
    """Exact edits of all chains: made apart and added, or made together without cross-talk."""

    def together(*names: str) -> Tensor:
        keys = torch.cat([chains.keys(name) for name in names])
        return edits.exact(keys, torch.cat([chains.change(name) for name in names]))

    first, second = together("hop1"), together("hop2")
    systems = {
        "edit A->B": first,
        "edit B->C": second,
        "edit A->B + edit B->C": first + second,
        "one edit of both": together("hop1", "hop2"),
        "one edit of both, and A->C": together("hop1", "hop2", "target"),
    }
    rows: Rows = []
    for name, edit in systems.items():

        def change(asked: PromptKeys, edit: Tensor = edit) -> Tensor:
            return asked.keys @ edit.T

        found = answered(store, chains, change)
        rows.append({"system": name, "facts": len(chains), **found})
    return rows


def whose_key(chains: ChainKeys) -> Rows:
    """Whether a prompt's key is the second hop's key of its own chain.

    For each way of asking: the mean cosine to the own second key and to those of other chains,
    and the share of chains whose nearest second key is their own (chance is 1 / N).
    """
    unit, count = torch.nn.functional.normalize, len(chains)
    second = unit(chains.hop2.keys, dim=-1)
    rows: Rows = []
    for name, asked in (
        ("composed question", chains.target),
        ("step written out, then the question", chains.again),
        ("step written out, then the sentence", chains.told),
        ("second hop asked anew", chains.hop2),
    ):
        cosines = unit(asked.keys, dim=-1) @ second.T
        own = cosines.diagonal()
        rows.append(
            {
                "prompt": name,
                "own": float(own.mean()),
                "others": float((cosines.sum() - own.sum()) / (count * (count - 1))),
                "nearest is own": float((cosines.argmax(1) == torch.arange(count)).double().mean()),
                "chance": 1 / count,
            }
        )
    return rows


def one_fact(
    store: FactStore, chains: ChainKeys, known: Mapping[str, PromptKeys], spared: Tensor
) -> Rows:
    """One rank-one edit of a first hop, and what it does to other prompts.

    `known`: prompts whose answers the base knows, by name. Two ways to read the key: as the
    theory has it, k / ||k||^2, and sparing the keys `spared` [M, inner] in the mean. `exactness`
    is the largest relative error of the value written; `reach` the share of the change that
    another prompt receives; `flipped` the share of its answers that become others.
    """
    changes = chains.hop1_change
    rows: Rows = []
    for way, others in (("the key itself", None), ("sparing other keys", spared)):
        duals = edits.dual(chains.hop1.keys, others)
        written = (chains.hop1.keys * duals).sum(-1, keepdim=True) * changes
        error = (written - changes).norm(dim=-1) / changes.norm(dim=-1)
        right = store.says(chains.hop1, written) == chains.spouses
        row: dict[str, Any] = {
            "reads": way,
            "exactness": float(error.max()),
            "right": float(right.double().mean()),
        }
        for name, asked in known.items():
            reach, before = asked.keys @ duals.T, store.says(asked)  # [M, N], [M]
            flips = [
                float((store.says(asked, reach[:, [i]] * changes[i]) != before).double().mean())
                for i in range(len(changes))
            ]
            row[name] = {
                "reach": float(reach.abs().mean()),
                "most": float(reach.max()),
                "flipped": sum(flips) / len(flips),
            }
        rows.append(row)
    return rows
