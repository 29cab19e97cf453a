"""The cards of what was made: a merge, a composition, a converted adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, public_name
from loraprobe.front_matter import read_front_matter
from loraprobe.records import AdapterSummary, Audit, Verdict
from loraprobe.report.answer import MOST_REASONS, answer, gain_line
from loraprobe.report.markdown import LONGEST, Verbatim, filled
from loraprobe.report.sections import evaluations

LICENCE = ("license", "license_name", "license_link")
_SAFE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a base's name as it may stand in code


def model_card(
    *,
    sources: Sequence[AdapterSummary],
    weights: Sequence[float] | None,
    full_model: bool = False,
    **values: Any,
) -> str:
    """README.md of a merge.

    full_model: whether it is that of a model, and not of an adapter. values: `name`,
    `front_matter`, `method`, `space`, `rank`, `compression_error`, `rounding_error`, `dtype` and
    `seed` of the merge, `serve` (the commands of servers that read it), and what `_card` takes.
    """
    return _card(
        "card.md.jinja",
        full_model=full_model,
        sources=sources,
        weights=", ".join(f"{w:g}" for w in weights) if weights else None,
        negated=[s.name for s, w in zip(sources, weights or (), strict=False) if w < 0],
        **values,
    )


def composition_card(**values: Any) -> str:
    """README.md of a saved composition: its experts, its router, and how it is loaded.

    values: `name`, `front_matter`, `router`, `sources` (the experts), and what `_card` takes.
    `why_not_peft` says why peft's own Arrow cannot express the composition, None if it can.
    """
    return _card("composition.md.jinja", **values)


def converted_card(
    adapter: Adapter, source: str, card: str | None, changes: str, serve: Sequence[str]
) -> str:
    """README.md of a converted adapter.

    source, card: where it came from and the card there, of which the licence is kept and no text,
    because that may hold any markup. serve: commands of servers.
    """
    import yaml

    kept = {key: text for key, text in read_front_matter(card).items() if key in LICENCE}
    fields = {"library_name": "peft", "base_model_relation": "adapter", "tags": ["lora"]}
    fields |= {key: text[:LONGEST] for key, text in kept.items() if isinstance(text, str)}
    if base := public_name(adapter.base_model):
        fields["base_model"] = base
    values = {"title": adapter.name, "source": source, "changes": changes, "serve": serve}
    values["version"] = __version__
    return f"---\n{yaml.safe_dump(fields)}---\n{filled('converted.md.jinja', **values)}"


def _card(
    template: str,
    *,
    name: str,
    front_matter: Mapping[str, Any],
    audit: Audit,
    allowed: Collection[str] = (),
    **values: Any,
) -> str:
    """A card from its template. Text from other people's files never becomes markup in it.

    front_matter: holds how the directory was made, from which `loraprobe verify` makes it again.
    audit: findings, what was done to the adapters first, and scores where they were measured.
    """
    import yaml

    base = front_matter.get("base_model")
    verdict = audit.verdict if audit.evaluation.scores else None
    text = filled(
        template,
        title=name,
        version=__version__,
        base_model=base,
        base_text=Verbatim(f'"{base if base and _SAFE.fullmatch(base) else "the base"}"'),
        base_used=audit.base is not None,
        issues=audit.compatibility.issues,
        allowed=allowed,
        transformations=audit.transformations,
        search=audit.search,
        scores=evaluations(audit),
        headline=answer(audit).headline,
        decided=_decided(verdict, audit) if verdict else "",
        reasons=[r.message for r in verdict.reasons[:MOST_REASONS]] if verdict else [],
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def _decided(verdict: Verdict, audit: Audit) -> str:
    """The decision, the evidence for it and the gain, in one line."""
    gain = gain_line(audit, verdict)
    told = f"The decision is {verdict.decision}, on the evidence of the {verdict.evidence}"
    return f"{told}; gain: {gain}." if gain else f"{told}."
