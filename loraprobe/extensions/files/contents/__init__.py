"""What is in a merge that any tool wrote: its change of the base, explained by adapters.

A full model W is compared with its base W0 tensor by tensor. The change W - W0 is a sum of the
changes of the adapters with the weights that fit it best (least squares), and a rest. What each
adapter makes of a tensor is told by the code that writes full models, so experts, DoRA, embeddings
and trained biases are compared like plain LoRA. A merged adapter is compared in its factors.

Rounding to the dtype of the file is no fault. W0 + sum w_i dW_i is rounded as the file was, and
the rest counts only beyond that (a few times its energy, because tools round several times).
Rounding also biases the weights: an entry of dW below half a spacing of W0 vanishes. So the weights
are those for which the *rounded* sum has the least-squares weights that the file has (indirect
inference: Gourieroux, Monfort & Renault 1993, J. Appl. Econometrics 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.base import Base, open_base
from loraprobe.errors import UsageError
from loraprobe.extensions.files.contents.factors import of_adapter
from loraprobe.extensions.files.contents.model import FullModel
from loraprobe.extensions.files.contents.records import Contents
from loraprobe.records import Progress


def contents_of(
    place: Path,
    base: Base | None,
    adapters: Sequence[Adapter],
    wanted: tuple[float, ...] | None = None,
    progress: Progress | None = None,
) -> Contents:
    """What of some adapters is in a directory that any tool wrote, a full model or an adapter.

    base: needed for a full model. wanted: the weight that each adapter should have.
    Raises UsageError where something is not given, LoraprobeError for what cannot be read.
    """
    if wanted is not None and len(wanted) != len(adapters):
        raise UsageError(
            f"--weights has {len(wanted)} numbers for {len(adapters)} adapters; give one for each "
            "--of."
        )
    names = tuple(adapter.name for adapter in adapters)
    ranks = tuple(adapter.rank_range[1] for adapter in adapters)
    if (place / CONFIG).is_file():
        found = of_adapter(hub.load(str(place)), base, adapters, progress)
    elif base is None:
        raise UsageError(f"{place} is a full model, and its base is not given; add --base=DIR.")
    else:
        found = FullModel(open_base(place), base, adapters, wanted).read(progress)
    scalings = tuple((adapter.scaling_range or (1.0, 1.0))[1] for adapter in adapters)
    return replace(found, adapters=names, wanted=wanted, ranks=ranks, scalings=scalings)
