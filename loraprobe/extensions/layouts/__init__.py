"""Layouts: adapters in other forms than the base's are brought to it, exactly.

fused   projections that one layer computes together, and single ones
orders  stacked experts in the order of inputs and outputs of older versions of peft
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from loraprobe.extension import Extension
from loraprobe.options import AddedOptions, option


@dataclass(frozen=True)
class LayoutOptions(AddedOptions):
    """How a file is stored, where neither it nor the base tells."""

    title: ClassVar[str] = "Layouts"

    expert_layout: Literal["none", "new", "old"] = option(
        "none",
        "ORDER",
        "What A of stacked experts reads where the base's shapes do not tell: new: the inputs, "
        "as peft 0.19.1 and later store it; old: the outputs.",
        affects={"composition"},
        commands=("convert",),
    )


class Layouts(Extension):
    """Knows fused projections, and experts as older versions of peft stored them."""

    options = LayoutOptions
    layouts = (
        "loraprobe.extensions.layouts.orders.ExpertOrder",
        "loraprobe.extensions.layouts.fused.FusedProjections",
    )
    codes = Path(__file__).with_name("codes.toml")


EXTENSION = Layouts()
