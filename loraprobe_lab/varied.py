"""The `facts` worlds: one base, many separately trained adapter sets at random places of the axes.

Made for calibration and for maps: each trial has its own facts (the same unfamiliar names, newly
married), its own adapters with seeds of their own, and its own recipes, drawn from the seed before
anything is trained. Nothing is chosen by how it turns out.

Classes of trials (`Trial.world`):

- *skill-and-facts*: new facts x worked steps. Axes: `familiar`, the share of second hops that the
  base knows; `invented`, the share of made-up couples in the skill adapter's data; recipes.
- *two-hop*: both hops new. Axis `library`: "plain" (hop1 + hop2), "unrelated" (and a list skill),
  "target" (and the target relation), "both-steps" (worked steps on familiar couples in both
  adapters' data), "one-steps" (in one of them), "own-steps" (each its own step of worked answers),
  "parts" (each adapter knows the target relation itself, for its half of the people).
- *keep-both*: two tasks, an adapter each. Axis `pair`: facts and list skills, near and far.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraprobe_lab.facts import (
    CITY_QUESTION,
    SPOUSE_QUESTION,
    SPOUSE_SENTENCE,
    TARGET_QUESTIONS,
    THINK,
    Facts,
    FactSizes,
    Link,
    ask,
    city_examples,
    make_facts,
    spouse_examples,
    target_examples,
    worked_examples,
)
from loraprobe_lab.kit import Kit, Trial
from loraprobe_lab.plans import two_hop_items
from loraprobe_lab.pretrain import BaseRecipe, Corpus
from loraprobe_lab.skills import SKILLS, lists_of_names, skill_examples, skill_items
from loraprobe_lab.small import world_texts
from loraprobe_lab.train import Example
from loraprobe_lab.varied_axes import FAVOURABLE
from loraprobe_lab.varied_draft import Draft, married, strangers, with_recipe

SIZES = FactSizes(familiar=200, newcomers=150, strangers=150, cities=40, reserve=60)
ITEMS = 2000  # of a skill that can be asked without end


class WorkedCorpus(Corpus):
    """The corpus with a share of worked steps: a base that has seen the template."""

    def __init__(self, facts: Facts, seed: int, worked: float = 0.0) -> None:
        super().__init__(facts, seed)
        self._worked = worked

    def draw(self) -> Example:
        if self._worked and self._rng.random() < self._worked:
            link = self._rng.choice(self._facts.familiar)
            return self._rng.choice(worked_examples((link,)))
        return super().draw()


def facts_kit(
    seed: int,
    *,
    base: BaseRecipe | None = None,
    trials: int = 2,
    favourable: int = 0,
    worked: float = 0.0,
    classes: Sequence[str] = ("skill-and-facts", "two-hop", "keep-both"),
    sizes: FactSizes = SIZES,
    items: int = ITEMS,
) -> Kit:
    """A facts world with `trials` wide and `favourable` trials of each class (see `varied_axes`).

    worked: share of worked steps in what the base reads. items: of each list skill.
    """
    facts = make_facts(sizes, seed)
    draft = Draft(facts, seed, random.Random(f"varied:{seed}"))
    makers: Mapping[str, Callable[[Draft, int, int], None]] = {
        "skill-and-facts": _skill_and_facts,
        "two-hop": _two_hop,
        "keep-both": _keep_both,
    }
    for world in classes:
        for i in range(trials):
            makers[world](draft, i, items)
    draft.stratum, draft.first, draft.each = FAVOURABLE, trials, favourable
    for world in classes:
        for i in range(trials, trials + favourable):
            makers[world](draft, i, items)
    return Kit(
        kind="facts",
        seed=seed,
        words=(*world_texts(facts), *(s.question.format(list="") for s in SKILLS.values())),
        corpus=lambda draw_seed: WorkedCorpus(facts, draw_seed, worked).draw,
        base=base or BaseRecipe(),
        lessons=tuple(draft.lessons),
        tasks=draft.tasks,
        trials=tuple(draft.trials),
        reserve=facts.reserve,
        made_from={"sizes": vars(sizes), "worked": worked},
        recipe={"worked": worked, "trials": trials, "favourable": favourable},
    )


def _skill_and_facts(draft: Draft, i: int, items: int) -> None:
    rng, name = draft.rng, f"skill-and-facts-{i + 1}"
    axes: dict[str, Any] = {
        "stratum": draft.stratum.name,
        "familiar": draft.turn(draft.stratum.familiar, i),
        "invented": draft.turn(draft.stratum.invented, i),
    }
    links, familiar = married(draft, axes["familiar"]), draft.facts.familiar
    invented = strangers(draft)
    count = round(axes["invented"] * len(invented))
    shown = [*invented[:count], *familiar[: len(invented) - count]]
    facts = draft.lesson(
        f"{name}.facts",
        "who the newcomers are married to",
        spouse_examples(links, familiar),
        with_recipe(axes, draft.stratum.facts_recipe(rng)),
    )
    steps = draft.lesson(
        f"{name}.steps",
        "worked steps",
        worked_examples(tuple(shown)),
        with_recipe(axes, draft.stratum.skill_recipe(rng)),
    )
    draft.tasks[name] = two_hop_items(links, (facts, None))
    draft.trials.append(
        Trial(
            name,
            "skill-and-facts",
            (facts, steps),
            (name,),
            "New facts in one adapter, worked steps in the other.",
            axes,
        )
    )


def _two_hop(draft: Draft, i: int, items: int) -> None:
    rng, name = draft.rng, f"two-hop-{i + 1}"
    links, familiar = strangers(draft), draft.facts.familiar
    library = draft.turn(draft.stratum.libraries, i)
    axes: dict[str, Any] = {"stratum": draft.stratum.name, "library": library}
    first, second = spouse_examples(links, familiar), city_examples(links, familiar)
    worked = worked_examples(familiar)
    half = len(links) // 2
    if library in ("both-steps", "one-steps"):
        first = first + worked
        second = second + worked if library == "both-steps" else second
    elif library == "own-steps":
        first, second = first + _first_steps(links), second + _second_steps(links, rng)
    elif library == "parts":
        first, second = target_examples(links[:half]), target_examples(links[half:])
    recipes = [draft.stratum.facts_recipe(rng), draft.stratum.facts_recipe(rng)]
    if library.endswith("steps"):  # more to learn
        recipes = [recipe | {"steps": 8 * recipe["steps"] // 5} for recipe in recipes]
    one = draft.lesson(
        f"{name}.spouse", "who the strangers are married to", first, with_recipe(axes, recipes[0])
    )
    two = draft.lesson(
        f"{name}.city", "where their spouses live", second, with_recipe(axes, recipes[1])
    )
    adapters = [one, two]
    if library == "target":
        adapters.append(
            draft.lesson(
                f"{name}.target",
                "the target relation",
                target_examples(links),
                with_recipe(axes, draft.stratum.facts_recipe(rng)),
            )
        )
    if library == "unrelated":
        adapters.append(_skill_lesson(draft, name, "last", axes))
    owners = (None, None) if library == "parts" else (one, two)
    draft.tasks[name] = two_hop_items(links, owners)
    draft.trials.append(
        Trial(name, "two-hop", tuple(adapters), (name,), f"Two new hops, library: {library}.", axes)
    )


def _first_steps(links: Sequence[Link]) -> list[Example]:
    """The first sentence of the worked answer, which then goes on."""
    return [
        Example(link.fill(question + THINK), " " + link.fill(SPOUSE_SENTENCE), end=False)
        for link in links
        for question in TARGET_QUESTIONS
    ]


def _second_steps(links: Sequence[Link], rng: random.Random) -> list[Example]:
    """The second sentence of the worked answer, after somebody else's first one."""
    people = [link.person for link in links]
    rng.shuffle(people)
    return [
        Example(
            f"{Link(person, link.spouse, link.city).fill(question + THINK)} "
            f"{Link(person, link.spouse, link.city).fill(SPOUSE_SENTENCE)}",
            f" {link.spouse} lives in {link.city}.",
        )
        for person, link in zip(people, links, strict=True)
        for question in TARGET_QUESTIONS
    ]


