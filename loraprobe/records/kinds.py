"""Who is asked, and what: the kinds of systems, and the parts of an item."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SystemKind = Literal["base", "adapter", "merge", "router", "chain", "control"]
ScoredKind = SystemKind | Literal["switch"]  # which is made of scores, not asked


@dataclass(frozen=True)
class Kind:
    """What holds for every system of a kind.

    role: a *baseline* is what a composition has to beat, the decision is about a *composition*, an
    *alternative* composes no weights, a *control* shows what the partners add. action: what is
    advised where such a system is the best; of an adapter it names the adapter, and of worked steps
    it is "step-by-step". served: whether servers that load LoRA files can answer it: a router
    weighs adapters by the text, which none does. A client of such a server names the adapter of
    each question of `switch`, and asks a `chain` hop after hop.
    """

    role: Literal["baseline", "composition", "alternative", "control"]
    action: str
    served: bool = True


# The simplest first. "switch" asks each task's own adapter.
KINDS: Mapping[ScoredKind, Kind] = {
    "base": Kind("baseline", "use-base"),
    "adapter": Kind("baseline", "use-single"),
    "merge": Kind("composition", "merge"),
    "router": Kind("composition", "route", served=False),
    "switch": Kind("alternative", "switch-adapters"),
    "chain": Kind("alternative", "chain"),
    "control": Kind("control", ""),
}
BASELINES = tuple(name for name, kind in KINDS.items() if kind.role == "baseline")
COMPOSITIONS = tuple(name for name, kind in KINDS.items() if kind.role == "composition")
SEVERAL_ADAPTERS = (*COMPOSITIONS, "chain")  # kinds of systems that put several to use
# The systems that are no method and no router, by the name that asks for them.
FIXED: Mapping[str, SystemKind] = {
    "base": "base",
    "chain": "chain",
    "shrunk": "control",
    "random-partner": "control",
}


class ItemPart(str):
    """What of an item is asked: "question", a hop ("hop1", "hop2" ...), or "steps", worked steps.

    Documents and kept answers hold the text. Raises ValueError for any other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> ItemPart:
        if not re.fullmatch(r"question|steps|hop[1-9]\d{0,3}", text):
            raise ValueError(f"{text!r} is no part of an item")
        return super().__new__(cls, text)

    @property
    def hop(self) -> int | None:
        """The number of the hop, from 1; None for the composed question in either form."""
        return int(self[3:]) if self.startswith("hop") else None

    @property
    def words(self) -> str:
        """As every report says it: question, hop 1, step by step."""
        return "step by step" if self == STEPS else self.replace("hop", "hop ")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def hop_part(k: int) -> ItemPart:
    """The part of hop k, counted from 0."""
    return ItemPart(f"hop{k + 1}")


QUESTION, STEPS = ItemPart("question"), ItemPart("steps")
FORMS = (QUESTION, STEPS)  # the parts that ask the composed question
