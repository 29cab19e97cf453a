"""Measures whether adapters can be chosen without asking them, on a library whose pairs were tried.

    loraprobe lab build library -o LIBRARY
    loraprobe lab pairs LIBRARY -o pairs.json
    python benchmarks/retrieval.py LIBRARY pairs.json -o retrieval.json [--encoder DIRECTORY]

Two published methods choose adapters of a library for a task or a prompt without training.

- LoGo (arXiv 2511.07129): what an adapter adds at the last token of a prompt, in the query
  projection of the last layer. Its norm, or the inverse entropy of its softmax, says how much the
  adapter has to do with the prompt. Here every adapter reads the base's states, so that one pass of
  the base serves the library. Adapters that do not change that module are also read in all modules.
- LoRAuter (arXiv 2601.21795): the cosine of the embeddings of the prompt and of an adapter's own
  task, the mean over 20 of its prompts. They are given, as there, or sampled from the adapter in
  place of a user's turn, which is what a library without model cards has. The encoder is a
  directory of a sentence encoder, or the base: the mean of its last states.

A signal is an array [adapters, forms, items]: of each adapter for the question and each hop of
each item; more is better. It ranks the pairs, beside the rankings of `rankings.py`, and
chooses which adapters are asked at all: the best k, each form of the question taking its turn. The
latter is compared with halving the library after 5, 10 and 20 items, by what adapters answer alone
(so LoRAuter finds the best adapter of a task) or by the forecast of their best pair, and with
`screen` itself, which asks half of the items alone and the others of the sums of sets.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rankings import (
    FIRST,
    Seen,
    Truth,
    arguments,
    asked_alone,
    base_of,
    each_task,
    rankings_of,
    recalls,
    seen_of,
)

from loraprobe.evaluation.questions import BASE
from loraprobe.extensions.screen.defaults import KEEP, TRIED
from loraprobe.extensions.screen.ranking import FormRanking, TaskScores, choose
from loraprobe.records import ItemResult
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Item
from loraprobe_lab.experiments.pages import markdown_table
from loraprobe_lab.experiments.pairs import Delta, MergedBase
from loraprobe_lab.training import load_base
from loraprobe_lab.world import World
from loraprobe_lab.worlds.library import FAMILIES, library_world

TEXTS = 20  # of an adapter's own task
KEPT = (20, 40, 60, 100)  # adapters that are asked at all
KEPT_OF_TASKS = (10, 20, 30, 40)  # of those that learned something about any task
ROUNDS = (5, 10, 20)  # items after which the library is halved
BEST_PAIRS = 10  # that a choice of adapters should keep
Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors [texts, d]


def prompts_of(item: Item) -> list[str]:
    """The question in its own form, and each hop with the right answers before it."""
    hops = [item.hop_prompt(at) for at in range(len(item.hops))]
    return [item.cot_prompt or item.prompt, *hops]


# LoGo: what an adapter adds at the last token.


@torch.no_grad()
def last_inputs(model: Any, tokenizer: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The input [prompts, in] of every linear layer of the model at the last token of prompts."""
    taken: dict[str, list[torch.Tensor]] = {}

    def take(name: str) -> Callable[..., None]:
        return lambda _, given: taken.setdefault(name, []).append(given[0][0, -1].float())

    hooks = [
        layer.register_forward_pre_hook(take(name))
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    for prompt in prompts:
        model(**tokenizer(prompt, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(rows) for name, rows in taken.items()}


def added(inputs: Mapping[str, torch.Tensor], delta: Delta, module: str) -> torch.Tensor:
    """What an adapter adds to the output of a module: [prompts, out], 0 if it leaves it alone."""
    x = inputs[module]
    if module not in delta:
        return torch.zeros(len(x), 1)
    B, A = delta[module]
    return x @ A.T @ B.T


def norms(
    inputs: Mapping[str, torch.Tensor], deltas: Sequence[Delta], modules: Sequence[str]
) -> np.ndarray:
    """The norm of what each adapter adds to some modules together: [adapters, prompts]."""
    squares = [sum(added(inputs, one, m).square().sum(-1) for m in modules) for one in deltas]
    return torch.stack(squares).sqrt().numpy()


def inverse_entropies(
    inputs: Mapping[str, torch.Tensor], deltas: Sequence[Delta], module: str
) -> np.ndarray:
    """The inverse entropy of the softmax of what each adapter adds: [adapters, prompts].

    0 for an adapter that leaves the module alone.
    """
    found = []
    for one in deltas:
        logs = added(inputs, one, module).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        found.append(1 / entropy if module in one else torch.zeros(len(logs)))
    return torch.stack(found).numpy()


def update_norms(deltas: Sequence[Delta]) -> np.ndarray:
    """The Frobenius norm [adapters] of each adapter's update, all modules together."""
    squares = [sum(((B.T @ B) * (A @ A.T)).sum() for B, A in one.values()) for one in deltas]
    return torch.stack(squares).sqrt().numpy()


@torch.no_grad()
def next_token_certainty(
    merged: MergedBase, names: Sequence[str], prompts: Sequence[str]
) -> np.ndarray:
    """The inverse entropy of the next token of the base with each adapter: [adapters, prompts]."""
    scorer, rows = ModelScorer(merged.model, merged.tokenizer), []
    for name in names:
        merged.set([name], 1.0)
        logs = scorer.first_token_distribution(prompts)
        rows.append(-1 / (logs.exp() * logs.clamp_min(-1e4)).sum(-1))
    merged.set([], 1.0)
    return torch.stack(rows).numpy()


# LoRAuter: which adapter's own task the prompt resembles.


def base_encoder(model: Any, tokenizer: Any) -> Encode:
    """The mean of a causal model's last states."""

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
            for text in texts
        ]
        return _unit(np.stack([row.hidden_states[-1][0].mean(0).numpy() for row in rows]))

    return encode


def sentence_encoder(directory: Path) -> Encode:
    """The mean of the states of a sentence encoder, such as all-MiniLM-L6-v2."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModel.from_pretrained(directory),
    )
    model.eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return _unit(torch.cat(found).numpy())

    return encode


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)


def similarities(
    encode: Encode, own: Sequence[Sequence[str]], prompts: Sequence[str]
) -> np.ndarray:
    """Cosine of each prompt and the mean of each adapter's own texts: [adapters, prompts].

    -1 for an adapter without a text.
    """
    texts = list(dict.fromkeys([text for some in own for text in some]))
    vectors = dict(zip(texts, encode(texts), strict=True))
    asked, rows = encode(prompts), []
    for some in own:
        mean = np.mean([vectors[text] for text in some], 0) if some else None
        rows.append(np.full(len(prompts), -1.0) if mean is None else asked @ _unit(mean))
    return np.stack(rows)


def given_texts(world: World, names: Sequence[str]) -> list[list[str]]:
    """Some prompts that each adapter of a library was trained on, drawn by the world's seed."""
    training = {one.name: one.examples for one in library_world(world.seed).training}
    rng, found = np.random.default_rng(world.seed), []
    for name in names:
        texts = list(dict.fromkeys(e.prompt or e.completion for e in training[name]))
        some = rng.permutation(len(texts))[:TEXTS]
        found.append([texts[k] for k in some])
    return found


def sampled_texts(merged: MergedBase, names: Sequence[str]) -> list[list[str]]:
    """What the base with each adapter writes in place of a user's turn."""
    scorer, found = ModelScorer(merged.model, merged.tokenizer), []
    for seed, name in enumerate(names):
        merged.set([name], 1.0)
        texts = [text.strip() for text in scorer.sample(TEXTS, seed=seed, max_new_tokens=24)]
        found.append([text for text in texts if text])
    merged.set([], 1.0)
    return found


def signals_of(
    world: World, names: Sequence[str], items: Sequence[Item], encoder: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Name -> signal [adapters, forms, items], and the CPU seconds that it took."""
    merged = MergedBase(world)
    deltas = [merged.deltas[name] for name in names]
    forms = list(zip(*(prompts_of(item) for item in items), strict=True))
    prompts = [prompt for form in forms for prompt in form]
    # Adapters are merged into the model of `merged`; the base that reads prompts is another one.
    model, tokenizer = load_base(base_of(world))
    encoders = {"base's states": base_encoder(model, tokenizer)}
    if encoder is not None:
        encoders["sentence encoder"] = sentence_encoder(encoder)
    inputs: dict[str, torch.Tensor] = {}
    changed = sorted({module for one in deltas for module in one})
    layers = [module.rpartition("layers.")[2].partition(".")[0] for module in changed]
    last = [m for m, at in zip(changed, layers, strict=True) if at == max(layers, key=int)]
    query = next(module for module in last if module.endswith("q_proj"))
    texts: dict[str, list[list[str]]] = {}

    def read_base() -> np.ndarray:
        inputs.update(last_inputs(model, tokenizer, prompts))
        return norms(inputs, deltas, [query])

    makers: dict[str, Callable[[], np.ndarray]] = {
        "LoGo: norm, query of the last layer": read_base,
        "LoGo: inverse entropy, the same": lambda: inverse_entropies(inputs, deltas, query),
        "LoGo: norm, all of the last layer": lambda: norms(inputs, deltas, last),
        "LoGo: norm, all modules": lambda: norms(inputs, deltas, changed),
        "the same, by the norm of the update": lambda: (
            norms(inputs, deltas, changed) / update_norms(deltas)[:, None]
        ),
        "norm of the update": lambda: np.repeat(update_norms(deltas)[:, None], len(prompts), 1),
        "inverse entropy of the next token": lambda: next_token_certainty(merged, names, prompts),
    }
    sources = {
        "given": lambda: given_texts(world, names),
        "sampled": lambda: sampled_texts(merged, names),
    }

    def of(source: str, encode: Encode) -> np.ndarray:
        if source not in texts:
            texts[source] = sources[source]()
        return similarities(encode, texts[source], prompts)

    for source in sources:
        for name, encode in encoders.items():
            makers[f"LoRAuter: {source} texts, {name}"] = lambda s=source, e=encode: of(s, e)
    found, seconds = {}, {}
    for name, make in makers.items():
        start = time.process_time()
        found[name] = make().reshape(len(names), len(forms), len(items))
        seconds[name] = round(time.process_time() - start, 1)
    return found, seconds


# What is made of a signal.


def order_of(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The adapters, the best first: the forms of the question take turns."""
    means = signal.mean(-1)
    means = means + rng.random(means.shape) * 1e-9 * (1 + np.abs(means).max())
    places = np.argsort(np.argsort(-means, axis=0), axis=0)
    return np.argsort(places.min(1), kind="stable")


def pair_scores(seen: Seen) -> np.ndarray:
    """The scores [pairs] by which `screen` ranks: the better of its two forms."""
    rankings = rankings_of(seen)
    used = [name for name in rankings if name.startswith(("forecast", "mean of both"))]
    return np.max([rankings[name](seen) for name in used], 0)


def highest(seen: Seen, scores: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """Of each adapter [n] the score of its best pair, of those of kept adapters."""
    n = len(seen.cosines)
    found = np.full(n, -np.inf)
    inside = np.ones(len(scores), bool) if kept is None else np.isin(seen.pairs, kept).all(1)
    for members in seen.pairs[inside].T:
        np.maximum.at(found, members, scores[inside])
    return found


def halved(
    see: Callable[[np.ndarray], Seen],
    order: np.ndarray,
    by: Callable[[Seen, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, float]:
    """The adapters that are left after each of ROUNDS halves them, and the share of passes.

    see: what is seen after some items. order: the items. by: of what was seen, and who is left, how
    good each adapter is [n].
    """
    n = len(see(order[:1]).cosines)
    kept, asked, before = np.arange(n), 0, 0
    for upto in ROUNDS:
        asked += len(kept) * (upto - before)
        value = by(see(order[:upto]), kept)[kept]
        kept = kept[np.argsort(-value, kind="stable")[: math.ceil(len(kept) / 2)]]
        before = upto
    asked += len(kept) * (len(order) - before)
    return kept, asked / (n * len(order))


def as_screen(
    see: Callable[[np.ndarray], Seen],
    order: np.ndarray,
    names: Sequence[str],
    truth: Truth,
    rng: np.random.Generator,
) -> dict[str, float]:
    """The same of what `screen` does: half of the items alone, the others of sums of sets.

    What these answer is drawn from the truth.
    """
    half = len(order) // 2
    some = see(order[:half])
    scores = pair_scores(some)
    order_of_pairs = np.argsort(-scores, kind="stable").tolist()
    rows = tuple((tuple(some.pairs[k].tolist()), float(scores[k])) for k in order_of_pairs)
    chosen = choose([FormRanking(rows, len(rows), True)], TRIED * KEEP, range(len(names)))
    sets = [frozenset(names[m] for m in members) for _, members in chosen]
    right = rng.binomial(len(order) - half, [truth.values.get(one, 0.0) for one in sets])
    listed = truth.of_first([sets[k] for k in np.argsort(-right, kind="stable")[:KEEP]])
    n, answers = len(names), len(names) * half + len(sets) * (len(order) - half)
    found = {"best": 1.0, "value": truth.best, "near": listed["near"], "listed": listed["value"]}
    return found | {"asked": n, "passes": answers / (n * len(order))}


def choice(
    seen: Seen, kept: np.ndarray, names: Sequence[str], truth: Truth, scores: np.ndarray
) -> dict[str, float]:
    """What is left of a library of which some adapters are asked.

    best: the share of the BEST_PAIRS best pairs, value: of the best pair that is left. near,
    listed: whether a pair near the best one is among the first ten of the screen's ranking of those
    that are left, and the value of the best of these.
    """
    left = {names[k] for k in kept}
    ordered = sorted(truth.values, key=lambda pair: -truth.values[pair])
    inside = np.flatnonzero(np.isin(seen.pairs, kept).all(1))
    first = inside[np.argsort(-scores[inside], kind="stable")[:FIRST]]
    listed = truth.of_first([frozenset(names[m] for m in seen.pairs[k]) for k in first])
    return {
        "best": sum(pair <= left for pair in ordered[:BEST_PAIRS]) / BEST_PAIRS,
        "value": max((v for pair, v in truth.values.items() if pair <= left), default=0.0),
        "near": listed["near"],
        "listed": listed["value"],
    }


def choices(
    seen: Seen,
    results: Sequence[ItemResult],
    names: Sequence[str],
    truth: Truth,
    repeats: int,
) -> list[dict[str, Any]]:
    """How good each way is to choose the adapters that are asked: means over orders of the items.

    results: the answers of base and adapters alone. `passes` is the share of the answers of all
    adapters to all items that is asked. "of tasks": in a library without the adapters that learned
    nothing about any task, which were trained for a shorter time.
    """
    rng, n, items = np.random.default_rng(0), len(names), len(seen.known.task.items)
    rows: dict[tuple[str, Any], list[dict[str, float]]] = {}
    of_tasks = np.array([bool(FAMILIES[name.rpartition("-")[0]]["tasks"]) for name in names])

    def add(name: str, k: Any, kept: np.ndarray, passes: float, scores: np.ndarray) -> None:
        found = choice(seen, kept, names, truth, scores) | {"asked": len(kept), "passes": passes}
        rows.setdefault((name, k), []).append(found)

    def see(some: np.ndarray) -> Seen:
        """What is known after some items, of which the form of worked answers is seen too."""
        found = seen.on(some)
        known = TaskScores.of(found.known.task, [BASE, *names], results, seen.known.task)
        return dataclasses.replace(found, known=known)

    def noisy(values: np.ndarray) -> np.ndarray:
        return values + rng.random(values.shape) * 1e-9

    for _ in range(repeats):
        order, draw = rng.permutation(items), seen.on(rng.integers(0, items, items))
        scores = noisy(pair_scores(draw))
        ways = {name: order_of(signal, rng) for name, signal in draw.signals.items()}
        ways["chance"] = rng.permutation(n)
        for name, chosen in ways.items():
            for k in KEPT:
                add(name, k, chosen[:k], k / n, scores)
            for k in KEPT_OF_TASKS:
                add(f"{name}; of tasks", k, chosen[of_tasks[chosen]][:k], k / n, scores)
        alone = halved(see, order, lambda s, _: noisy(s.known.alone()[1:]))
        add("halving by what they answer alone", None, *alone, scores)
        pairs = halved(see, order, lambda s, kept: highest(s, noisy(pair_scores(s)), kept))
        add("halving by the best pair's forecast", None, *pairs, scores)
        screen = as_screen(see, order, names, truth, rng)
        rows.setdefault(("screen: half of the items, then sums of sets", None), []).append(screen)
        add("all", None, np.arange(n), 1.0, scores)
    return [
        {
            "choice": name,
            **{key: round(float(np.mean([one[key] for one in found])), 4) for key in found[0]},
        }
        for (name, _), found in rows.items()
    ]


def examined(
    world: World, truth: Truth, task: str, items: int, repeats: int, encoder: Path | None
) -> dict[str, Any]:
    found, chosen, results = asked_alone(world, task, items)
    names, seen = chosen.names, seen_of(chosen, found)
    signals, seconds = signals_of(world, names, seen.known.task.items, encoder)
    seen = dataclasses.replace(seen, signals=signals)
    return {
        "task": task,
        "seed": world.seed,
        "items": items,
        "best_pair": truth.best,
        "best_single": truth.single,
        "tenth_pair": sorted(truth.values.values())[-BEST_PAIRS],
        "cpu_seconds": seconds,
        "rankings": recalls(seen, names, truth, repeats),
        "choices": choices(seen, results, names, truth, repeats),
    }


def shown(row: Mapping[str, Any]) -> str:
    """One task as Markdown."""
    rankings = [
        [r["ranking"], *(f"{r[key]:.2f}" for key in ("best", "near", "value")), f"{r['place']:.0f}"]
        for r in row["rankings"]
    ]
    chosen = [
        [r["choice"], f"{r['asked']:.0f}"]
        + [f"{r[key]:.2f}" for key in ("passes", "best", "value", "near", "listed")]
        for r in row["choices"]
    ]
    return (
        f"\n## {row['task']}, seed {row['seed']}\n\nBest pair {row['best_pair']:.2f}, tenth "
        f"{row['tenth_pair']:.2f}, best single {row['best_single']:.2f}.\n\n"
        + markdown_table(rankings, ["ranking", "best", "near", "value", "place of the best pair"])
        + "\n\n"
        + markdown_table(
            chosen, ["choice", "asked", "passes", "ten best", "value", "near listed", "listed"]
        )
    )


def main() -> None:
    parser = arguments()
    parser.add_argument("--encoder", type=Path)
    options = parser.parse_args()
    few = options.items, options.repeats, options.encoder
    each_task(options, lambda world, truth, task: examined(world, truth, task, *few), shown)


if __name__ == "__main__":
    main()
