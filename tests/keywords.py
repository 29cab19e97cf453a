"""Whether a Python function takes the options of its command, and None as what is not given."""

import inspect
import re
from types import ModuleType

import pytest

import loraprobe
from loraprobe.cli import function_of
from loraprobe.options import added_to, hints, named_options


def check_keywords(name: str, command: str) -> None:
    """Asserts that a function lists the options of its command, without those that its own
    parameters replace; the command line keeps results in the cache."""
    function = getattr(loraprobe, name)
    own = inspect.signature(function).parameters.keys()
    taken = inspect.signature(function_of(command)).parameters.keys()
    taken = taken | ({*added_to(command)} & {*named_options()})
    options = {key for key in taken & hints().keys() if not {key, key.removesuffix("s")} & own}
    options |= {"resume", "state"} if "resume" in taken else set()
    named = inspect.getdoc(function).partition("\noptions: ")[2].partition("(docs")[0].strip()
    assert re.split(r",\s+", named) == sorted(options)


class Seen(Exception):
    """What a function hands to its stages."""


def check_none(name: str, stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that None is not given, for every keyword of a function, and for the method and
    weights in their places. stages: the module with what it calls."""

    def handed(*given):
        def seen(adapters, session, **inputs):
            raise Seen(session.options, session.resume, session.state, inputs)

        monkeypatch.setattr(stages, name, seen)
        with pytest.raises(Seen) as found:
            function(["a", "b"], *given[:-1], **given[-1])
        return found.value.args

    function = getattr(loraprobe, name)
    plain = handed({})
    listed = inspect.getdoc(function).partition("\noptions: ")[2].partition("(docs")[0]
    own = [key for key in inspect.signature(function).parameters if key != "options"][1:]
    keywords = [*own, *re.findall(r"\w+", listed)]
    assert len(keywords) > 5
    for keyword in keywords:
        assert handed({keyword: None}) == plain, keyword
    if name == "merge":
        assert handed(None, {}) == plain
