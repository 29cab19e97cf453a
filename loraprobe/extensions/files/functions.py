"""What Python calls: `loraprobe.convert`, `loraprobe.save_full_model`, `loraprobe.verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from loraprobe.extensions.files import KEPT_ENERGY
from loraprobe.options import takes

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter
    from loraprobe.extensions.files.converting import Converted
    from loraprobe.extensions.files.verification import Verification
    from loraprobe.merging import Merged


@takes("convert")
def convert(
    adapter: Adapter | str | Path,
    *,
    base: str | Path | None = None,
    like: str | Path | None = None,
    portable: bool = True,
    keep_energy: float = KEPT_ENERGY,
    to: Literal["peft", "mlx"] = "peft",
    **options: Any,
) -> Converted:
    """Rewrites one adapter as peft and servers read it; `.save(directory)` writes it.

    base: gives stacked experts of older versions of peft today's order, and compares a copy of an
    embedding or head that the file may hold. like: a base or an adapter
    whose names of modules are written. portable: one rank and one scaling in all modules, or those
    of the file. keep_energy: the least share of ||dW||_F^2 that a LoRA made of another PEFT type
    keeps of each module. to: peft and servers, or mlx-lm.
    Raises CompatibilityError for what cannot be kept exactly.
    """
    from loraprobe.extensions.files import converting
    from loraprobe.session import Session

    outcome = converting.convert(
        [adapter],
        Session.of_call(options),
        base=base,
        like=like,
        portable=portable,
        keep_energy=keep_energy,
        to=to,
    )
    return cast("Converted", outcome.made)


@takes()
def save_full_model(merged: Merged, directory: str | Path, overwrite: bool = False) -> float:
    """Writes the base with a merge added to its weights; returns the share that rounding changes.

    merged: by `merge(..., base=DIR)`. Raises OutputError if the directory cannot be written,
    CompatibilityError or BaseError for what the base cannot hold.
    """
    from loraprobe.extensions.files.full_model import save_full_model as save

    return save(merged, directory, overwrite)


@takes()
def verify(
    directory: str | Path,
    sources: Sequence[str | Path] = (),
    base: str | Path | None = None,
    of: Sequence[str | Path] = (),
    weights: Sequence[float] | None = None,
) -> Verification:
    """Checks that a merged or routed directory is what its card says, or what `of` makes.

    sources, base: the places of the adapters, of the files of prompts from which a router learned,
    and of the base that it was made of, if they moved. of: adapters of which any tool made the
    directory; its card is not read then, and `contents` of the result says how much of each is in
    it. weights: those that they should have; without them 1 each, or 1/n each.
    `passed` of the result is None where it cannot be told, such as for a source that is not found.
    Raises AdapterError if the directory was not made by loraprobe and `of` is not given.
    """
    from loraprobe.extensions.files import verifying

    place, given = None if base is None else str(base), None if weights is None else tuple(weights)
    return verifying.verify(directory, [*map(str, sources)], place, [*map(str, of)], given)
