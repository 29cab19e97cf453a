"""The cards of merges and compositions: front matter by a YAML library, text by a template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loraprobe._version import __version__
from loraprobe.records import AdapterSummary, Issue, Transformation, Verdict, WeightSearch
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
    transformations: Sequence[Transformation] = (),
    search: WeightSearch | None = None,
    provenance: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """README.md of a merge; strings from strangers' files are data in it, never markup.

    `provenance` goes into the front matter, where `loraprobe verify` finds it.
    """
    text = _filled(
        "card.md.jinja",
        title=name,
        version=__version__,
        base_model=base_model,
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
    return _front_matter(base_model, "merge", "peft", provenance, license) + text


def composition_card(
    *,
    name: str,
    base_model: str | None,
    router: str,
    experts: Sequence[AdapterSummary],
    why_not_peft: str | None,
    missed_prototype: str | None = None,
    issues: Sequence[Issue] = (),
    allowed: Collection[str] = (),
    verdict: Verdict | None = None,
    transformations: Sequence[Transformation] = (),
    search: WeightSearch | None = None,
    license: str | None = None,
) -> str:
    """README.md of a saved composition: what it is made of, and how it is loaded.

    `why_not_peft` says why peft's own Arrow cannot express it; None where it can.
    `missed_prototype` says why it has to be given the exact prototypes.
    """
    text = _filled(
        "composition.md.jinja",
        title=name,
        version=__version__,
        base_model=base_model,
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
    return _front_matter(base_model, "routing", "loraprobe", license=license) + text


def _filled(template: str, **values: Any) -> str:
    """A template with values that are text and nothing else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: _inert(value) if isinstance(value, str) else value,
    )
    return environment.get_template(template).render(**values)


def _front_matter(
    base_model: str | None,
    tag: str,
    library: str,
    provenance: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """What the Hub reads of a card."""
    import yaml

    matter: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["lora", tag, "loraprobe"],
    }
    if base_model:
        matter["base_model"] = " ".join(clean(base_model).split())
    if license:
        matter["license"] = clean(license)
    if provenance is not None:
        matter["loraprobe"] = _cleaned(provenance)
    return f"---\n{yaml.safe_dump(matter)}---\n"


def _cleaned(value: Any) -> Any:
    """Plain data with every text in it cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: _cleaned(held) for key, held in value.items()}
    return [_cleaned(held) for held in value] if isinstance(value, list) else value


def _inert(text: str) -> str:
    """Text that neither ends a table cell nor starts markup, a link or an image."""
    flat = " ".join(clean(text).split())
    for mark in "\\|[":
        flat = flat.replace(mark, "\\" + mark)
    return flat.replace("<", "&lt;").replace("`", "'")
