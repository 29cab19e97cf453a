"""Merge methods and routers beyond the common ones: TSV, Iso-C and Iso-CTS, SpectR and LAG.

They are members of the registries of the core, in `--method`, `--router`, `loraprobe methods` and
the law tests by being there.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from loraprobe.extension import Extension


class Methods(Extension):
    """Adds members to the registries of merge methods and routers."""

    members: ClassVar[Mapping[str, Sequence[str]]] = {
        "merge method": (f"{__name__}.spectral",),
        "router": (f"{__name__}.spectrum",),
    }


EXTENSION = Methods()
