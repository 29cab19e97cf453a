"""The table of options: what every keyword of Python and every option means, whoever takes it."""

import inspect
import re
from typing import Any

import pytest

import loraprobe
from loraprobe.errors import UsageError

FUNCTIONS = [n for n in loraprobe.__all__ if inspect.isfunction(getattr(loraprobe, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_none_is_what_is_not_given(name, monkeypatch):
    """For every keyword of every public function; what it needs cannot be None."""
    function = getattr(loraprobe, name)
    inner = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))["function"]
    monkeypatch.setattr(inner, "cell_contents", lambda **given: given)
    own = inspect.signature(function).parameters
    needed: dict[str, Any] = {
        key: "x" for key, one in own.items() if one.default is one.empty and key != "options"
    }
    listed = inspect.getdoc(function).partition("\noptions: ")[2].partition("(docs")[0]
    keywords = {*own, *re.findall(r"\w+", listed)} - {"options", *needed}
    assert ("options" in own) == (len(keywords) > 5)
    for keyword in keywords:
        assert function(**needed, **{keyword: None}) == needed, keyword
    placed = [one for one in own.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert function(*needed.values(), *[None] * (len(placed) - len(needed))) == needed
    for keyword in needed:
        with pytest.raises(UsageError, match=keyword):
            function(**{**needed, keyword: None})
