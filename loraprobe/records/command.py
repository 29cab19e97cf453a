"""A command to run next, which is a value: it is written for a shell, in Python or into JSON."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe.records.plain import WrittenAsText

GROUPS = ("task", "lab")  # commands that have commands
_OPTION = re.compile("--[a-z][a-z-]*|-[a-z]")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]|['"])+""")  # of a shell, quotes included


@dataclass(frozen=True)
class Command(WrittenAsText):
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
            kind = "shell" if words and not _is_python(text) else "python"
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


def _is_python(text: str) -> bool:
    """Whether a text can be lines of Python, which words with blanks between them cannot."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


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
LOAD_ADAPTER = "PeftModel.from_pretrained(base, {0})"  # a line of Python, of one place


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
