"""The whole story in order, each stage one call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from loraprobe._version import __version__
from loraprobe.adapter import Adapter, layer_pattern
from loraprobe.audit.publishing import published
from loraprobe.audit.settings import Progress, Settings
from loraprobe.base import Base
from loraprobe.records import (
    Audit,
    Compatibility,
    LayerGroup,
    Measurement,
    Provenance,
)

if TYPE_CHECKING:
    from loraprobe.compatibility.identity import Purpose


@dataclass
class Story:
    """What one run has found out so far; `audit` closes it.

    `adapters` are brought to one layout of fused projections, that of the base if it is given.
    `last_words` give notes that are known only at the end, or "".
    """

    command: str
    adapters: Sequence[Adapter]
    settings: Settings
    base: Base | None = None
    progress: Progress | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seconds: dict[str, float] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    last_words: list[Callable[[], str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        from loraprobe.compatibility import aligned

        self.adapters = aligned(self.adapters, self.base)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; a stage entered twice adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def check(self, purpose: Purpose) -> Compatibility:
        """Findings before anything is run; no factor is read."""
        from loraprobe import compatibility

        with self.stage("check"):
            found = compatibility.check(
                self.adapters,
                self.base,
                purpose=purpose,
                allow=self.settings.allow,
                contents=compatibility.Contents(self.adapters),
            )
        self.found["compatibility"] = found
        return found

    def look(self, purpose: Purpose) -> Compatibility:
        """Diagnostics and compatibility from one pass over the adapters' files.

        What needs base weights is left out where the adapters do not fit the base. Rows of
        modules are kept where they are asked for.
        """
        from loraprobe import compatibility, diagnostics

        found = self.check(purpose)
        fits = found.compatible
        contents = compatibility.Contents(self.adapters)
        alone = len(self.adapters) == 1
        with self.stage("diagnose"):
            rows = diagnostics.diagnose(
                self.adapters,
                per_module=self.settings.per_module or alone,
                base=self.base if fits else None,
                on_demand=self.settings.diagnostics if fits else (),
                exact=self.settings.exact,
                seed=self.settings.seed,
                progress=self.progress,
                observers=[contents.take],
            )
        if alone:
            self.found["layers"] = layer_groups(self.adapters[0], rows)
        if not self.settings.per_module:
            rows = tuple(row for row in rows if row.module is None)
        self.found["diagnostics"] = rows
        with self.stage("check"):
            found = compatibility.with_contents(found, contents, self.settings.allow)
        self.found["compatibility"] = found
        return found

    def audit(self) -> Audit:
        """Everything found, with its provenance, as it may be published."""
        norms = {
            row.adapters[0]: row.value
            for row in self.found.get("diagnostics", ())
            if row.name == "norm" and row.module is None
        }
        audit = Audit(
            command=self.command,
            provenance=Provenance(
                loraprobe=__version__,
                torch=torch.__version__,
                arguments=self.settings.arguments,
                seed=self.settings.seed,
                device=self.device,
                dtype=self.dtype,
                seconds={name: round(value, 3) for name, value in self.seconds.items()},
                peak_memory_bytes=peak_memory(),
            ),
            adapters=tuple(a.summary(norms.get(a.name)) for a in self.adapters),
            base=self.base.summary() if self.base is not None else None,
            notes=(*self.notes, *filter(None, (note() for note in self.last_words))),
            **self.found,
        )
        return published(audit, self.adapters, self.base, self.settings)


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes; 0 where the system says none."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def layer_groups(adapter: Adapter, rows: Sequence[Measurement]) -> tuple[LayerGroup, ...]:
    """One adapter layer by layer, what repeats in every layer as one row."""
    norms: Mapping[str | None, float | None] = {
        row.module: row.value for row in rows if row.name == "norm" and row.module
    }
    groups: dict[tuple[str, str], list[str]] = {}
    for path, info in adapter.layout.items():
        groups.setdefault((layer_pattern(path), info.kind), []).append(path)
    made = []
    for (pattern, kind), paths in groups.items():
        infos = [adapter.layout[path] for path in paths]
        known = [norm for path in paths if (norm := norms.get(path)) is not None]
        made.append(
            LayerGroup(
                adapter=adapter.name,
                pattern=pattern,
                kind=kind,
                modules=len(paths),
                rank=_ends([i.rank for i in infos]),
                in_features=_ends([i.in_features for i in infos]),
                out_features=_ends([i.out_features for i in infos]),
                scaling=_ends([i.scaling for i in infos]),
                norm=_ends(known) if known else None,
            )
        )
    return tuple(made)


def _ends(values: Sequence[Any]) -> tuple[Any, Any]:
    return min(values), max(values)
