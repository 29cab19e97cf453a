"""Two hops in one layer: edits of A -> B and B -> C, alone and added, and the model's answers.

Every chain is a person a with a spouse b who lives in c, all unknown to the base. The edit of a hop
is made at the key of its own question. *One chain at a time* every chain has a base of its own with
rank-one edits, as in the theory; *all at once* one edit holds the hop of all chains exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.experiments.theory import edits
from loraprobe_lab.experiments.theory.fact_store import FactStore, PromptKeys
from loraprobe_lab.worlds.chains import Chain
from loraprobe_lab.worlds.couples import COUPLES

SPOUSE_QUESTION, CITY_QUESTION = COUPLES.first[0], COUPLES.second[0]
TARGET_QUESTION = COUPLES.both[0]
# again: the composed question, its first step written out, and the second hop's question; told: the
# same with the second hop as a sentence to finish
PROMPTS = {
    "hop1": SPOUSE_QUESTION,
    "hop2": CITY_QUESTION,
    "target": TARGET_QUESTION,
    "again": f"{TARGET_QUESTION}{COUPLES.step1} {CITY_QUESTION}",
    "told": f"{TARGET_QUESTION}{COUPLES.step1}{COUPLES.step2.partition(' {c}')[0]}",
}
Change = Callable[[PromptKeys], Tensor]  # what an edit adds to the values: [N, hidden]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ChainKeys:
    """The layer's keys of N chains' prompts, and the changes that make each hop's answer.

    asked: the prompts of `PROMPTS`. spouses, cities: tokens [N]. changes: what the edit of "hop1",
    "hop2" or "target" adds to the value at its own question [N, hidden].
    """

    asked: Mapping[str, PromptKeys]
    spouses: Tensor
    cities: Tensor
    changes: Mapping[str, Tensor]

    @classmethod
    def of(cls, store: FactStore, chains: Sequence[Chain]) -> ChainKeys:
        """Asks the base about every chain and finds the value that each edit has to write."""
        asked = {name: store.read([x.fill(text) for x in chains]) for name, text in PROMPTS.items()}
        spouses = store.token([chain.b for chain in chains])
        cities = store.token([chain.c for chain in chains])
        answers = {"hop1": spouses, "hop2": cities, "target": cities}
        changes = {name: store.changes(asked[name], tokens) for name, tokens in answers.items()}
        return cls(asked, spouses, cities, changes)

    def __len__(self) -> int:
        return len(self.spouses)

    def first(self, count: int) -> ChainKeys:
        return ChainKeys(
            {name: keys[:count] for name, keys in self.asked.items()},
            self.spouses[:count],
            self.cities[:count],
            {name: change[:count] for name, change in self.changes.items()},
        )


def answered(store: FactStore, chains: ChainKeys, change: Change) -> dict[str, float]:
    """Shares of chains that are right with an edit, for each way of asking.

    `in one text` and `sentence` need the first hop right, which is what the model writes down
    first; `chain` asks the second hop anew with the first hop's answer.
    """

    def right(name: str, answers: Tensor) -> Tensor:
        asked = chains.asked[name]
        return store.predicted(asked, change(asked)) == answers

    first, second = right("hop1", chains.spouses), right("hop2", chains.cities)
    found = {
        "hop 1": first,
        "hop 2": second,
        "composed": right("target", chains.cities),
        "in one text": first & right("again", chains.cities),
        "sentence": first & right("told", chains.cities),
        "chain": first & second,
    }
    return {name: float(rows.double().mean()) for name, rows in found.items()}


def one_at_a_time(store: FactStore, chains: ChainKeys, others: Tensor | None = None) -> Rows:
    """Rank-one edits, every chain on a base of its own. `others`: keys to spare (see `dual`)."""
    duals = {name: edits.dual(chains.asked[name].keys, others) for name in chains.changes}

    def change(parts: Sequence[str], asked: PromptKeys) -> Tensor:
        total = torch.zeros_like(asked.values)
        for name in parts:
            reach = (asked.keys * duals[name]).sum(-1, keepdim=True)
            total = total + reach * chains.changes[name]
        return total

    systems = {
        "no edit": (),
        "edit A->B": ("hop1",),
        "edit B->C": ("hop2",),
        "edit A->B + edit B->C": ("hop1", "hop2"),
        "edit A->C": ("target",),
        "all three edits": tuple(duals),
    }
    return [
        {"system": name, "facts": 1, **answered(store, chains, partial(change, parts))}
        for name, parts in systems.items()
    ]


def all_at_once(store: FactStore, chains: ChainKeys) -> Rows:
    """Exact edits of all chains: computed separately and added, or computed together."""

    def together(*names: str) -> Tensor:
        keys = torch.cat([chains.asked[name].keys for name in names])
        return edits.exact(keys, torch.cat([chains.changes[name] for name in names]))

    def change(edit: Tensor, asked: PromptKeys) -> Tensor:
        return asked.keys @ edit.T

    first, second = together("hop1"), together("hop2")
    systems = {
        "edit A->B": first,
        "edit B->C": second,
        "edit A->B + edit B->C": first + second,
        "one edit of both": together("hop1", "hop2"),
        "one edit of both, and A->C": together("hop1", "hop2", "target"),
    }
    return [
        {"system": name, "facts": len(chains), **answered(store, chains, partial(change, edit))}
        for name, edit in systems.items()
    ]


def key_cosines(chains: ChainKeys) -> Rows:
    """Compares each prompt's key with the second hop's key of its own chain.

    For each way of asking: the mean cosine to the own second key and to those of other chains,
    and the share of chains whose nearest second key is their own (chance is 1 / N).
    """
    unit, count = torch.nn.functional.normalize, len(chains)
    second = unit(chains.asked["hop2"].keys, dim=-1)
    rows: Rows = []
    for name, asked in (
        ("composed question", "target"),
        ("step written out, then the question", "again"),
        ("step written out, then the sentence", "told"),
        ("second hop asked anew", "hop2"),
    ):
        cosines = unit(chains.asked[asked].keys, dim=-1) @ second.T
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
    """One rank-one edit of a first hop, and its effect on other prompts.

    `known`: prompts whose answers the base knows, by name. Two ways to read the key: as the
    theory has it, k / ||k||^2, and sparing the keys `spared` [M, inner] in the mean. `exactness`
    is the largest relative error of the value written; `reach` the share of the change that
    another prompt receives; `flipped` the share of its answers that become others.
    """
    changes, hop1 = chains.changes["hop1"], chains.asked["hop1"]
    rows: Rows = []
    for way, others in (("the key itself", None), ("sparing other keys", spared)):
        duals = edits.dual(hop1.keys, others)
        written = (hop1.keys * duals).sum(-1, keepdim=True) * changes
        error = (written - changes).norm(dim=-1) / changes.norm(dim=-1)
        right = store.predicted(hop1, written) == chains.spouses
        row: dict[str, Any] = {
            "reads": way,
            "exactness": float(error.max()),
            "right": float(right.double().mean()),
        }
        for name, asked in known.items():
            reach, before = asked.keys @ duals.T, store.predicted(asked)  # [M, N], [M]
            flips = [
                float(
                    (store.predicted(asked, reach[:, [i]] * changes[i]) != before).double().mean()
                )
                for i in range(len(changes))
            ]
            row[name] = {
                "reach": float(reach.abs().mean()),
                "most": float(reach.max()),
                "flipped": sum(flips) / len(flips),
            }
        rows.append(row)
    return rows
