"""Two hops in one layer: edits of A -> B and B -> C, apart and together, and what they answer.

Every chain is a person a with a spouse b who lives in c, all unknown to the base. The edit of a hop
is made at the key of its own question. *One chain at a time* every chain has a base of its own with
rank-one edits, as in the theory; *all at once* one edit holds the hop of all chains exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraprobe_lab.facts import (
    CITY_QUESTION,
    CITY_SENTENCE,
    SPOUSE_QUESTION,
    SPOUSE_SENTENCE,
    TARGET_QUESTION,
    Link,
)
from loraprobe_lab.theory import edits
from loraprobe_lab.theory.store import Asked, Store

TOLD = f"{TARGET_QUESTION} {SPOUSE_SENTENCE} {CITY_SENTENCE.partition(' {c}')[0]}"
ASKED_AGAIN = f"{TARGET_QUESTION} {SPOUSE_SENTENCE} {CITY_QUESTION}"
Change = Callable[[Asked], Tensor]  # what an edit adds to the values: [N, hidden]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Chains:
    """N chains as the layer sees their prompts, and the changes that make each hop's answer.

    hop1, hop2, target: the three questions. again: the composed question, its first step written
    out, and the second hop's question. told: the same with the second hop as a sentence to finish.
    """

    hop1: Asked
    hop2: Asked
    target: Asked
    again: Asked
    told: Asked
    spouses: Tensor
    cities: Tensor
    changes: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.spouses)

    def first(self, count: int) -> Chains:
        rows = slice(count)
        return Chains(
            hop1=self.hop1[rows],
            hop2=self.hop2[rows],
            target=self.target[rows],
            again=self.again[rows],
            told=self.told[rows],
            spouses=self.spouses[rows],
            cities=self.cities[rows],
            changes={name: change[rows] for name, change in self.changes.items()},
        )


def chains_of(store: Store, links: Sequence[Link]) -> Chains:
    """Asks the base about every chain and finds the value that each edit has to write."""
    questions = (SPOUSE_QUESTION, CITY_QUESTION, TARGET_QUESTION, ASKED_AGAIN, TOLD)
    hop1, hop2, target, again, told = (store.ask([link.fill(q) for link in links])
                                       for q in questions)  # fmt: skip
    spouses = store.token([link.spouse for link in links])
    cities = store.token([link.city for link in links])
    changes = {
        "hop1": store.towards(hop1, spouses),
        "hop2": store.towards(hop2, cities),
        "target": store.towards(target, cities),
    }
    return Chains(hop1, hop2, target, again, told, spouses, cities, changes)


def answered(store: Store, chains: Chains, change: Change) -> dict[str, float]:
    """Shares of chains that are right with an edit, for each way of asking.

    `in one text` and `sentence` need the first hop right, which is what the model writes down
    first; `chain` asks the second hop anew with the first hop's answer.
    """

    def right(asked: Asked, answers: Tensor) -> Tensor:
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


def one_at_a_time(store: Store, chains: Chains, others: Tensor | None = None) -> Rows:
    """Rank-one edits, every chain on a base of its own. `others`: keys to spare (see `dual`)."""
    keys = {"hop1": chains.hop1.keys, "hop2": chains.hop2.keys, "target": chains.target.keys}
    duals = {name: edits.dual(key, others) for name, key in keys.items()}

    def change_of(names: Sequence[str]) -> Change:
        def change(asked: Asked) -> Tensor:
            total = torch.zeros_like(asked.values)
            for name in names:
                reach = (asked.keys * duals[name]).sum(-1, keepdim=True)
                total = total + reach * chains.changes[name]
            return total

        return change

    systems = {
        "no edit": (),
        "edit A->B": ("hop1",),
        "edit B->C": ("hop2",),
        "edit A->B + edit B->C": ("hop1", "hop2"),
        "edit A->C": ("target",),
        "all three edits": ("hop1", "hop2", "target"),
    }
    return [
        {"system": name, "facts": 1, **answered(store, chains, change_of(parts))}
        for name, parts in systems.items()
    ]


def all_at_once(store: Store, chains: Chains) -> Rows:
    """Exact edits of all chains: made apart and added, or made together without cross-talk."""
    keys = {"hop1": chains.hop1.keys, "hop2": chains.hop2.keys, "target": chains.target.keys}

    def together(*names: str) -> Tensor:
        return edits.exact(
            torch.cat([keys[name] for name in names]),
            torch.cat([chains.changes[name] for name in names]),
        )

    apart = {name: together(name) for name in keys}
    both = apart["hop1"] + apart["hop2"]
    systems = {
        "edit A->B": apart["hop1"],
        "edit B->C": apart["hop2"],
        "edit A->B + edit B->C": both,
        "one edit of both": together("hop1", "hop2"),
        "one edit of both, and A->C": together("hop1", "hop2", "target"),
    }
    return [
        {"system": name, "facts": len(chains), **answered(store, chains, _of(edit))}
        for name, edit in systems.items()
    ]


def _of(edit: Tensor) -> Change:
    return lambda asked: asked.keys @ edit.T


def whose_key(chains: Chains) -> Rows:
    """Whether a prompt's key is the second hop's key of its own chain.

    For each way of asking: the mean cosine to the own second key and to those of other chains,
    and the share of chains whose nearest second key is their own (chance is 1 / N).
    """
    unit = torch.nn.functional.normalize
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
        count = len(own)
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


def one_fact(store: Store, chains: Chains, known: Mapping[str, Asked], spared: Tensor) -> Rows:
    """One rank-one edit of a first hop, and what it does to other prompts.

    `known`: prompts whose answers the base knows, by name. Two ways to read the key: as the
    theory has it, k / ||k||^2, and sparing the keys `spared` [M, inner] in the mean. `exactness`
    is the largest relative error of the value written; `reach` the share of the change that
    another prompt receives; `flipped` the share of its answers that become others.
    """
    changes, rows = chains.changes["hop1"], []
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
            reach = asked.keys @ duals.T  # [M, N]
            before = store.says(asked)
            flips = [
                float((store.says(asked, reach[:, [i]] * changes[i]) != before).double().mean())
                for i in range(len(changes))
            ]
            row[name] = {"reach": float(reach.abs().mean()), "most": float(reach.max()),
                         "flipped": sum(flips) / len(flips)}  # fmt: skip
        rows.append(row)
    return rows
