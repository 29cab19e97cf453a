"""Which small bases an experiment is repeated on: every architecture in every width and seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from loraprobe.errors import UsageError
from loraprobe_lab.training.pretrain import ARCHITECTURES, BaseRecipe

Shape = Callable[[str, int], BaseRecipe]  # architecture, hidden width -> the base's recipe


@dataclass(frozen=True)
class BaseInfo:
    """The base of one world. `size` is the same for all worlds that are pooled."""

    name: str
    size: str
    seed: int
    parameters: int = 0


def small_base(architecture: str, hidden: int) -> BaseRecipe:
    """A small base of that width, trained as long as the worlds of two hops need."""
    return BaseRecipe(
        architecture=architecture,
        hidden=hidden,
        layers=3,
        heads=4,
        intermediate=5 * hidden // 2,
        steps=700,
    )


@dataclass(frozen=True)
class Bases:
    """Raises UsageError for an unknown architecture or a width that does not divide into heads."""

    architectures: tuple[str, ...] = ("llama",)
    hidden: tuple[int, ...] = (48, 64, 96)
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for architecture in self.architectures:
            if architecture not in ARCHITECTURES:
                raise UsageError(
                    f"There is no architecture {architecture!r}; there are "
                    f"{' and '.join(ARCHITECTURES)}."
                )
        for width in self.hidden:
            if width < 16 or width % 8:
                raise UsageError(f"A hidden width must be a multiple of 8 from 16 on, not {width}.")

    def chosen(
        self,
        architectures: Sequence[str] | None = None,
        hidden: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Bases:
        """These bases with what is given in place of what they have."""
        return replace(
            self,
            architectures=tuple(architectures or self.architectures),
            hidden=tuple(hidden or self.hidden),
            seeds=tuple(seeds or self.seeds),
        )

    def each(self, shape: Shape = small_base) -> Iterator[tuple[BaseInfo, BaseRecipe]]:
        """All sizes with the first seed, then with the next one, each with its base's recipe."""
        for seed, architecture, width in itertools.product(
            dict.fromkeys(self.seeds), dict.fromkeys(self.architectures), dict.fromkeys(self.hidden)
        ):
            name = f"{architecture}-{width}-seed{seed}"
            yield BaseInfo(name, f"{architecture} {width}", seed), shape(architecture, width)
