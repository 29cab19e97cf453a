"""The Python interface as a person meets it: repr, notebooks, dir, docstrings."""

import itertools
import re
import subprocess
import sys

import making
import pytest

import loraprobe
from loraprobe import errors
from loraprobe.demo import shipped_world
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.report.answer import answer
from loraprobe.session import Session


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """The audit of a few questions of the shipped world."""
    chosen = shipped_world().scenario("skill-and-facts")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    session = Session(Options(limit=10, threads=1), state=tmp_path_factory.mktemp("state"))
    base = shipped_world().base
    return commands.merge_and_eval(refs, session, base=base, tasks=chosen.tasks).audit


def pair():
    return [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]


def test_an_audit_shows_its_answer(audit):
    for one in (audit, loraprobe.inspect(pair()), loraprobe.inspect(pair()[:1])):
        lines = repr(one).splitlines()
        said = list(itertools.takewhile(lambda line: not line.startswith("  next"), lines))
        assert 1 <= len(said) <= 12  # before a command, which is whole
        assert all(len(line) <= 80 for line in lines if "/" not in line)
        assert answer(one).headline.split()[0] in lines[0]


def test_a_notebook_shows_the_first_sections_of_the_page(audit):
    shown = audit._repr_html_()
    assert answer(audit).headline.split(":")[0] in shown
    assert shown.count("<h2") == 3 and "<svg" in shown
    style = shown.partition("<style>")[2].partition("</style>")[0]
    named = set(re.findall(r"var\((--[a-z]+)", shown))
    assert "--line" in named  # of figures: without it intervals are not drawn
    assert all(f"{name}: #" in style for name in named)
    assert "display: grid" in style and '<div class="report">' in shown  # labels beside texts
    outer, depth = [""], 0  # selectors outside all braces: nothing else of a notebook changes
    for char in re.sub(r"/\*.*?\*/", "", style):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0 and char != "}":
            outer[-1] += char
        elif depth == 1 and char == "{":
            outer.append("")
    assert {one.strip().partition(" ")[0] for one in outer} <= {".report.report", "@media", ""}
    assert "<html" not in shown and "<nav" not in shown and len(shown) < 500_000
    assert loraprobe.inspect(pair())._repr_html_().count("<section") >= 1


def test_dir_holds_the_public_names_only():
    assert dir(loraprobe) == sorted(loraprobe.__all__)
    code = "import sys, loraprobe; assert not {'torch', 'typer', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_may_be_any_sequence_or_the_text_of_the_command_line():
    import numpy

    for weights in ([0.7, 0.3], (0.7, 0.3), numpy.array([0.7, 0.3]), "0.7,0.3"):
        found = loraprobe.merge(pair(), "task_arithmetic", weights=weights, rank="2")
        assert found.weights == (0.7, 0.3) and found.adapter.rank_range == (2, 2)


@pytest.mark.parametrize(
    ("function", "keyword", "near"),
    [
        (loraprobe.merge, "metod", "'method'"),
        (loraprobe.merge, "methods", "'method'"),
        (loraprobe.compose, "routers", "'router'"),
        (loraprobe.inspect, "bse", "'base'"),
        (loraprobe.merge_and_eval, "task", "'tasks'"),
        (loraprobe.merge_and_eval, "method", "'methods'"),
    ],
)
def test_a_keyword_that_a_function_does_not_take_is_named(function, keyword, near):
    with pytest.raises(UsageError, match=f"{keyword!r}: did you mean {near}"):
        function(pair(), **{keyword: "ties"})


@pytest.mark.parametrize("wrong", [None, 3, [None], [3, "a"]])
@pytest.mark.parametrize("function", ["inspect", "merge", "compose", "route"])
def test_what_is_no_adapter_is_one_sentence_about_the_argument(function, wrong):
    given = (making.tiny_llama(),) if function == "route" else ()
    with pytest.raises(UsageError, match="adapters"):
        getattr(loraprobe, function)(*given, wrong)
    with pytest.raises(UsageError, match=r"needs .*adapters"):
        getattr(loraprobe, function)(*given)


def test_what_is_no_task_is_one_sentence_about_the_argument():
    with pytest.raises(UsageError, match="tasks takes"):
        loraprobe.merge_and_eval(pair(), base="nowhere", tasks=[None])
    with pytest.raises(UsageError, match="route needs model"):
        loraprobe.route(None, pair())


def test_options_of_other_commands_are_refused():
    for keyword in ("weights", "routers", "started", "arguments"):
        with pytest.raises(UsageError, match=f"inspect has no option {keyword!r}"):
            loraprobe.inspect(pair(), **{keyword: None})


def test_every_error_is_at_top_level_under_a_plain_name():
    named = [getattr(loraprobe, name) for name in loraprobe.__all__]
    raised = {one for one in named if isinstance(one, type)}
    kinds = {
        one for one in vars(errors).values() if isinstance(one, type) and one.__base__ is not object
    }
    assert raised == {one for one in kinds if issubclass(one, errors.LoraprobeError)}
    assert all(one.__name__.isalpha() for one in raised)


def test_a_missing_task_and_no_adapter_are_sentences():
    with pytest.raises(UsageError, match="tasks=FILE"):
        loraprobe.merge_and_eval(pair())
    for function in (loraprobe.inspect, loraprobe.merge, loraprobe.compose):
        with pytest.raises(UsageError, match="adapter"):
            function([])
