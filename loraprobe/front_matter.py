"""Reads a model card, which is untrusted: its front matter (YAML), licence and form of prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

LONGEST = 200_000  # characters between the two lines of dashes
NO_BREAKS = dict.fromkeys(
    (0x85, 0x2028, 0x2029), " "
)  # PyYAML breaks lines there, the Hub does not


# What a file of a tokenizer, or code that asks a model, shows of a chat template or a plain prompt.
CHAT = re.compile(r"""chat_template|\bmessages\s*=|\bin messages\b|["']role["']\s*:\s*["']user""")
PLAIN = re.compile(r"\.generate\(|\bpipeline\(")
KEY = "loraprobe"  # under which a card says what its directory was made of
LONGEST_LICENCE = 100  # characters of a licence's name that are kept


class PlainLoader(yaml.SafeLoader):
    """yaml.SafeLoader, which builds plain data only, without aliases and doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few bytes of them can expand to gigabytes
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError("a key that is given twice")
        return super().construct_mapping(node, deep)


def read_front_matter(card: str | None) -> Mapping[Any, Any]:
    """The mapping between a card's first two lines of `---`; empty where there is none.

    It is also empty for invalid YAML, an alias, a repeated key, more than LONGEST characters, and
    objects other than plain data.
    """
    text, _ = front_and_body(card or "")
    return read_mapping(text or "")


def read_mapping(text: str) -> Mapping[Any, Any]:
    """The mapping that a YAML text is; empty where it is none, as `read_front_matter` says."""
    if len(text) > LONGEST:
        return {}
    try:
        fields = plain_data(text.translate(NO_BREAKS))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def plain_data(text: str) -> Any:
    """What a YAML text holds. Raises ValueError, also for an alias and for a key given twice."""
    try:
        return yaml.load(text, Loader=PlainLoader)
    except Exception as error:  # more than PyYAML's own: a bad !!timestamp, deep nesting
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def front_and_body(card: str) -> tuple[str | None, str]:
    """What stands between a card's first two lines of `---`, None without them, and the rest.

    As on the Hub, lines end at \\n or \\r\\n and at nothing else.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", card.removeprefix("\ufeff"))
    marks = [number for number, line in enumerate(lines) if line in ("---\n", "---\r\n", "---")]
    if marks[:1] != [0] or len(marks) < 2:
        return None, card
    return "".join(lines[1 : marks[1]]), "".join(lines[marks[1] + 1 :])


def prompt_form(text: str | None) -> bool | None:
    """Whether a card or a tokenizer's file shows prompts as user turns; None if it shows none."""
    if CHAT.search(text or ""):
        return True
    return False if PLAIN.search(text or "") else None


def declared_licence(card: str | None) -> str | None:
    """The `license` of a card, or its `license_name` if that is "other"; None without a licence.

    A value that is neither a text nor a list of texts counts as none.
    """
    matter = read_front_matter(card)
    licence, name = matter.get("license"), matter.get("license_name")
    if isinstance(licence, list) and all(isinstance(one, str) for one in licence):
        licence = " and ".join(licence)
    if not isinstance(licence, str):
        return None
    if licence.lower() == "other" and isinstance(name, str) and name.strip():
        licence = name
    return licence.strip()[:LONGEST_LICENCE] or None


def is_gated(card: str | None) -> bool:
    """Whether a card requires consent before a download (it has `extra_gated_...` keys)."""
    return any(
        isinstance(key, str) and key.startswith("extra_gated") for key in read_front_matter(card)
    )
