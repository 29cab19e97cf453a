"""The cards of merges and compositions: front matter by a YAML library, text by a template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.records import AdapterSummary, Issue, Transformation, Verdict, WeightSearch
from loraprobe.report.formatting import clean


def model_card(
    *,
    name: str,
    matter: Mapping[str, Any],
    sources: Sequence[AdapterSummary],
    method: str,
    space: str,
    rank: str,
    weights: Sequence[float] | None,
    compression_error: float,
    rounding_error: float,
    dtype: str,
    seed: int,
    issues: Sequence[Issue] = (),
    allowed: Collection[str] = (),
    verdict: Verdict | None = None,
    transformations: Sequence[Transformation] = (),
    search: WeightSearch | None = None,
) -> str:
    """README.md of a merge; strings from strangers' files are data in it, never markup.

    matter: the front matter (`audit.provenance`), where `loraprobe verify` finds how the
    merge was made.
    """
    text = _filled(
        "card.md.jinja",
        title=name,
        version=__version__,
        base_model=matter.get("base_model"),
        sources=sources,
        method=method,
        space=space,
        rank=rank,
        weights=", ".join(f"{w:g}" for w in weights) if weights else None,
        negated=[s.name for s, w in zip(sources, weights or (), strict=False) if w < 0],
        compression_error=compression_error,
        rounding_error=rounding_error,
        dtype=dtype,
        seed=seed,
        issues=issues,
        allowed=allowed,
        verdict=verdict,
        transformations=transformations,
        search=search,
    )
    return _front_matter(matter) + text


def composition_card(
    *,
    name: str,
    matter: Mapping[str, Any],
    router: str,
    experts: Sequence[AdapterSummary],
    why_not_peft: str | None,
    missed_prototype: str | None = None,
    issues: Sequence[Issue] = (),
    allowed: Collection[str] = (),
    verdict: Verdict | None = None,
    transformations: Sequence[Transformation] = (),
    search: WeightSearch | None = None,
) -> str:
    """README.md of a saved composition: what it is made of, and how it is loaded.

    `why_not_peft` says why peft's own Arrow cannot express it; None where it can.
    `missed_prototype` says why it has to be given the exact prototypes.
    """
    text = _filled(
        "composition.md.jinja",
        title=name,
        version=__version__,
        base_model=matter.get("base_model"),
        router=router,
        experts=experts,
        why_not_peft=why_not_peft,
        missed_prototype=missed_prototype,
        issues=issues,
        allowed=allowed,
        verdict=verdict,
        transformations=transformations,
        search=search,
    )
    return _front_matter(matter) + text


def _filled(template: str, **values: Any) -> str:
    """A template with values that are text and nothing else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finished,
    )
    environment.filters["code"] = _code
    return environment.get_template(template).render(**values)


def _finished(value: Any) -> Any:
    return _inert(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


def _front_matter(matter: Mapping[str, Any]) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(dict(matter))}---\n"


# What starts markup, a link or a table cell wherever it stands in a line.
_MARKS = re.compile(r"[\\`*\[\]|#<>&~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.|@(?=\w)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# At the start of a line these make a list, a heading or a rule.
_START = re.compile(r"^(?:([-+=])(?=\s|\1)|(\d+)([.)])(?=\s))")


def _inert(text: str) -> str:
    """Text of one line that is no markup, no link and no image, and ends no table cell."""
    flat = _MARKS.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), _flat(text))
    return _START.sub(lambda start: f"{start[2] or ''}\\{start[1] or start[3]}", flat)


def _code(text: str) -> Verbatim:
    """Text as code where that holds it: a bar ends a table cell even there."""
    flat = _flat(text)
    if "<" in flat or "`" in flat or not flat:
        return Verbatim(_inert(flat))
    return Verbatim("`" + flat.replace("|", "\\|") + "`")


class Verbatim(str):
    """Markdown that is inert already."""


def _flat(text: str) -> str:
    return " ".join(clean(text).split())
