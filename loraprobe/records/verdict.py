"""Records of the verdict: the decision, the evidence, the reasons, and what to do.

The command to run next is a value, which is written for a shell, in Python or into JSON.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loraprobe.defaults import MARGIN
from loraprobe.records.measurements import ChainHop, Interval, ItemPart

Decision = Literal["likely", "unlikely", "inconclusive", "incompatible"]
EvidenceLevel = Literal["weights", "probes", "base", "pilot", "evaluation"]
# What would tell more than was asked, see `Verdict`.
Missing = Literal[
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
PROGRAM = "# base, tokenizer: the loaded base model and its tokenizer"
_OPTION = re.compile("--[a-z][a-z-]*|-[a-z]")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"]|['"])+""")  # of a shell, quotes included
ALONE = "base"  # the name of the base where it answers a hop


# ---- the next command ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command of loraprobe, or lines of Python where no command does it.

    `verb` is the command's name, "" where there is nothing to run. Of Python it is "load" (an
    adapter, by peft), "load-model" (a full model), "switch" (to an adapter that is loaded),
    "restore" (a saved composition) or "ask" (`hops`, one after the other). "python" and "shell"
    stand for `text`, in which a shell's may have {0}, {1} ... for the places of `adapters`. Each of
    `options` is a flag with its value, if it takes one. `str` gives the text.
    """

    verb: str
    adapters: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()
    hops: tuple[ChainHop, ...] = ()
    most_tokens: int = 0  # of an answer to a hop
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.verb)

    def __str__(self) -> str:
        return " ".join(self.pieces)

    @property
    def in_python(self) -> bool:
        """Whether it is Python."""
        return self.verb in _WRITERS or self.verb == "python"

    @property
    def pieces(self) -> list[str]:
        """The words of a shell's command, each option together with its value; Python whole."""
        if self.verb in _WRITERS:
            return [_WRITERS[self.verb](self)]
        if self.verb == "shell":
            named = (shlex.quote(one.partition("=")[2] or one) for one in self.adapters)
            return _grouped(self.text.format(*named) if self.adapters else self.text)
        if self.text or not self.verb:
            return [self.text]
        given = (("loraprobe",), (self.verb,), *((one,) for one in self.adapters), *self.options)
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
        for word in words[2:]:
            if _OPTION.fullmatch(word):  # "-0.5,1" is the value of the option before it
                options.append((word,))
            elif options:
                options[-1] += (word,)
            else:
                adapters.append(word)
        return cls(words[1], tuple(adapters), tuple(options))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.read, core_schema.str_schema())


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


def _load(command: Command) -> str:
    return f"PeftModel.from_pretrained(base, {_loaded(command.adapters[0])})"


def _load_model(command: Command) -> str:
    return f"AutoModelForCausalLM.from_pretrained({command.adapters[0]!r})"


def _switch(command: Command) -> str:
    return f"model.set_adapter({adapter_name(command.adapters[0])!r})"


def _restore(command: Command) -> str:
    return f"loraprobe.load_composition({command.adapters[0]!r}).into(model)"


def _loaded(reference: str, *named: str) -> str:
    """What loads an adapter as arguments of peft: its place, `named`, and its part of the Hub."""
    whole = reference.partition("=")[2] or reference
    place, _, folder = whole.partition(":")
    repository, _, revision = place.partition("@")
    if "/" not in repository:  # a local directory, by its last part
        return ", ".join([repr(whole), *named])
    parts = {"revision": revision, "subfolder": folder}
    return ", ".join(
        [repr(repository), *named, *(f"{key}={part!r}" for key, part in parts.items() if part)]
    )


def _ask(command: Command) -> str:
    """A program that asks the hops of one question.

    It writes and reads an answer as the evaluation does: greedily, and of the text the first line
    that is not blank, without punctuation at its end.
    """
    hops = command.hops
    names = [name for name in dict.fromkeys(hop.adapter for hop in hops) if name != ALONE]
    references = {adapter_name(one): one for one in command.adapters}
    known = {name: repr(name.replace(".", "_")) for name in names}  # peft takes no dot
    lines = [PROGRAM, "from peft import PeftModel" if names else "model = base"]
    for at, name in enumerate(names):
        call = "model.load_adapter(" if at else "model = PeftModel.from_pretrained(base, "
        lines.append(f"{call}{_loaded(references.get(name, name), known[name])})")
    turns = "[{'role': 'user', 'content': prompt}], add_generation_prompt=True, return_dict=True"
    encode = f"tokenizer.apply_chat_template({turns}" if hops[0].chat else "tokenizer(prompt"
    greedy = f"max_new_tokens={command.most_tokens}, do_sample=False, repetition_penalty=1.0"
    lines += [
        "def ask(prompt):",
        f"    ids = {encode}, return_tensors='pt').to(model.device)",
        f"    out = model.generate(**ids, {greedy})[0]",
        "    text = tokenizer.decode(out[ids['input_ids'].shape[1]:], skip_special_tokens=True)",
        "    line = text.strip().split('\\n')[0]",
        "    return line.rstrip(' .!?,;') or line",
    ]
    for hop in hops:
        earlier = [k for k in range(1, hop.hop) if f"{{{k}}}" in hop.prompt]
        filled = "".join(f".replace('{{{k}}}', answer{k})" for k in earlier)
        asked = f"answer{hop.hop} = ask({hop.prompt!r}{filled})"
        if hop.adapter in known:
            lines += [f"model.set_adapter({known[hop.adapter]})", asked]
        else:
            lines += ["with model.disable_adapter():", f"    {asked}"] if names else [asked]
    return "\n".join(lines)


_WRITERS: Mapping[str, Callable[[Command], str]] = {
    "load": _load,
    "load-model": _load_model,
    "switch": _switch,
    "restore": _restore,
    "ask": _ask,
}


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

    `missing` is what would tell more: the "metric" that the gold answers need, "controls", more
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

    @property
    def answers_without_composing(self) -> bool:
        """Whether no merge and no router was asked, and what was asked says what to use."""
        return self.missing == "compositions" and self.action != "gather-evidence"
