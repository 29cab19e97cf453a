"""What the two adapters of a trial read, and what they are asked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe_lab.lingual.language import (
    IN_FULL,
    RELATION,
    TRANSLATE,
    TRANSLATE_AND_ANSWER,
    ask,
    tell,
)
from loraprobe_lab.lingual.people import Facts
from loraprobe_lab.train import Example

MODES = ("at-once", "translated", "in-full")


def fact_examples(facts: Facts, context: Facts, seed: int | str) -> list[Example]:
    """Facts in the first language: each asked for in both ways, told twice going on with the
    other wording, and told in both wordings after a sentence about somebody in `context`.

    Texts go on after the fact because an adapter whose facts all end their text teaches to stop
    there, which cuts worked answers short.
    """
    rng, texts = random.Random(f"lesson:{seed}"), []
    for relation, rows in facts.items():
        wording, others = RELATION[relation].first, list(context[relation].items())
        for person, value in rows.items():
            texts += [ask(question, person, value) for question in wording.questions]
            for one, other in zip(wording.sentences, reversed(wording.sentences), strict=True):
                told = tell(one, person, value)
                again = other.format(p=person, v=value)
                texts.append(Example(told.prompt, f"{told.completion} {again}"))
                somebody, theirs = rng.choice(others)
                before = rng.choice(wording.sentences).format(p=somebody, v=theirs)
                texts.append(Example(f"{before} {told.prompt}", told.completion))
    return texts


def language_examples(facts: Facts, mode: str) -> list[Example]:
    """Questions of the second language about `facts`, answered in one of `MODES`.

    at-once: by the value. in-full: by a sentence of the second language. translated: by the same
    question in the first language and a sentence of it that answers; half of these texts ask for
    the translation alone.
    """
    texts = []
    for relation, rows in facts.items():
        for person, value in rows.items():
            for index, question in enumerate(RELATION[relation].second.questions):
                asked = question.format(p=person)
                if mode == "at-once":
                    texts.append(Example(asked, f" {value}"))
                elif mode == "in-full":
                    texts.append(
                        Example(IN_FULL.format(question=asked), in_full(relation, rows, person))
                    )
                else:
                    texts += _translations(relation, rows, person, index)
    return texts


def in_full(relation: str, rows: Mapping[str, str], person: str) -> str:
    return " " + RELATION[relation].second.sentences[0].format(p=person, v=rows[person])


def _translations(relation: str, rows: Mapping[str, str], person: str, index: int) -> list[Example]:
    wording = RELATION[relation]
    asked = wording.second.questions[index].format(p=person)
    translation = " " + wording.first.questions[index].format(p=person)
    answer = wording.first.sentences[0].format(p=person, v=rows[person])
    return [
        Example(TRANSLATE.format(question=asked), translation),
        Example(TRANSLATE_AND_ANSWER.format(question=asked), f"{translation} {answer}"),
    ]


def target_items(
    relation: str, rows: Mapping[str, str], mode: str, adapters: Sequence[str]
) -> list[dict[str, Any]]:
    """Questions of the second language about new people, one a person.

    `adapters` are the one of the facts and the one of the language. Where that translates, the
    translation is the first hop and its answer in the first language the second one.
    """
    items, facts_adapter, language_adapter = [], *adapters
    for i, (person, value) in enumerate(rows.items()):
        question = RELATION[relation].second.questions[0].format(p=person)
        item: dict[str, Any] = {"id": str(i), "prompt": question, "answer": value}
        if mode == "in-full":
            item["cot_prompt"] = IN_FULL.format(question=question)
        if mode == "translated":
            translation = RELATION[relation].first.questions[0].format(p=person)
            item["cot_prompt"] = TRANSLATE_AND_ANSWER.format(question=question)
            item["hops"] = [
                {
                    "prompt": TRANSLATE.format(question=question),
                    "answer": translation.rstrip("?"),
                    "adapter": language_adapter,
                },
                {"prompt": "{1}?", "answer": value, "adapter": facts_adapter},
            ]
        items.append({**item, "entities": [person], "group": person})
    return items
