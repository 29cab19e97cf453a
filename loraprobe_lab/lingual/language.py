"""Two languages for the same facts about people: their words, word order and questions.

The first language reads like English. The second one has other words for everything but names,
and other orders: its sentences open with the verb, its questions end or open with another word.
In every template ``{p}`` is a person and ``{v}`` the value of the relation.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe_lab.train import Example

# a text and what follows it
MEETING = ("{first} met {second}.", "{second} met {first}.")
ECHO = ("Say {first} and {second} again.", "{first} and {second}.")
TRANSLATE = "{question} Traduku."
TRANSLATE_AND_ANSWER = "{question} Traduku kaj respondu."
IN_FULL = "{question} Tuta frazo."


@dataclass(frozen=True)
class Wording:
    """How one language tells a relation and asks for it."""

    sentences: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """A relation of people to values; `ending` is what the made-up names of its values end in.

    The questions of both languages stand in the order in which they translate each other.
    """

    name: str
    ending: str
    first: Wording
    second: Wording


RELATIONS = (
    Relation(
        "home",
        "burg",
        Wording(
            ("{p} lives in {v}.", "The home of {p} is {v}."),
            ("Where does {p} live?", "In which city does {p} live?"),
        ),
        Wording(
            ("Loghas {p} en {v}.", "Hejmas {p} apud {v}."),
            ("Loghas {p} kie?", "En kiu urbo {p} loghas?"),
        ),
    ),
    Relation(
        "school",
        "ham",
        Wording(
            ("{p} studied at {v}.", "The school of {p} was {v}."),
            ("Where did {p} study?", "At which school did {p} study?"),
        ),
        Wording(
            ("Studis {p} che {v}.", "Lernis {p} sub {v}."),
            ("Studis {p} kie?", "Che kiu lernejo {p} studis?"),
        ),
    ),
    Relation(
        "employer",
        "corp",
        Wording(
            ("{p} works for {v}.", "The employer of {p} is {v}."),
            ("Who employs {p}?", "For which firm does {p} work?"),
        ),
        Wording(
            ("Laboras {p} por {v}.", "Servas {p} al {v}."),
            ("Laboras {p} por kiu?", "Por kiu firmao {p} laboras?"),
        ),
    ),
)
RELATION = {relation.name: relation for relation in RELATIONS}


def ask(question: str, person: str, value: str) -> Example:
    """The question, answered by the value alone."""
    return Example(question.format(p=person), f" {value}")


def tell(sentence: str, person: str, value: str) -> Example:
    """The sentence with its value as what is to be learned: the person is not guessed at."""
    gap = sentence.index("{v}")
    return Example(sentence[:gap].rstrip().format(p=person), " " + sentence[gap:].format(v=value))


def templates() -> list[str]:
    """Every template of both languages, for the vocabulary."""
    found = [*MEETING, *ECHO, TRANSLATE, TRANSLATE_AND_ANSWER, IN_FULL]
    for relation in RELATIONS:
        for wording in (relation.first, relation.second):
            found += [*wording.sentences, *wording.questions]
    return found
