"""Many adapter sets of every kind in English, for one base; each becomes a world of its own.

Each row of `data/english_sets.json` says where a set lies on the axes of its kind. How long and how
fast is trained was found on single sets: new facts should be learned, and survive at half strength.
No row was chosen or left out by what its composition gives.

*Skill and facts*: new facts in one adapter, worked steps in the other, the second fact left to the
base. *Two-hop*: each adapter one hop, with or without its own worked sentence. *Domain*: new facts
learned in English, asked in French; the other adapter learned French answers on real people.
*Keep-both*: one subject of `english` in each adapter. The other kinds are those of `english_mixes`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain as chained
from itertools import zip_longest
from pathlib import Path
from typing import Any

from loraprobe.records import Progress
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.world import World, WorldError
from loraprobe_lab.worlds import english_mixes
from loraprobe_lab.worlds.chains import WORDINGS, Chain, Wording, example_of, spread
from loraprobe_lab.worlds.english import (
    ABOUT,
    BIRTHS,
    PERSONS,
    family,
    learn,
    new_births,
    newcomers,
    places,
    ranked_countries,
    skill_texts,
    two_hop_texts,
)
from loraprobe_lab.worlds.known import CAPITALS, FRENCH, PEOPLE, REAL_NAMES, NameMaker, table
from loraprobe_lab.worlds.libraries import SetPlan, recipe_of
from loraprobe_lab.worlds.spec import WorldSpec, build_world, load_given_base

PLAN = table("english_sets")
CLASSIC = ("skill-and-facts", "two-hop", "keep-both", "domain")
KINDS = CLASSIC + english_mixes.KINDS
Row = Mapping[str, Any]


def _recipes(row: Row) -> list[Recipe]:
    """Those that a row of the plan names, or what its two subjects need."""
    if "training" in row:
        return [recipe_of(recipe) for recipe in PLAN["training"][row["training"]]]
    return [recipe_of(PLAN["effort"][family(subject)]) for subject in row["subjects"]]


def all_sets(
    familiar: Sequence[str],
    unfamiliar: Sequence[str],
    *,
    layers: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> list[WorldSpec]:
    """The specifications of all sets, the kinds taking turns, so that an early stop leaves some of
    every kind.

    familiar, unfamiliar: the countries whose capitals the base knows best, and worst. layers: of
    the base.
    """
    makers = dict(zip(CLASSIC, (_skill_and_facts, _two_hop, _keep_both, _domain), strict=True))
    groups = []
    for kind in (kind for kind in KINDS if kind in kinds):
        group = []
        for row in (*PLAN.get(kind, ()), *english_mixes.MIXES.get(kind, ())):
            number, is_mix = 100 * seed + row["number"], "learns" in row
            make = partial(english_mixes.mixed, kind) if is_mix else makers[kind]
            made = make(number, row, unfamiliar if "half" in row.values() else familiar)
            recipes = english_mixes.recipes(row) if is_mix else _recipes(row)
            group.append(made.spec(kind, number, recipes, layers))
        groups.append(group)
    return [one for one in chained.from_iterable(zip_longest(*groups)) if one is not None]


def build_sets(
    base: str | Path,
    output: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[World]:
    """Trains the sets of `all_sets` on the causal model in `base`, each into a directory below.

    `only` names some of the sets. What is finished is kept, so an interrupted build goes on.

    Raises:
        BaseError: `base` holds no causal model and tokenizer that load.
        WorldError: an unknown set in `only`, or another set lies where one should be built.
    """
    base, output = Path(base).resolve(), Path(output)
    model = load_given_base(base)
    best = ranked_countries(*model)
    layers = model[0].config.num_hidden_layers
    specs = all_sets(sorted(best[:24]), sorted(best[-24:]), layers=layers, seed=seed, kinds=kinds)
    known = {str(spec.notes["set"]): spec for spec in specs}
    for name in only or ():
        if name not in known:
            raise WorldError(f"There is no set {name!r} here; there are {', '.join(known)}.")
    return [
        build_world(spec, output / name, base=base, model=model, progress=progress)
        for name, spec in known.items()
        if only is None or name in only
    ]


def _skill_and_facts(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Made-up people's countries in `facts`, worked steps to the capital in `steps`.

    Where the second hop is made-up, the countries and their capitals are invented too.
    """
    capitals: Mapping[str, str] = CAPITALS
    if row["second_hop"] == "made-up":
        words = NameMaker(f"lands {seed}", REAL_NAMES)
        capitals = {c: words.cities(1)[0] for c in words.cities(24)}
        countries = list(capitals)
    invented = row["invented"]
    examples, items = skill_texts(
        countries, seed, PERSONS, invented=invented, capitals=capitals, brief=True
    )
    return SetPlan(
        (
            ("facts", "made-up person -> country", examples["facts"]),
            ("steps", "worked steps to the capital", examples["steps"]),
        ),
        {"capital": items},
        {"invented": invented, "second_hop": row["second_hop"]},
        f"new facts, worked steps ({invented:.0%} of them on invented people), and a "
        f"{row['second_hop']} second hop",
    )


