"""The cards of merges and compositions: front matter by a YAML library, text by a template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.records import AdapterSummary, Issue, Transformation, Verdict, WeightSearch
from loraprobe.report.formatting import clean


def model_card(
    *, sources: Sequence[AdapterSummary], weights: Sequence[float] | None, **values: Any
) -> str:
    """README.md of a merge.

    values: `name`, `front_matter`, `method`, `space`, `rank`, `compression_error`,
    `rounding_error`, `dtype` and `seed` of the merge, and what `_card` takes.
    """
    return _card(
        "card.md.jinja",
        sources=sources,
        weights=", ".join(f"{w:g}" for w in weights) if weights else None,
        negated=[s.name for s, w in zip(sources, weights or (), strict=False) if w < 0],
        **values,
    )


def composition_card(**values: Any) -> str:
    """README.md of a saved composition: its experts, its router, and how it is loaded.

    values: `name`, `front_matter`, `router`, `experts`, and what `_card` takes. `why_not_peft` says
    why peft's own Arrow cannot express the composition, None if it can; `missed_prototype` says
    why it needs the exact prototypes, None if it does not.
    """
    return _card("composition.md.jinja", **values)


def _card(
    template: str,
    *,
    name: str,
    front_matter: Mapping[str, Any],
    issues: Sequence[Issue] = (),
    allowed: Collection[str] = (),
    verdict: Verdict | None = None,
    transformations: Sequence[Transformation] = (),
    search: WeightSearch | None = None,
    **values: Any,
) -> str:
    """A card from its template. Text from other people's files never becomes markup in it.

    front_matter: holds how the directory was made, from which `loraprobe verify` makes it again.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finished,
    )
    environment.filters["code"] = _code
    text = environment.get_template(template).render(
        title=name,
        version=__version__,
        base_model=front_matter.get("base_model"),
        issues=issues,
        allowed=allowed,
        verdict=verdict,
        transformations=transformations,
        search=search,
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def _finished(value: Any) -> Any:
    return _inert(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


# These characters start markup, a link or a table cell anywhere in a line.
_MARKS = re.compile(r"[\\`*\[\]|#<>&~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.|@(?=\w)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# At the start of a line these make a list, a heading or a rule.
_START = re.compile(r"^(?:([-+=])(?=\s|\1)|(\d+)([.)])(?=\s))")


def _inert(text: str) -> str:
    """One line of text, escaped so that it is no markup, no link and no end of a table cell."""
    flat = _MARKS.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), _flat(text))
    return _START.sub(lambda start: f"{start[2] or ''}\\{start[1] or start[3]}", flat)


def _code(text: str) -> Verbatim:
    """Text as code, or escaped if code cannot hold it. A bar ends a table cell even in code."""
    flat = _flat(text)
    if "<" in flat or "`" in flat or not flat:
        return Verbatim(_inert(flat))
    return Verbatim("`" + flat.replace("|", "\\|") + "`")


class Verbatim(str):
    """Markdown that is escaped already."""


def _flat(text: str) -> str:
    return " ".join(clean(text).split())