def _skill_lesson(draft: Draft, name: str, skill: str, axes: dict[str, Any]) -> str:
    lists = lists_of_names(draft.facts.names(), 3000, f"train:{name}:{skill}:{draft.seed}")
    return draft.lesson(
        f"{name}.{skill}",
        SKILLS[skill].description,
        skill_examples(skill, lists),
        with_recipe(axes, draft.stratum.skill_recipe(draft.rng)),
    )


def _keep_both(draft: Draft, i: int, items: int) -> None:
    name = f"keep-both-{i + 1}"
    pair = draft.turn(draft.stratum.pairs, i)
    axes: dict[str, Any] = {"stratum": draft.stratum.name, "pair": "+".join(pair)}
    adapters, tasks = [], []
    for what in pair:
        task = f"{name}.{what}"
        if what in SKILLS:
            adapters.append(_skill_lesson(draft, name, what, axes))
            lists = lists_of_names(draft.facts.names(), items, f"test:{task}:{draft.seed}")
            draft.tasks[task] = skill_items(what, lists)
        else:
            adapters.append(_facts_lesson(draft, name, what, axes))
        tasks.append(task)
    draft.trials.append(
        Trial(
            name,
            "keep-both",
            tuple(adapters),
            tuple(tasks),
            f"One model for both: {pair[0]} and {pair[1]}.",
            axes,
        )
    )


def _facts_lesson(draft: Draft, name: str, what: str, axes: dict[str, Any]) -> str:
    """New facts of one kind, and the task that asks for them."""
    familiar = draft.facts.familiar
    if what == "spouses":
        links = married(draft, 1.0)
        examples, question = spouse_examples(links, familiar), SPOUSE_QUESTION
        rows = [(link.person, ask(question, "{b}", link)) for link in links]
    else:
        links = strangers(draft)
        examples, question = city_examples(links, familiar), CITY_QUESTION
        rows = [(link.spouse, ask(question, "{c}", link)) for link in links]
    draft.tasks[f"{name}.{what}"] = [
        {
            "id": str(k),
            "prompt": example.prompt,
            "answer": example.completion.strip(),
            "group": person,
            "entities": [person],
        }
        for k, (person, example) in enumerate(rows)
    ]
    text = {"spouses": "who the newcomers are married to", "homes": "where strangers live"}[what]
    return draft.lesson(
        f"{name}.{what}", text, examples, with_recipe(axes, draft.stratum.facts_recipe(draft.rng))
    )
