"""Records of the verdict: the decision, the evidence, the reasons, and what to do.

The command to run next is a value, which is written for a shell, in Python or into JSON.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loraprobe.defaults import MARGIN
from loraprobe.records.measurements import Interval, ItemPart

Decision = Literal["likely", "unlikely", "inconclusive", "incompatible"]
EvidenceLevel = Literal["weights", "probes", "base", "pilot", "evaluation"]
# What would tell more than was asked, see `Verdict`.
Missing = Literal[
    "answers",
    "metric",
    "controls",
    "items",
    "guard-items",
    "compositions",
    "chain",
    "rank",
    "wording",
    "harder-items",
    "time",
]
GROUPS = ("task", "lab")  # commands that have commands
_OPTION = re.compile("--[a-z][a-z-]*|-[a-z]")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]|['"])+""")  # of a shell, quotes included


# ---- the next command ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command of loraprobe, or lines of Python where no command does it.

    `verb` is the command's name, such as "merge" or "task sample", "" where there is nothing to
    run. "python" and "shell" stand for `text`, in which {0}, {1} ... are the places of `adapters`
    where there are any. Each of `options` is a flag with its value, if it takes one. `str` gives
    the text.
    """

    verb: str
    adapters: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.verb)

    def __str__(self) -> str:
        return " ".join(self.pieces)

    @property
    def in_python(self) -> bool:
        """Whether it is Python."""
        return self.verb == "python"

    @property
    def pieces(self) -> list[str]:
        """The words of a shell's command, each option together with its value; Python whole."""
        if self.text or not self.verb:
            spelled = _loaded if self.in_python else _quoted
            places = map(spelled, self.adapters)
            text = self.text.format(*places) if self.adapters else self.text
            return [text] if self.in_python else _grouped(text)
        given = (
            ("loraprobe",),
            self.verb.split(),
            *((one,) for one in self.adapters),
            *self.options,
        )
        return [shlex.join(words) for words in given]

    @property
    def words(self) -> list[str]:
        """All words but the verb, such as names of files."""
        return [*self.adapters, *(word for option in self.options for word in option)]

    def placed(self, places: Mapping[str, Sequence[str]]) -> Command:
        """The same with references and files where their user has them.

        places: a published name -> what was typed, in order where several have this name.
        """
        left = {name: list(typed) for name, typed in places.items()}

        def place(word: str) -> str:
            typed = left.get(word) or [word]
            return typed.pop(0) if len(typed) > 1 else typed[0]

        adapters = tuple(map(place, self.adapters))
        return replace(
            self, adapters=adapters, options=tuple(tuple(map(place, one)) for one in self.options)
        )

    @classmethod
    def read(cls, text: str) -> Command:
        """The command that a JSON document has as this text."""
        try:
            words = shlex.split(text)
        except ValueError:  # a quote that is not closed
            words = []
        if words[:1] != ["loraprobe"] or len(words) < 2:
            kind = "shell" if words and "(" not in text else "python"  # which has a call
            return cls(kind if text else "", text=text)
        adapters, options = list[str](), list[tuple[str, ...]]()
        verb = " ".join(words[1 : 3 if words[1] in GROUPS else 2])
        for word in words[1 + len(verb.split()) :]:
            if _OPTION.fullmatch(word):  # "-0.5,1" is the value of the option before it
                options.append((word,))
            elif options:
                options[-1] += (word,)
            else:
                adapters.append(word)
        return cls(verb, tuple(adapters), tuple(options))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.read, core_schema.str_schema())


def _quoted(reference: str) -> str:
    """The place of an adapter as a word of a shell."""
    return shlex.quote(reference.partition("=")[2] or reference)


def _grouped(text: str) -> list[str]:
    """The words of a line for a shell, each option together with its values."""
    pieces = list[str]()
    for word in _WORD.findall(text):
        if word.startswith("-") or not pieces:
            pieces.append(word)
        else:
            pieces[-1] += f" {word}"
    return pieces


NOTHING = Command("")  # there is nothing to run


def adapter_name(reference: str) -> str:
    """The name of the adapter that a command line gives as NAME=REF or REF."""
    name, named, _ = reference.partition("=")
    return name if named else reference.rstrip("/").rpartition("/")[2]


def _loaded(reference: str) -> str:
    """What loads an adapter as arguments of peft: its place, and its part of the Hub."""
    whole = reference.partition("=")[2] or reference
    place, _, folder = whole.partition(":")
    repository, _, revision = place.partition("@")
    if "/" not in repository:  # a local directory, by its last part
        return repr(whole)
    parts = {"revision": revision, "subfolder": folder}
    return ", ".join(
        [repr(repository), *(f"{key}={part!r}" for key, part in parts.items() if part)]
    )


# ---- the verdict ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict: what was measured, against which threshold, and whose it is.

    A "decisive" reason carries the decision, a "warning" limits it, "info" is neither.
    """

    code: str
    message: str
    value: float | None = None
    threshold: float | None = None
    source: str = ""
    severity: Literal["decisive", "warning", "info"] = "info"


@dataclass(frozen=True)
class DecisiveGain:
    """The gain that the decision is about: one composition against the best of base and singles.

    `form` is the form of the question, "question" or "steps"; `ci95` covers the choice of the best
    among systems. Of several tasks the difference is the mean. `probability` is that this gain
    exceeds the margin and, of several tasks, that every specialist's skill is kept; None where the
    calibration says nothing about it.
    """

    system: str
    form: ItemPart
    against: str
    difference: float
    ci95: Interval
    n: int
    probability: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The decision, the kind of evidence for it, its reasons, and what to do.

    `action` is `merge`, `route`, `step-by-step`, `chain`, `use-single:NAME`, `use-base`,
    `switch-adapters`, `train-target-adapter`, `gather-evidence` or `fix`; `composes` says that it
    uses `system`, a merge or a router that was measured. `probability` is that of this very
    decision, for a share `prior` of compositions that gain; it is None where the calibration says
    nothing about it. `margin` is the gain that was asked for. `next` is the command to run next, a
    text in JSON, in which local directories have their names. The first of `reasons` changes most
    for the reader.

    `missing` is what would tell more: "answers" where no system is shown to answer more than
    guessing, the "metric" that the gold answers need, "controls", more
    "items", more "guard-items", "compositions" (or a "chain" and these) where none was asked, a
    higher "rank" of the compositions, another "wording" of what counts as right, "harder-items"
    where nothing is left to gain on these, more "time" where a budget ended the run; None where it
    is none of them.
    """

    decision: Decision
    evidence: EvidenceLevel
    reasons: tuple[Reason, ...] = ()
    system: str | None = None
    action: str = "gather-evidence"
    composes: bool = False
    missing: Missing | None = None
    probability: float | None = None
    prior: float | None = None
    gain: DecisiveGain | None = None
    margin: float = MARGIN
    next: Command = NOTHING
    by_task: Mapping[str, str] = field(default_factory=dict)

    @property
    def only_measured(self) -> bool:
        """Whether no merge and no router was asked, and what was asked needs no more evidence."""
        return self.missing == "compositions"
