"""The cards of merges and compositions: front matter by a YAML library, text by a template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, public_name
from loraprobe.records import AdapterSummary, Audit, Verdict
from loraprobe.report import measured
from loraprobe.report.answer import answer
from loraprobe.report.escaping import Verbatim, markdown
from loraprobe.report.phrases import MOST_REASONS
from loraprobe.report.system_tables import scores

_SAFE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a base's name as it may stand in code


def model_card(
    *, sources: Sequence[AdapterSummary], weights: Sequence[float] | None, **values: Any
) -> str:
    """README.md of a merge.

    values: `name`, `front_matter`, `method`, `space`, `rank`, `compression_error`,
    `rounding_error`, `dtype` and `seed` of the merge, `serve` (the commands of servers that read
    it), and what `_card` takes.
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

    values: `name`, `front_matter`, `router`, `sources` (the experts), and what `_card` takes.
    `why_not_peft` says why peft's own Arrow cannot express the composition, None if it can.
    """
    return _card("composition.md.jinja", **values)


def converted_card(adapter: Adapter, changes: str, serve: Sequence[str]) -> str:
    """README.md of a converted adapter whose source has none. serve: commands of servers."""
    import yaml

    fields = {"library_name": "peft", "base_model_relation": "adapter", "tags": ["lora"]}
    if base := public_name(adapter.base_model):
        fields["base_model"] = base
    values = {"title": adapter.name, "version": __version__, "changes": changes, "serve": serve}
    return f"---\n{yaml.safe_dump(fields)}---\n{markdown('converted.md.jinja', **values)}"


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
    verdict = audit.verdict if audit.evaluation else None
    text = markdown(
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
        scores=scores(audit),
        headline=answer(audit).headline,
        decided=_decided(verdict, audit) if verdict else "",
        reasons=[r.message for r in verdict.reasons[:MOST_REASONS]] if verdict else [],
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def _decided(verdict: Verdict, audit: Audit) -> str:
    """The decision, the evidence for it and the gain, in one line."""
    gain = measured.gain(audit, verdict)
    told = f"The decision is {verdict.decision}, on the evidence of the {verdict.evidence}"
    return f"{told}; gain: {gain}." if gain else f"{told}."
