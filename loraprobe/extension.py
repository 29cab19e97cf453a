"""What an extension may add: options of commands, who asks the base, what a verdict tells.

The module of an extension has an instance of a class derived from `Extension`, under the name
EXTENSION, and imports what is heavy in its methods. The core asks every extension and knows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraprobe import wiring
from loraprobe.options import AddedOptions, Options

if TYPE_CHECKING:
    from loraprobe.session import Executor, Session
    from loraprobe.verdict import Annotator


class Extension:
    """An extension that adds nothing, from which others are derived.

    options: a frozen dataclass of options, which stand in a group of their own in help and
    documentation; `session.options.of_extension(options)` has their values. codes: a file such as
    loraprobe/verdict/codes.toml with the reasons that its annotators give.
    """

    options: ClassVar[type[AddedOptions] | None] = None
    codes: ClassVar[Path | None] = None

    def executor(self, session: Session) -> AbstractContextManager[Executor] | None:
        """Who asks the base while the context lasts; None where the options name nobody.

        Raises UsageError where that cannot be used.
        """
        return None

    def annotators(self, options: Options) -> Sequence[Annotator]:
        """What tells something beside the decision of a verdict, which it does not change."""
        return ()


def installed() -> tuple[Extension, ...]:
    """The extensions of this installation."""
    return wiring.extensions()
