"""Other forms of the same update: what an extension knows about them, and the form of a base.

The core compares and merges modules of one path and one shape. Where implementations of a model
store its weights otherwise, an `AdapterLayout` brings adapters to one form.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from loraprobe.adapters.types import Adapter
from loraprobe.records import Issue
from loraprobe.wiring import extensions

if TYPE_CHECKING:
    from loraprobe.options import Options

Shapes = Mapping[str, tuple[int, int] | None]  # path in the base -> (out, in), None if packed


@dataclass(frozen=True)
class BaseForm:
    """What is known of the base, which is nothing where none was given.

    shapes: of its modules. config: its config.json. model: gives its modules and parameters, which
    may be on the meta device; None where they cannot be made.
    """

    shapes: Shapes = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module | None] = lambda: None


class AdapterLayout(ABC):
    """A form of updates that other implementations of a base store in another form."""

    @abstractmethod
    def align(
        self, adapters: Sequence[Adapter], base: BaseForm, options: Options | None
    ) -> tuple[Sequence[Adapter], Sequence[Issue]]:
        """The adapters in the form of the base, without a base in one form where they differ, and
        an error for each reason why that is impossible.

        The update is the same exactly. An adapter that is changed gets a note; others are returned
        as they are, and so is what cannot be changed. Called again with its own result, it changes
        nothing. options: of the command, where it reads its adapters. Raises UsageError for those
        that do not go with them.
        """


def in_one_layout(
    adapters: Sequence[Adapter], base: BaseForm, options: Options | None = None
) -> tuple[list[Adapter], list[Issue]]:
    """The adapters in the form of the base, by all layouts of this installation, and the errors."""
    issues: list[Issue] = []
    for name in (name for one in extensions() for name in one.layouts):
        layout: AdapterLayout = pkgutil.resolve_name(name)()
        adapters, refused = layout.align(adapters, base, options)
        issues += refused
    return list(adapters), issues