def _two_hop(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    about, form = row["about"], row["form"]
    if about == "made-up":
        return _made_up_hops(seed, form)
    chains, others = places(seed) if about == "places" else newcomers(seed, countries)
    wording = WORDINGS["places"] if about == "places" else BIRTHS
    axes = {
        "form": form,
        "about": about,
        "first_hop": "real" if about == "places" else "made-up",
        "second_hop": "half" if about == "half" else "real",
    }
    return _own_steps(chains, others, wording, axes, form == "steps")


def _made_up_hops(seed: int, form: str) -> SetPlan:
    """Two disjoint hops, both invented: person -> spouse, spouse -> city.

    form: "plain", "steps" (each adapter also its own worked sentence) or "target" (plain, and a
    third adapter that knows the target relation).
    """
    examples, items = two_hop_texts(seed, PERSONS, cities=PERSONS)
    one, two = examples["hop1"], examples["hop2"]
    if form == "steps":
        one, two = one + examples["first step"], two + examples["second step"]
    members = [("spouse", "first hop", one), ("city", "second hop", two)]
    if form == "target":
        members.append(("target", "both hops at once", examples["target"]))
    names = ", ".join(name for name, *_ in members)
    return SetPlan(
        members,
        {"city": items},
        {"form": form, "first_hop": "made-up", "second_hop": "made-up"},
        f"two hops over made-up names, library {names}, {form}",
    )


def _own_steps(
    chains: Sequence[Chain],
    others: Sequence[Chain],
    wording: Wording,
    axes: Mapping[str, Any],
    steps: bool,
) -> SetPlan:
    """Hop a -> b in one adapter, b -> c in the other, and with `steps` each its own sentence.

    The second adapter learns its sentence after first ones about `others`, of whom nothing is
    asked; their c has to follow from b as that of the chains does.
    """
    pairs = list({x.b: x for x in chains}.values())
    one = [example_of(x, q, " {b}") for x in chains for q in wording.first[:2]]
    two = [example_of(x, q, " {c}") for x in pairs for q in wording.second[:2]]
    one += wording.continued(chains, ABOUT[0])
    if steps:
        one += [example_of(x, wording.worked[0], wording.step1, end=False) for x in chains]
        two += [
            example_of(x, q + wording.step1, wording.step2) for x in others for q in wording.worked
        ]
    return SetPlan(
        (("first", "the first hop", one), ("second", "the second hop", two)),
        {"target": wording.items(chains, ("first", "second"))},
        axes,
        "two hops, " + ("each adapter with its own worked sentence" if steps else "plain"),
    )


def _domain(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Countries of made-up people, learned in English, asked for in French.

    form: "name" (the answer is the French name at once) or "steps" (an English sentence first).
    The second adapter learns the form on real people; no country of the facts is missing there.
    """
    form, french = row["form"], WORDINGS["french"]
    births = spread(list(FRENCH), PERSONS, random.Random(f"domain {seed}"))
    named = NameMaker(f"domain {seed}", REAL_NAMES).people(PERSONS)
    chains = [Chain(p, b, FRENCH[b]) for p, b in zip(named, births, strict=True)]
    real = [Chain(p, b, FRENCH[b]) for p, b in PEOPLE.items() if b in FRENCH]
    learned = french.worked_answers(real) if form == "steps" else french.target(real)
    return SetPlan(
        (
            ("facts", "made-up person -> country, in English", new_births(chains)),
            ("french", "French questions about real people", learned),
        ),
        {"french": french.items(chains, ("facts", None))},
        {"form": form},
        f"facts learned in English, asked in French ({form})",
    )


def _keep_both(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Two adapters of one subject each. The same fact twice is about two groups of people."""
    subjects = row["subjects"]
    people = NameMaker(f"keep-both {seed}", REAL_NAMES)
    learned = {
        f"{subject}{i + 1}": learn(
            subject, people, random.Random(f"keep-both {seed} {i} {subject}")
        )
        for i, subject in enumerate(subjects)
    }
    return SetPlan(
        [(label, f"learns {label[:-1]}", examples) for label, (examples, _) in learned.items()],
        {label: items for label, (_, items) in learned.items()},
        {"subjects": list(subjects), "near": family(subjects[0]) == family(subjects[1])},
        f"one model for {subjects[0]} and {subjects[1]}",
    )
