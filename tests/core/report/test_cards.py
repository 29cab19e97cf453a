"""Cards as the Hub expects them: fields, a snippet that runs, scores; nothing private."""

import contextlib
import io
import re
from pathlib import Path

import making
import pytest
import yaml
from audits import HOSTILE, MARKUP, an_audit, planted, structure
from evidences import replaced
from huggingface_hub import ModelCard, ModelCardData

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.extension import CardPart
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.records import Audit, LearnedWeights, Transformation
from loraprobe.report.cards import card_text
from loraprobe.session import Session


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The composition that merge-and-eval saves for local adapters, beside which the base lies."""
    place = tmp_path_factory.mktemp("cards")
    world, chosen = shipped_world(), shipped_world().scenario("skill-and-facts")
    for name, path in chosen.adapters.items():
        (place / name).symlink_to(path)
    shown = ("uniform",)  # than which the router is shown to be better
    options = Options(methods=shown, limit=30, all_items=True, margin=0.01, threads=1)
    found = commands.merge_and_eval(
        [place / name for name in chosen.adapters],
        Session(options, state=place / "state"),
        base=world.base,
        tasks=chosen.tasks,
    )
    assert found.made is not None, found.why_nothing
    found.made.save(place / "out")
    (place / "out" / "base").symlink_to(world.base)
    return place / "out"


def snippets(text: str) -> list[str]:
    """The Python blocks of a card."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def hub_card(text: str) -> ModelCard:
    """The card as the Hub's client reads it; all fields are ones that it knows, or ours."""
    card = ModelCard(text)
    known = set(vars(ModelCardData(base_model="x"))) | {"base_model_relation", "loraprobe"}
    assert set(card.data.to_dict()) <= known
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    return card


def test_a_composition_shows_its_scores_and_its_answer(evaluated):
    text = (evaluated / "README.md").read_text()
    card = hub_card(text)
    assert card.data.base_model_relation == "adapter" and card.data.library_name == "loraprobe"
    part = text.partition("## What was measured")[2]
    for system in ("base", "newcomers", "steps", "uniform", "arrow", "chain"):
        assert re.search(rf"^\| {system} \| \d", part, flags=re.MULTILINE), system
    labels = re.findall(r"^- \*\*([\w ]+)\*\* ", part, flags=re.MULTILINE)
    assert {"use", "gain"} <= set(labels) and "next" not in labels
    assert "30 items" in part


def run_snippet(place: Path, text: str, monkeypatch) -> str:
    """The output of the first snippet of a card, run in the card's directory."""
    code = snippets(text)[0].replace('"loraprobe/small-world-base"', '"base"')
    monkeypatch.chdir(place)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})
    return printed.getvalue()


def test_the_snippet_of_a_composition_runs(evaluated, monkeypatch):
    assert run_snippet(evaluated, (evaluated / "README.md").read_text(), monkeypatch).strip()


def test_the_snippet_of_a_merge_runs(tmp_path, monkeypatch):
    chosen = shipped_world().scenario("skill-and-facts")
    merged = loraprobe.merge([*chosen.adapters.values()], "ties:density=0.3")
    merged.save(tmp_path / "out")
    (tmp_path / "out" / "base").symlink_to(shipped_world().base)
    text = (tmp_path / "out" / "README.md").read_text()
    assert hub_card(text).data.library_name == "peft"
    assert "| method | `ties:density=0.3` |" in text
    assert "without the base model's weights" in text
    assert run_snippet(tmp_path / "out", text, monkeypatch).strip()


def test_the_base_is_not_denied_where_it_was_used(tmp_path):
    base = tmp_path / "base"
    making.tiny_llama().save_pretrained(base)
    pair = making.saved_pair(tmp_path, base_model=str(base))
    merged = loraprobe.merge(pair, base=base)
    assert "without the base" not in merged.card and str(tmp_path) not in merged.card


@pytest.mark.parametrize("router", ["arrow", "arrow:top_k=1", "constant"])
def test_a_router_is_spelled_as_the_command_line_spells_it(router):
    pair = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]
    card = loraprobe.compose(pair, router=router).card
    assert f"Router: `{router}" in card and "(" not in card.partition("Router: ")[2].splitlines()[0]


@pytest.mark.parametrize(
    "base_model", ['x"); import os; os.abort(); ("', "a\n```\nb", "owner/na`me", "a b"]
)
def test_no_name_of_a_base_becomes_code(base_model):
    pair = [
        making.random_adapter(name, seed=seed, base_model=base_model)
        for seed, name in enumerate("ab", 1)
    ]
    for code in snippets(loraprobe.merge(pair).card):
        assert "abort" not in code and '"the base"' in code
        compile(code, "card", "exec")


def cards(text: str) -> list[str]:
    """Both kinds of card, with this text as everything that a stranger may have chosen."""
    audit = replaced(
        planted(an_audit(), text),
        transformations=(Transformation(text, 1.0, 1.0, 1.0, (text, text)),),
        search=LearnedWeights({text: 1.0}, 1.0, 1.0, 1.0, 9, 9, 9, 9),
    )
    return cards_of(audit, text)


def cards_of(audit: Audit, text: str = "x") -> list[str]:
    matter = {"base_model": text, "license": text}
    common = {"title": text, "audit": audit, "allowed": (text,)}
    merge = card_text(
        "card.md.jinja",
        matter,
        **common,
        sources=[replaced(row, license=text) for row in audit.adapters],
        method=text,
        space=text,
        rank="8",
        weights="1, -1",
        negated=[text],
        compression_error=0.0,
        rounding_error=0.0,
        dtype="float32",
        seed=0,
        parts=[CardPart("Serve it", "", [f"vllm serve {text}"])],
    )
    routed = [
        card_text(
            "composition.md.jinja",
            matter,
            **common,
            router=text,
            sources=audit.adapters,
            why_not_peft=why,
            reads_text=why is not None,
            learned=None,
        )
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
