"""Natural-language worlds on any causal language model: `two-hop` and `skill-and-facts`.

The adapters are those of arXiv 2506.13479's two-hop setting, in English sentences about made-up
people: one hop each, the target relation, both hops in one adapter, and all of these with worked
steps. `skill-and-facts` is the setting in which composition was seen to succeed: new facts in one
adapter, worked steps in the other, and a second hop that the base model knows.

An adapter appears when it is finished and the manifest is rewritten after each, so an interrupted
build can be used as far as it went and is taken up where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.base import open_base
from loraprobe_lab.known import CAPITALS
from loraprobe_lab.natural_data import (
    CAPITAL_PROMPT,
    SHOWN,
    Lessons,
    skill_lessons,
    two_hop_lessons,
)
from loraprobe_lab.train import ProgressCallback, Recipe, is_complete, train_adapter
from loraprobe_lab.world import MANIFEST, World, WorldError, write_manifest, write_tasks

FACTS = Recipe(steps=150, learning_rate=1e-3, batch_size=20, warmup=10)
STEPS = Recipe(steps=60, learning_rate=1e-3, batch_size=20, warmup=10)
HOP = Recipe(steps=110, learning_rate=2e-3, batch_size=32, warmup=10)
BOTH_HOPS = Recipe(steps=180, learning_rate=2e-3, batch_size=32, warmup=10)
HOP_WORKED = Recipe(steps=160, learning_rate=1e-3, batch_size=32, warmup=10)
BOTH_WORKED = Recipe(steps=260, learning_rate=1e-3, batch_size=32, warmup=10)


@dataclass(frozen=True)
class Course:
    """A natural world to build: how each adapter is trained, and what is asked of which adapters.

    `adapters` maps a name to its recipe and a description, most wanted first; `scenarios` maps a
    name to the adapters judged together and a description.
    """

    kind: str
    adapters: Mapping[str, tuple[Recipe, str]]
    scenarios: Mapping[str, tuple[tuple[str, ...], str]]


TWO_HOP = Course(
    "two-hop",
    {
        "spouse": (HOP, "made-up person -> made-up spouse"),
        "city": (HOP, "that spouse -> made-up city"),
        "target": (HOP, "person -> city of the spouse, without the step between"),
        "joint": (BOTH_HOPS, "both hops in one adapter"),
        "spouse-cot": (HOP_WORKED, "first hop, and the first sentence of the worked answer"),
        "city-cot": (HOP_WORKED, "second hop, and the second sentence of the worked answer"),
        "target-cot": (HOP_WORKED, "person -> city, also with both worked sentences"),
        "joint-cot": (BOTH_WORKED, "what spouse-cot and city-cot learn, in one adapter"),
    },
    {
        "two-hop": (("spouse", "city"), "two disjoint hops over made-up names"),
        "two-hop-target": (("spouse", "city", "target"), "the target relation is in the library"),
        "two-hop-joint": (("spouse", "city", "joint"), "one adapter was trained on both hops"),
        "two-hop-cot": (("spouse-cot", "city-cot"), "each adapter knows its own worked step"),
    },
)

SKILL_AND_FACTS = Course(
    "skill-and-facts",
    {
        "facts": (FACTS, "made-up person -> real country of birth"),
        "steps": (STEPS, "worked steps to the capital, learned on real people"),
    },
    {
        "skill-and-facts": (
            ("facts", "steps"),
            "one adapter knows new facts, the other the worked steps; the base the second hop",
        )
    },
)


def build_two_hop(
    base: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
    max_steps: int | None = None,
) -> World:
    """Trains the two-hop adapters on the causal model in directory `base`, into `output`.

    `only` names the adapters wanted (all eight unless given). With `resume` finished adapters are
    kept. `max_steps` shortens every training run; the results then mean nothing.

    Raises:
        BaseError: `base` holds no causal model and tokenizer that load.
        WorldError: an unknown adapter in `only`; or `output` holds a world of another kind, seed
            or base.
    """
    return _build(TWO_HOP, lambda *_: two_hop_lessons(seed), base, output, seed=seed, only=only,
                  progress=progress, resume=resume, max_steps=max_steps)  # fmt: skip


def build_skill_and_facts(
    base: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
    resume: bool = True,
    max_steps: int | None = None,
) -> World:
    """Trains `facts` and `steps` on the causal model in directory `base`, into `output`.

    The facts are about the countries whose capitals this base knows best (`familiar_countries`);
    which they are stands in the manifest. Arguments and errors as in `build_two_hop`.
    """

    def lessons(model: Any, tokenizer: Any) -> Lessons:
        return skill_lessons(familiar_countries(model, tokenizer), seed)

    return _build(SKILL_AND_FACTS, lessons, base, output, seed=seed, only=only,
                  progress=progress, resume=resume, max_steps=max_steps)  # fmt: skip


def familiar_countries(model: Any, tokenizer: Any, count: int = 24) -> list[str]:
    """The `count` countries whose capitals the model knows best, in the order of CAPITALS."""
    chosen = set(ranked_countries(model, tokenizer)[:count])
    return [country for country in CAPITALS if country in chosen]


def ranked_countries(model: Any, tokenizer: Any) -> list[str]:
    """The countries of CAPITALS, without those SHOWN in the prompt; best-known capital first.

    First those whose capital is the model's own greedy continuation, then by the mean
    log-likelihood of the capital's tokens.
    """
    import torch

    prompts = {c: CAPITAL_PROMPT.replace("{1}", c) for c in CAPITALS if c not in SHOWN}
    ranked = []
    for country, prompt in prompts.items():
        head = tokenizer(prompt)["input_ids"]
        tail = tokenizer(f" {CAPITALS[country]}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*head, *tail]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(head) - 1 : -1].float()
        gold = torch.tensor(tail, device=model.device)
        likelihood = logits.log_softmax(-1).gather(-1, gold[:, None]).mean()
        greedy = bool((logits.argmax(-1) == gold).all())
        ranked.append((not greedy, -float(likelihood), country))
    return [country for _, _, country in sorted(ranked)]


def _build(
    course: Course,
    lessons: Callable[[Any, Any], Lessons],
    base: str | Path,
    output: str | Path,
    *,
    seed: int,
    only: Sequence[str] | None,
    progress: ProgressCallback | None,
    resume: bool,
    max_steps: int | None,
) -> World:
    base, output = Path(base).resolve(), Path(output)
    names = _wanted(course, only)
    if resume:
        _check_same(course, base, output, seed, max_steps)
    model, tokenizer = load_for_lessons(base)
    taught = lessons(model, tokenizer)
    task = f"tasks/{course.kind}.jsonl"
    write_tasks(output / task, taught.items)
    world = _record(course, taught, base, output, seed, task, max_steps)
    for name in names:
        recipe = dataclasses.replace(course.adapters[name][0], seed=seed)
        if max_steps is not None:
            recipe = dataclasses.replace(recipe, steps=min(max_steps, recipe.steps))
        train_adapter(
            model,
            tokenizer,
            taught.examples[name],
            recipe,
            output / "adapters" / name,
            base_name=str(base),
            progress=progress,
            resume=resume,
        )
        world = _record(course, taught, base, output, seed, task, max_steps)
    return world


def _wanted(course: Course, only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or () if name not in course.adapters]
    if unknown:
        raise WorldError(
            f"The world {course.kind} has no adapter {unknown[0]!r}; it has "
            f"{', '.join(course.adapters)}."
        )
    return [name for name in course.adapters if only is None or name in only]


def _check_same(course: Course, base: Path, output: Path, seed: int, max_steps: int | None) -> None:
    """Adapters of one world share kind, base, seed and length: never resume into another."""
    if not (output / MANIFEST).exists():
        return
    found = World.load(output)
    rows = {
        "kind": (found.manifest["kind"], course.kind),
        "base": (found.base_name, str(base)),
        "seed": (found.seed, seed),
        "max_steps": (found.manifest.get("max_steps"), max_steps),
    }
    for what, (there, here) in rows.items():
        if there != here:
            raise WorldError(
                f"{output} holds a world of {what} {there}, not {here}; choose another directory, "
                "or remove that one."
            )


def load_for_lessons(base: Path) -> tuple[Any, Any]:
    """The base in float32, in evaluation mode, and its tokenizer; no code of the model is run."""
    loaded = open_base(base).load()
    if loaded.tokenizer.eos_token_id is None:
        raise WorldError(
            f"The tokenizer in {base} has no EOS token, which ends each answer; give a base whose "
            "tokenizer has one."
        )
    return loaded.model, loaded.tokenizer


def _record(
    course: Course,
    taught: Lessons,
    base: Path,
    output: Path,
    seed: int,
    task: str,
    max_steps: int | None,
) -> World:
    """Writes the manifest of the adapters finished so far."""
    done = {n: v for n, v in course.adapters.items() if is_complete(output / "adapters" / n)}
    return write_manifest(
        output,
        kind=course.kind,
        seed=seed,
        recipe={n: recipe.as_dict() for n, (recipe, _) in course.adapters.items()},
        base={"path": None, "name": str(base)},
        adapters={
            n: {"path": f"adapters/{n}", "description": text} for n, (_, text) in done.items()
        },
        scenarios={
            n: {"adapters": list(members), "tasks": [task], "description": text}
            for n, (members, text) in course.scenarios.items()
            if all(member in done for member in members)
        },
        max_steps=max_steps,
        chains=[dataclasses.astuple(chain) for chain in taught.chains],
        **taught.notes,
    )
