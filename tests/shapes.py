"""Enables the run-time check of the annotated shapes of the numerical core.

Only tests pay for it. It has to happen before the first import of those modules, so conftest.py
does it at its top.
"""

from __future__ import annotations

from jaxtyping import install_import_hook

CHECKED = (
    "loraprobe.lora.lowrank",
    "loraprobe.lora.gram_batches",
    "loraprobe.lora.grams",
    "loraprobe.lora.spaces",
    "loraprobe.merging",
    "loraprobe.routing",
)

# An int may stand for a float, as type checkers have it.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def check_shapes() -> None:
    """Wraps the functions and dataclasses of each module of CHECKED when it is imported."""
    install_import_hook(CHECKED, CHECKER)
