"""The result of a merge: an adapter made of others, and how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraprobe.adapters import Adapter, check_apart, portable
from loraprobe.formatting import shortly
from loraprobe.records import AdapterSummary, Issue


@dataclass(frozen=True, eq=False)
class Merged:
    """An adapter made of others, and how it was made.

    compression_error: ||dW - dW_k||_F / ||dW||_F over the whole adapter, where dW is the method's
        result and dW_k what `rank` keeps of it; 0.0 where nothing above rounding was cut.
    rounding_error: the same ratio for writing the factors in their dtype.
    sketch_error: the same ratio for what the last round of a sketch of a large dense module still
        added, about what an exact SVD might keep in addition; 0.0 where no sketch was needed.
    rank: the largest rank of a module. weights: those that were used. spec, asked_rank: the method
        and the rank (None for "auto") from which the merge can be repeated. directories: where the
        sources lie on this machine.
    targets: `target_modules` of the file; None for every path.
    """

    adapter: Adapter
    method: str
    space: str
    rank: int
    compression_error: float
    rounding_error: float
    sources: tuple[AdapterSummary, ...]
    issues: tuple[Issue, ...] = ()
    card: str | None = None
    weights: tuple[float, ...] = ()
    seed: int = 0
    sketch_error: float = 0.0
    spec: str = ""
    asked_rank: int | None = None
    directories: tuple[Path, ...] = ()
    targets: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.adapter.name

    def __repr__(self) -> str:
        sources = shortly(source.name for source in self.sources)
        weights = ", ".join(f"{weight:g}" for weight in self.weights[:12])
        more = ", ..." if len(self.weights) > 12 else ""
        return (
            f"<Merged {shortly([self.name])}: {self.spec or self.method} of {sources}, "
            f"weights {weights or 'none'}{more}, space {self.space}, rank {self.rank}, "
            f"{self.compression_error:.2g} lost to the rank>"
        )

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory, with `card` as its README.

        Raises OutputError, also where the directory is, contains or lies inside a source.
        """
        check_apart(Path(directory), self.directories)
        self.written.save(directory, overwrite=overwrite, card=self.card, targets=self.targets)

    @property
    def written(self) -> Adapter:
        """The adapter as it is saved: with one rank in all modules, filled up with zeros, which is
        what servers read."""
        return portable(self.adapter)
