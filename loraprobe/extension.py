"""What an extension may add: options of commands, and who asks the base.

The module of an extension has an instance of a class derived from `Extension`, under the name
EXTENSION, and imports what is heavy in its methods. The core asks every extension and knows none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

from loraprobe import wiring
from loraprobe.options import AddedOptions

if TYPE_CHECKING:
    from loraprobe.session import Executor, Session


class Extension:
    """An extension that adds nothing, from which others are derived.

    options: a frozen dataclass of options, which stand in a group of their own in help and
    documentation; `session.options.of_extension(options)` has their values.
    """

    options: ClassVar[type[AddedOptions] | None] = None

    def executor(self, session: Session) -> AbstractContextManager[Executor] | None:
        """Who asks the base while the context lasts; None where the options name nobody.

        Raises UsageError where that cannot be used.
        """
        return None


def installed() -> tuple[Extension, ...]:
    """The extensions of this installation."""
    return wiring.extensions()
