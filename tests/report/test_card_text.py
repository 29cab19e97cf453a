"""Cards: strangers' strings are text everywhere."""

import re

import pytest
import yaml
from audits import HOSTILE, an_audit
from evidences import replaced
from planting import MARKUP, planted, structure

from loraprobe.records import (
    Audit,
    LearnedWeights,
    Transformation,
)
from loraprobe.report.card_text import composition_card, model_card


def cards(text: str) -> list[str]:
    """Both kinds of card, with this text as everything that a stranger may have chosen."""
    audit = replaced(
        planted(an_audit(), text),
        transformations=(Transformation(text, 1.0, 1.0, 1.0, (text, text)),),
        search=LearnedWeights({text: 1.0}, 1.0, 1.0, 1.0, 9, 9, 9, 9),
    )
    return cards_of(audit, text)


def cards_of(audit: Audit, text: str = "x") -> list[str]:
    common = {
        "name": text,
        "front_matter": {"base_model": text, "license": text},
        "audit": audit,
        "allowed": (text,),
    }
    merge = model_card(
        **common,
        sources=[replaced(row, license=text) for row in audit.adapters],
        method=text,
        space=text,
        rank="8",
        weights=(1.0, -1.0),
        compression_error=0.0,
        rounding_error=0.0,
        dtype="float32",
        seed=0,
        serve=[f"vllm serve {text}"],
    )
    routed = [
        composition_card(**common, router=text, sources=audit.adapters, why_not_peft=why)
        for why in (text, None)
    ]
    return [merge, *routed]


@pytest.mark.parametrize("text", MARKUP)
def test_no_string_of_a_card_becomes_markup(text):
    for made in zip(cards(text), cards("x"), strict=True):
        hostile, harmless = (card.split("---\n", 2)[2] for card in made)
        assert structure(hostile) == structure(harmless)
        outside = re.sub(r"`[^`]*`", "", hostile)
        # What GitHub and the Hub make links of without any mark.
        assert not re.search(r"://|\bwww\.|\w@\w", outside)


def test_a_card_is_yaml_and_keeps_strangers_strings_inert():
    for card in cards(HOSTILE):
        front, body = card.split("---\n")[1:3]
        assert yaml.safe_load(front)["base_model"] == HOSTILE
        outside = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
        assert "<script>" not in outside and "\x1b" not in body
        assert "accepted with --allow" in body
