"""The fleet: many sets of every kind in natural language, for one base.

Each row of the plan says where a set lies on the axes of its kind. How long and how fast is trained
was found on single sets: new facts should be learned, and survive at half strength. No row was
chosen or left out by what its composition gives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprobe_lab.known import CAPITALS
from loraprobe_lab.known_places import LANDMARKS
from loraprobe_lab.natural import load_for_lessons, ranked_countries
from loraprobe_lab.natural_data import SHOWN, Chain
from loraprobe_lab.natural_hops import BIRTHS, PLACES, PRODUCTS
from loraprobe_lab.natural_kit import NaturalSet, build_set, in_turn
from loraprobe_lab.natural_pairs import keep_both_set
from loraprobe_lab.natural_steps import (
    Taught,
    domain_set,
    made_up_hops,
    newcomers,
    own_steps,
    skill_set,
)
from loraprobe_lab.relations import joined
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World, WorldError

KINDS = ("skill-and-facts", "two-hop", "keep-both", "domain")
EVEN = Taught()
SHORT = Taught((52, 2e-3), (30, 2e-3))
GENTLE = Taught((64, 1.2e-3), (30, 1.5e-3))
STRONG_STEPS = Taught((52, 2e-3), (40, 3e-3))
LIGHT_STEPS = Taught((60, 1.8e-3), (26, 1.3e-3))
MLP_FACTS = Taught((60, 3e-3), (26, 1.3e-3), targets=("mlp", "all-linear"))
LONG_PAIR = Taught((64, 2e-3), (64, 2e-3), (20, 20))
UNEQUAL = Taught((52, 3e-3), (32, 8e-4), (20, 20))

# share of invented people among those the steps are learned on; second hop; training
SKILL: tuple[tuple[float, str, Taught], ...] = (
    (0.0, "familiar", EVEN),
    (1.0, "familiar", EVEN),
    (0.0, "familiar", LIGHT_STEPS),
    (0.0, "half", LIGHT_STEPS),
    (0.5, "familiar", LIGHT_STEPS),
    (0.0, "familiar", MLP_FACTS),
    (0.0, "made-up", SHORT),
)
# what the chains are about; with worked sentences or not, or with the target; training
TWO_HOP: tuple[tuple[str, str, Taught | None], ...] = (
    ("births", "steps", EVEN),
    ("made-up", "plain", None),
    ("places", "steps", LIGHT_STEPS),
    ("births", "plain", GENTLE),
    ("half", "steps", STRONG_STEPS),
    ("products", "steps", SHORT),
    ("made-up", "steps", None),
    ("made-up", "target", None),
)
KEEP_BOTH: tuple[tuple[tuple[str, str], Taught | None], ...] = (
    (("country", "job"), LONG_PAIR),
    (("last", "swap"), None),
    (("job", "past"), None),
    (("country", "country"), None),
    (("instrument", "last"), UNEQUAL),
    (("past", "opposite"), None),
    (("swap", "opposite"), UNEQUAL),
)
DOMAIN: tuple[tuple[str, Taught], ...] = (
    ("name", Taught(second=(64, 2e-3))),
    ("steps", Taught((52, 2e-3), (48, 2e-3))),
    ("steps", Taught((52, 2e-3), (48, 3e-3))),
    ("name", Taught((52, 3e-3), (48, 2e-3), targets=("mlp", "all-linear"))),
)


@dataclass(frozen=True)
class Countries:
    """The countries whose capitals a base knows best (`familiar`), and worst (`half`)."""

    familiar: Sequence[str]
    half: Sequence[str]


def fleet(
    countries: Countries,
    *,
    layers: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    relations: Path | None = None,
) -> list[NaturalSet]:
    """All sets, the kinds taking turns. `layers`: of the base, whose upper quarter is adapted.

    `relations` is a directory with relations (see `relations.joined`) from which products and
    companies come; without it that row of the plan is left out.
    """
    makers = {
        "skill-and-facts": lambda number, row: skill_set(
            number,
            countries.half if row[1] == "half" else countries.familiar,
            row[1],
            layers=layers,
            invented=row[0],
            taught=row[2],
        ),
        "two-hop": lambda number, row: _two_hop(number, row, countries, layers, relations),
        "keep-both": lambda number, row: keep_both_set(
            number, row[0], layers=layers, taught=row[1]
        ),
        "domain": lambda number, row: domain_set(number, row[0], layers=layers, taught=row[1]),
    }
    plans = dict(zip(KINDS, (SKILL, TWO_HOP, KEEP_BOTH, DOMAIN), strict=True))
    groups = [
        [
            makers[kind](100 * seed + number, row)
            for number, row in enumerate(plans[kind], 1)
            if relations is not None or row[0] != "products"
        ]
        for kind in KINDS
        if kind in kinds
    ]
    return list(in_turn(groups))


def build_fleet(
    base: str | Path,
    output: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    only: Sequence[str] | None = None,
    relations: Path | None = None,
    progress: ProgressCallback | None = None,
    max_steps: int | None = None,
) -> list[World]:
    """Trains the sets of `fleet` on the causal model in `base`, each into a directory below.

    `only` names some of the sets. What is finished is kept, so an interrupted build goes on.

    Raises:
        BaseError: `base` holds no causal model and tokenizer that load.
        WorldError: an unknown set in `only`, or another set lies where one should be built.
    """
    base, output = Path(base).resolve(), Path(output)
    model, tokenizer = load_for_lessons(base)
    best = ranked_countries(model, tokenizer)
    countries = Countries(sorted(best[:24]), sorted(best[-24:]))
    layers = model.config.num_hidden_layers
    sets = fleet(countries, layers=layers, seed=seed, kinds=kinds, relations=relations)
    unknown = [name for name in only or () if name not in [plan.name for plan in sets]]
    if unknown:
        known = ", ".join(plan.name for plan in sets)
        raise WorldError(f"There is no set {unknown[0]!r} here; there are {known}.")
    return [
        build_set(plan, model, tokenizer, str(base), output / plan.name,
                  progress=progress, max_steps=max_steps)
        for plan in sets
        if only is None or plan.name in only
    ]  # fmt: skip


def _two_hop(
    number: int,
    row: tuple[str, str, Taught | None],
    countries: Countries,
    layers: int,
    relations: Path | None,
) -> NaturalSet:
    about, form, taught = row
    if about == "made-up":
        return made_up_hops(number, form, layers=layers, taught=taught)
    if about == "places":
        chains, others = _places(number)
    elif about == "products":
        if relations is None:
            raise ValueError("products and companies need a directory of relations")
        chains, others = _products(number, relations)
    else:
        chains, others = newcomers(
            number, getattr(countries, "half" if about == "half" else "familiar")
        )
    wording = {"places": PLACES, "products": PRODUCTS}.get(about, BIRTHS)
    first = "real" if about in ("places", "products") else "made-up"
    second = "half" if about in ("half", "products") else "real"
    axes = {"about": about, "first_hop": first, "second_hop": second}
    return own_steps(
        number, chains, others, wording, axes, layers=layers, steps=form == "steps", taught=taught
    )


def _places(number: int) -> tuple[list[Chain], list[Chain]]:
    """Landmarks asked for, at most one of a country, and as many others to learn steps on."""
    rows = [Chain(a, b, CAPITALS[b]) for a, b in LANDMARKS.items() if b not in SHOWN]
    return _shared_out(rows, 1, f"places {number}", 30)


def _products(number: int, relations: Path) -> tuple[list[Chain], list[Chain]]:
    """Products asked for, at most two of a company, and as many others to learn steps on."""
    rows = joined(relations, "product_by_company", "company_ceo")
    return _shared_out([x for x in rows if x.b not in x.a], 2, f"products {number}", 32)


def _shared_out(
    rows: list[Chain], each: int, seed: str, most: int
) -> tuple[list[Chain], list[Chain]]:
    """At most `most` chains, `each` of a middle, and at most as many of the others."""
    random.Random(seed).shuffle(rows)
    seen: dict[str, int] = {}
    asked, others = list[Chain](), list[Chain]()
    for row in rows:
        seen[row.b] = seen.get(row.b, 0) + 1
        (asked if seen[row.b] <= each and len(asked) < most else others).append(row)
    return asked, others[:most]
