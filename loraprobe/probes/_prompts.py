"""The prompts of `--probe auto`: those of the adapters' model cards, then what adapters write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from loraprobe.errors import TaskError
from loraprobe.front_matter import front_and_body, read_front_matter
from loraprobe.routing.constant import single
from loraprobe.tasks import ProbePrompts

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.scoring import ModelScorer

WANTED = 64
SAMPLED_TOKENS = 24
ROUNDS = 6  # of sampling at most
LONGEST, SHORTEST = 600, 3  # characters of a prompt
MOST_CARD = 200_000  # characters of a card that are read

_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_ASSIGNED = re.compile(
    r"\b(?:prompt|text|question|query|instruction|input_text|inputs?)[ \t]*=[ \t]*"
    r'(?:"""(.+?)"""|\'\'\'(.+?)\'\'\'|"([^"\n]+)"|\'([^\'\n]+)\')',
    re.DOTALL,
)
_PLAIN = frozenset(("", "text", "txt", "prompt", "plaintext", "plain", "example", "input"))
_CODE = re.compile(
    r"^\s*(?:import |from \S+ import|def |class |pip |python |git |\$ |>>>|@|\{|\[|<\w|#!)"
    r"|[=;]\s*$|\w\(.*\)\s*$|^\s*[\w.]+\s*[:=]\s*\S+\s*$",
    re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def generated_prompts(
    scorer: ModelScorer,
    adapters: Sequence[Adapter],
    cards: Mapping[str, str | None],
    *,
    seed: int = 0,
    wanted: int = WANTED,
) -> ProbePrompts:
    """At most `wanted` distinct prompts, from model cards first and then from sampling.

    cards: adapter's name -> README text; their widget examples and prompts are taken in turn. If
    there are too few, each adapter samples texts in place of a user's turn, with the seed. Raises
    TaskError if there is no prompt at all.
    """
    prompts = _distinct(_in_turn([card_prompts(cards.get(a.name) or "") for a in adapters]))
    for attempt in range(ROUNDS):
        missing = wanted - len(prompts)
        if missing <= 0 or not adapters:
            break
        share = -(-missing // len(adapters))
        written = []
        for number, adapter in enumerate(adapters):
            with scorer.with_composition(single(adapter)):
                texts = scorer.sample(
                    share, seed=seed + 1000 * attempt + number, max_new_tokens=SAMPLED_TOKENS
                )
            written.append([_whole(text) for text in texts])
        prompts = _distinct([*prompts, *_in_turn(written)])
    if not prompts:
        raise TaskError(
            "The model cards hold no prompt and the adapters write none: give "
            "--probe=FILE with a question a line."
        )
    return ProbePrompts(dict.fromkeys(prompts[:wanted]))


def card_prompts(card: str) -> list[str]:
    """Prompts in a model card: widget examples, prompts in its code, plain fenced examples.

    The front matter is read with limits; if it is not valid YAML, there are no widget examples.
    """
    card = card[:MOST_CARD].replace("\r\n", "\n")
    prompts = _widgets(read_front_matter(card))
    for match in _FENCE.finditer(front_and_body(card)[1]):
        kind, text = match.group(2).strip().lower(), match.group(3)
        if kind in _PLAIN and not _CODE.search(text):
            prompts.append(text)
        else:
            prompts += [next(filter(None, m.groups())) for m in _ASSIGNED.finditer(text)]
    return _distinct(prompts)


def _widgets(matter: Mapping[Any, Any]) -> list[str]:
    widgets = matter.get("widget")
    texts: list[str] = []
    for widget in widgets if isinstance(widgets, list) else []:
        if isinstance(widget, str):
            texts.append(widget)
        elif isinstance(widget, dict):
            if isinstance(widget.get("text"), str):
                texts.append(widget["text"])
            turns = widget.get("messages")
            for turn in turns if isinstance(turns, list) else []:
                is_user = isinstance(turn, dict) and turn.get("role") == "user"
                if is_user and isinstance(turn.get("content"), str):
                    texts.append(turn["content"])
    return texts


def _in_turn(lists: Iterable[Sequence[str]]) -> list[str]:
    return [text for row in zip_longest(*lists) for text in row if text is not None]


def _whole(text: str) -> str:
    """The first line without its last word, which may be cut off, unless it ends a sentence."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    words = line.split()
    if len(words) < 3 or line.rstrip()[-1] in ".?!:\"'”’)…。？！":
        return line
    return line.rstrip()[: -len(words[-1])].rstrip()


def _distinct(texts: Iterable[str]) -> list[str]:
    """Clean prompts without repetitions; case and spaces are ignored in the comparison."""
    distinct: dict[str, str] = {}
    for text in texts:
        clean = _CONTROL.sub("", text).strip()
        key = " ".join(clean.casefold().split())
        if SHORTEST <= len(clean) <= LONGEST and any(ch.isalpha() for ch in clean):
            distinct.setdefault(key, clean)
    return list(distinct.values())
