"""Switches on the run-time check of the shapes that the numerical core is annotated with.

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
    """From here on, importing a module of CHECKED wraps its functions and dataclasses."""
    install_import_hook(CHECKED, CHECKER)
