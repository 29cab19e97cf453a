"""The model card of a merged adapter: YAML front matter by a YAML library, text by a template."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.records import AdapterSummary, Issue, Verdict
from loraprobe.report.wording import clean


def model_card(
    *,
    name: str,
    base_model: str | None,
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
) -> str:
    """README.md of a merge; strings from strangers' files are data in it, never markup."""
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: _inert(value) if isinstance(value, str) else value,
    )
    text = environment.get_template("card.md.jinja").render(
        title=name,
        version=__version__,
        base_model=base_model,
        sources=sources,
        method=method,
        space=space,
        rank=rank,
        weights=", ".join(f"{w:g}" for w in weights) if weights else None,
        compression_error=compression_error,
        rounding_error=rounding_error,
        dtype=dtype,
        seed=seed,
        issues=issues,
        allowed=allowed,
        verdict=verdict,
    )
    return f"---\n{yaml.safe_dump(_front_matter(base_model))}---\n{text}"


def _front_matter(base_model: str | None) -> dict[str, Any]:
    """What the Hub reads of a card."""
    matter: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merge", "loraprobe"],
    }
    if base_model:
        matter["base_model"] = clean(base_model)
    return matter


def _inert(text: str) -> str:
    """Text that neither ends a table cell nor starts markup, a link or an image."""
    flat = " ".join(clean(text).split())
    for mark in "\\|[":
        flat = flat.replace(mark, "\\" + mark)
    return flat.replace("<", "&lt;").replace("`", "'")
