"""The theory of composing fact edits, shown in numbers on one trained layer.

The setting is that of arXiv 2506.13479: the MLP of a layer stores facts as key -> value, a fact is
changed by a rank-one update, and the sum of the updates for A -> B and B -> C does not answer
A -> C, because the second key holds what the prompt lacks. `FactStore` reads the layer; the algebra
of edits, facts per rank, two hops, and what runs the experiments and makes the page follow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from loraprobe.records import Progress
from loraprobe_lab.experiments.pages import BLUE, DARK, GREY, RED, Pages, as_svg, drawing, render
from loraprobe_lab.training import IGNORED, Recipe, load_base, trained
from loraprobe_lab.world import shipped_world, silent, versions
from loraprobe_lab.worlds.couples import COUPLES, Facts, FactSizes, make_facts
from loraprobe_lab.worlds.facts import Chain

# The MLP of the last layer as a store of facts, read at the token that answers a prompt.
#
# For one token the layer computes ``x -> k = silu(gate x) * (up x) -> v = down k``: k is the key, v
# the value that is added to the residual stream, which then goes to the norm and the head alone. So
# a change of `down` changes the answer through its effect on this one key, as in the theory, and
# everything the base computes before the layer can be kept: an edit or a training of this MLP needs
# no forward pass of the model.


BATCH = 100  # prompts that go through the base at once


@dataclass(frozen=True)
class PromptKeys:
    """The layer's keys and values at the last token of prompts, in the store's dtype.

    before: [N, hidden], the residual stream that the value is added to. keys: [N, inner]. values:
    [N, hidden].
    """

    before: Tensor
    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Any) -> PromptKeys:
        return PromptKeys(self.before[rows], self.keys[rows], self.values[rows])


@dataclass(frozen=True)
class FactStore:
    """The last layer's MLP with what follows it. gate, up: [inner, hidden]; down: [hidden, inner];
    norm: [hidden]; head: [vocabulary, hidden]."""

    model: Any
    tokenizer: Any
    gate: Tensor
    up: Tensor
    down: Tensor
    norm: Tensor
    eps: float
    head: Tensor

    @classmethod
    def of(cls, model: Any, tokenizer: Any, dtype: torch.dtype = torch.float64) -> FactStore:
        """Reads the last layer of a loaded Llama-shaped causal model; weights are copied."""
        mlp = model.model.layers[-1].mlp

        def copy(weight: Tensor) -> Tensor:
            return weight.detach().to(dtype, copy=True)

        return cls(
            model,
            tokenizer,
            copy(mlp.gate_proj.weight),
            copy(mlp.up_proj.weight),
            copy(mlp.down_proj.weight),
            copy(model.model.norm.weight),
            float(model.model.norm.variance_epsilon),
            copy(model.lm_head.weight),
        )

    def token(self, words: Sequence[str]) -> Tensor:
        """The one token of each word. [N] Raises ValueError for a word of several."""
        rows = self.tokenizer(list(words), add_special_tokens=False)["input_ids"]
        return torch.tensor([token for (token,) in rows])

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> PromptKeys:
        """Runs the base on prompts of one length in tokens, and computes their keys and values.

        Raises ValueError for prompts of several lengths.
        """
        rows = torch.tensor(self.tokenizer(list(prompts))["input_ids"])
        read, before = list[Tensor](), list[Tensor]()
        layer = self.model.model.layers[-1]
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda _, args: read.append(args[0][:, -1])),
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args: before.append(args[0][:, -1])
            ),
        ]
        try:
            for batch in rows.split(BATCH):
                self.model.model(batch, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        inputs, residual = (torch.cat(parts).to(self.down.dtype) for parts in (read, before))
        keys = torch.nn.functional.silu(inputs @ self.gate.T) * (inputs @ self.up.T)
        return PromptKeys(residual, keys, keys @ self.down.T)

    def logits(self, residual: Tensor) -> Tensor:
        """The model's logits from a residual stream: [..., hidden] -> [..., vocabulary]."""
        scale = (residual.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        return residual * scale * self.norm @ self.head.T

    def predicted(self, asked: PromptKeys, change: Tensor | None = None) -> Tensor:
        """The answer's token, with `change` [N, hidden] added to the values. [N]"""
        values = asked.values if change is None else asked.values + change
        return self.logits(asked.before + values).argmax(-1)

    def changes(self, asked: PromptKeys, answers: Tensor, certainty: float = 0.9) -> Tensor:
        """The least change of each value that gives the answer [N] this probability: [N, hidden].

        The change lies along the answer's direction in the head. A fact's edit has to write the old
        value plus this change. Raises ValueError if no length of that direction is enough.
        """
        direction = (self.head[answers] - self.head.mean(0)) * self.norm
        direction = direction / direction.norm(dim=-1, keepdim=True)
        start = asked.before + asked.values

        def sure(length: Tensor) -> Tensor:
            chances = self.logits(start + length[:, None] * direction).softmax(-1)
            return chances.gather(1, answers[:, None])[:, 0] >= certainty

        return _least(sure, start.norm(dim=-1))[:, None] * direction


def _least(sure: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
    """The least length [N] at which each row is sure, by doubling and bisection."""
    high = scale.clone()
    for _ in range(12):
        high = torch.where(sure(high), high, 2 * high)
    if not bool(sure(high).all()):
        raise ValueError("no value makes the model say this answer")
    low = torch.zeros_like(high)
    for _ in range(40):
        middle = (low + high) / 2
        enough = sure(middle)
        high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
    return high


# Edits of a linear store W [out, in]: what has to be added so that given keys give given values.
#
# Keys K [N, in] and changes R [N, out] (new value - old value) are rows. An edit E is exact when E
# k_i = r_i for all i, that is E K^T = R^T. So rank E >= rank R: the *residual's* rank bounds what
# an exact edit needs from below, and the least edit R^T pinv(K^T) attains it. It exists whenever
# the keys do not contradict each other (independent keys never do).


RELATIVE = 1e-9  # singular values below this share of the largest count as zero (float64)


def dual(keys: Tensor, others: Tensor | None = None, ridge: float = 1e-3) -> Tensor:
    """The row u_i with which a rank-one edit change u_i^T reads its key: u_i . k_i = 1. [N, in]

    Without `others` it is k / ||k||^2, the theory's edit of one fact. With the keys of other
    prompts [M, in] it is C^-1 k / (k . C^-1 k) with C their second moment plus `ridge` times its
    mean eigenvalue: still exact, and least disturbing for them in the mean.
    """
    towards = keys
    if others is not None:
        moment = others.T @ others / len(others)
        moment = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        towards = torch.linalg.solve(moment, keys.T).T
    return towards / (towards * keys).sum(-1, keepdim=True)


def exact_edit(keys: Tensor, changes: Tensor) -> Tensor:
    """The edit of least norm that gives every key its change. [N, in], [N, out] -> [out, in]"""
    return changes.T @ torch.linalg.pinv(keys.T, rtol=RELATIVE)


def edit_of_rank(keys: Tensor, changes: Tensor, rank: int) -> Tensor:
    """The edit of at most this rank with the least total squared error over the keys.

    For independent keys: the exact edit projected on the leading directions of the changes.
    """
    leading = torch.linalg.svd(changes.T, full_matrices=False).U[:, :rank]
    return leading @ (leading.T @ exact_edit(keys, changes))


def rank_of(matrix: Tensor) -> int:
    """How many singular values exceed `RELATIVE` times the largest."""
    return int(torch.linalg.matrix_rank(matrix, rtol=RELATIVE))


def rank_of_energy(matrix: Tensor, share: float = 0.99) -> int:
    """How many directions hold this share of the squared norm."""
    energy = torch.linalg.svdvals(matrix).pow(2).cumsum(0)
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


# Facts per rank: the bound of the exact edit, and trained LoRAs.
#
# An exact edit needs the rank of its residual (see `edits`). Training needs less: the right answer
# has to be the most likely token, but no exact value is required. Facts are questions about people
# unknown to the base, each with its own answer, so that none can be guessed.


@dataclass(frozen=True)
class NewFacts:
    """N prompts, the layer's inputs and keys for them, and the tokens of their answers [N]."""

    prompts: tuple[str, ...]
    asked: PromptKeys
    answers: Tensor

    @classmethod
    def of(cls, store: FactStore, prompts: Sequence[str], answers: Sequence[str]) -> NewFacts:
        return cls(tuple(prompts), store.read(prompts), store.token(answers))

    def __len__(self) -> int:
        return len(self.answers)

    def first(self, count: int) -> NewFacts:
        return NewFacts(self.prompts[:count], self.asked[:count], self.answers[:count])


def bound(
    store: FactStore,
    facts: NewFacts,
    kind: str,
    counts: Sequence[int],
    ranks: Sequence[int],
    known: tuple[PromptKeys, Tensor],
) -> Rows:
    """The exact edit of the first N facts for each N, and its best approximations of low rank.

    `residual rank` bounds the rank of every exact edit from below; `edit rank` is what the least
    one has; `error` is the largest relative error of a value that it writes. `recalled` maps a
    rank to the share of facts recalled with the best edit of that rank. `kept` is the share of
    `known` answers (prompts, tokens) that are still given.
    """

    def right(asked: PromptKeys, answers: Tensor, edit: Tensor) -> float:
        return float((store.predicted(asked, asked.keys @ edit.T) == answers).double().mean())

    rows: Rows = []
    for some in map(facts.first, counts):
        keys, changes = some.asked.keys, store.changes(some.asked, some.answers)
        edit = exact_edit(keys, changes)
        error = (keys @ edit.T - changes).norm(dim=-1) / changes.norm(dim=-1)
        low = {rank: edit_of_rank(keys, changes, rank) for rank in ranks}
        rows.append(
            {
                "facts": kind,
                "n": len(some),
                "answers": len(set(some.answers.tolist())),
                "residual rank": rank_of(changes),
                "rank of 99 % energy": rank_of_energy(changes),
                "edit rank": rank_of(edit),
                "error": float(error.max()),
                "norm": float(edit.norm() / store.down.norm()),
                "kept": right(*known, edit),
                "recalled": {r: right(some.asked, some.answers, e) for r, e in low.items()},
            }
        )
    return rows


# the modules of a place, and how many of the last layers it has (None: all); its colour and name in
# the figure, its name on the page
PLACES: dict[str, tuple[str | tuple[str, ...], int | None, str, str, str]] = {
    "down": (("down_proj",), 1, GREY, "down, last layer", "`down` of the last layer"),
    "mlp": ("mlp", 1, BLUE, "MLP, last layer", "the MLP of the last layer"),
    "all layers": ("all-linear", None, RED, "all linear layers", "all linear layers"),
}


def train(
    store: FactStore, facts: NewFacts, place: str, rank: int, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Trains a LoRA of the last layer's `down`, of its MLP, or of all layers by AdamW.

    The loss is that of the answer's token. Returns the recalled facts; the model does not change.
    """
    (targets, upper, *_), size = PLACES[place], min(recipe.batch_size, len(facts))
    recipe = replace(recipe, rank=rank, seed=seed, target_modules=targets, upper=upper)
    prompts = store.tokenizer(list(facts.prompts))["input_ids"]
    rows = [
        ([*prompt, answer], [IGNORED] * len(prompt) + [answer])
        for prompt, answer in zip(prompts, facts.answers.tolist(), strict=True)
    ]
    pad = store.tokenizer.pad_token_id
    with trained(store.model, rows, replace(recipe, batch_size=size), pad) as (wrapped, _):
        with torch.no_grad():
            parts = torch.tensor(prompts).split(100)
            logits = [wrapped(input_ids=ids, use_cache=False).logits[:, -1] for ids in parts]
        count = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    share = float((torch.cat(logits).argmax(-1) == facts.answers).double().mean())
    return {
        "place": place,
        "rank": rank,
        "n": len(facts),
        "recalled": share,
        "facts": round(share * len(facts)),
        "parameters": count,
    }


# Two hops in one layer: edits of A -> B and B -> C, alone and added, and the model's answers.
#
# Every chain is a person a with a spouse b who lives in c, all unknown to the base. The edit of a
# hop is made at the key of its own question. *One chain at a time* every chain has a base of its
# own with rank-one edits, as in the theory; *all at once* one edit holds the hop of all chains
# exactly.


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
    duals = {name: dual(chains.asked[name].keys, others) for name in chains.changes}

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
        return exact_edit(keys, torch.cat([chains.changes[name] for name in names]))

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
        duals = dual(hop1.keys, others)
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


IN_LAYER = Recipe(steps=200, learning_rate=1e-2, batch_size=64)
EVERYWHERE = Recipe(steps=200, learning_rate=3e-3, batch_size=32)


@dataclass(frozen=True)
class TheoryPlan:
    """Sizes of the experiments. `alone`: how many edits are tried against other prompts;
    `together`: chains held by one edit; the rest belongs to facts per rank. runs: (place, facts,
    rank) of each training."""

    alone: int = 50
    together: tuple[int, ...] = (10, 50, 100, 200)
    bound: tuple[int, ...] = (10, 25, 50, 100, 150, 200, 300, 400)
    approximations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    runs: tuple[tuple[str, int, int], ...] = tuple(product(("mlp",), (10, 50, 200), (1, 4, 16)))
    training: Recipe = IN_LAYER
    everywhere: Recipe = EVERYWHERE


QUICK = TheoryPlan()
FULL = TheoryPlan(
    runs=(
        *product(("down", "mlp"), (10, 50, 200, 400), (1, 4, 16)),
        *product(("all layers",), (50, 200), (1, 4, 16)),
    ),
    training=replace(QUICK.training, steps=400),
)


def theory(plan: TheoryPlan = QUICK, seed: int = 0, progress: Progress = silent) -> Pages:
    """Runs every experiment. The document holds plain numbers and lists, see `report`."""
    from loraprobe.base.quiet import quiet

    world = shipped_world()
    facts = make_facts(FactSizes(**world.manifest["recipe"]["sizes"]), world.seed)
    assert world.base is not None
    with quiet():
        store = FactStore.of(*load_base(world.base))
        document = {
            "command": "loraprobe lab theory" + (" --full" if plan == FULL else ""),
            "seed": seed,
            "base": world.base_name,
            "layer": {"hidden": store.down.shape[0], "inner": store.down.shape[1]},
            "versions": versions(),
            "plan": asdict(plan),
            **_edits(store, facts, plan, seed),
            "bound": _bound(store, facts, plan, seed),
            "trained": _trained(store, facts, plan, seed, progress),
        }
    return theory_pages(document)


def _edits(store: FactStore, facts: Facts, plan: TheoryPlan, seed: int) -> dict[str, Any]:
    """Single facts and two hops."""
    strangers = random.Random(f"chains:{seed}").sample(facts.strangers, len(facts.strangers))
    chains = ChainKeys.of(store, strangers)
    familiar = random.Random(f"known:{seed}").sample(facts.familiar, 100)
    known = {
        name: store.read([chain.fill(question) for chain in familiar])
        for name, question in (
            ("same question", SPOUSE_QUESTION),
            ("other question", CITY_QUESTION),
            ("composed question", TARGET_QUESTION),
        )
    }
    spared = torch.cat([asked.keys for asked in known.values()])
    counts = [count for count in plan.together if count <= len(chains)]
    return {
        "chains": len(chains),
        "one fact": one_fact(store, chains.first(plan.alone), known, spared),
        "one at a time": one_at_a_time(store, chains),
        "one at a time, sparing": one_at_a_time(store, chains, spared),
        "all at once": [row for n in counts for row in all_at_once(store, chains.first(n))],
        "keys": key_cosines(chains),
    }


def _new_facts(
    store: FactStore, facts: Facts, question: str, answers: Sequence[str], seed: int
) -> NewFacts:
    """As many new facts as there are answers, about people of whom the base knows nothing."""
    people = [name for chain in facts.strangers for name in (chain.a, chain.b)]
    people += [chain.a for chain in facts.newcomers]
    random.Random(f"people:{seed}").shuffle(people)
    prompts = [question.format(a=name, b=name) for name in people[: len(answers)]]
    return NewFacts.of(store, prompts, answers)


def _spouses(facts: Facts, count: int, seed: int) -> list[str]:
    """Answers of which each is another one."""
    return random.Random(f"spouses:{seed}").sample(facts.names(), count)


def _bound(store: FactStore, facts: Facts, plan: TheoryPlan, seed: int) -> list[dict[str, Any]]:
    asked = store.read([chain.fill(SPOUSE_QUESTION) for chain in facts.familiar])
    known = (asked, store.token([chain.b for chain in facts.familiar]))
    most = max(plan.bound)
    cities = [facts.cities[i % len(facts.cities)] for i in range(most)]  # few, so they repeat
    random.Random(f"homes:{seed}").shuffle(cities)
    kinds = {
        "own answers": _new_facts(store, facts, SPOUSE_QUESTION, _spouses(facts, most, seed), seed),
        "shared answers": _new_facts(store, facts, CITY_QUESTION, cities, seed),
    }
    return [
        row
        for kind, new in kinds.items()
        for row in bound(store, new, kind, plan.bound, plan.approximations, known)
    ]


def _trained(
    store: FactStore, facts: Facts, plan: TheoryPlan, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    names = _spouses(facts, max(n for _, n, _ in plan.runs), seed)
    new, rows = _new_facts(store, facts, SPOUSE_QUESTION, names, seed), []
    for done, (place, count, rank) in enumerate(plan.runs):
        progress("trainings", done, len(plan.runs))
        recipe = plan.everywhere if place == "all layers" else plan.training
        rows.append(train(store, new.first(count), place, rank, recipe, seed))
    return rows


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    markdown = render(
        "theory",
        document=document,
        alone={row["system"]: row for row in document["one at a time"]},
        bound_met=all(row["edit rank"] == row["residual rank"] for row in document["bound"]),
        most=max(document["trained"], key=lambda row: row["facts"] / row["rank"]),
        places={place: name for place, (*_, name) in PLACES.items()},
    )
    return Pages("theory", document, markdown, lambda: theory_figure(document), digits=None)


BARS = {
    "composed": (RED, "asked at once"),
    "sentence": (GREY, "after the written step"),
    "chain": (BLUE, "second hop asked anew"),
}


def theory_figure(document: Mapping[str, Any]) -> str:
    """SVG with two panels: two hops by rank-one edits, and the most facts that any training of a
    rank recalled, by place."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        rows = document["one at a time"]
        for k, (part, (colour, label)) in enumerate(BARS.items()):
            places = [i + 0.26 * (k - 1) for i in range(len(rows))]
            left.barh(places, [row[part] for row in rows], 0.24, color=colour, label=label)
        left.set_yticks(range(len(rows)), [row["system"].replace("->", "→") for row in rows])
        left.invert_yaxis()
        left.set(xlim=(0, 1), xlabel=f"share of {document['chains']} chains right")
        left.set_title("Rank-one edits, one chain at a time", loc="left")
        left.legend(frameon=False, fontsize=7, loc="upper right")
        trained = sorted(document["trained"], key=lambda row: row["rank"])
        for place, (_, _, colour, label, _) in PLACES.items():
            most: dict[int, int] = {}
            for row in trained:
                if row["place"] == place:
                    most[row["rank"]] = max(row["facts"], most.get(row["rank"], 0))
            if most:
                right.plot(list(most), list(most.values()), "o-", color=colour, ms=4, label=label)
        ranks = list(dict.fromkeys(row["rank"] for row in trained))
        right.plot(ranks, ranks, "--", color=DARK, lw=0.8, label="one fact a rank")
        right.set_xscale("log", base=2)
        right.set_yscale("symlog", linthresh=1)
        right.set_xticks(ranks, [str(rank) for rank in ranks])
        right.set_yticks([0, 1, 10, 100, 400], ["0", "1", "10", "100", "400"])
        right.set(ylim=(0, None), xlabel="rank of the trained LoRA", ylabel="most facts recalled")
        right.set_title("What training holds", loc="left")
        right.legend(frameon=False, fontsize=7, loc="lower right")
        return as_svg(figure)
