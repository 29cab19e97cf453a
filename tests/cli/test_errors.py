"""Errors: a document with --json, one sentence beside it, and Python's keywords the same way."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import making
import pytest

import loraprobe
from loraprobe.errors import CompatibilityError, LoraprobeError, UsageError
from loraprobe.keywords import takes

KINDS: list[type[LoraprobeError]] = [LoraprobeError]
for kind in KINDS:
    KINDS += kind.__subclasses__()


def document(*arguments: object, code: int = 2) -> dict[str, str]:
    """The error that a call prints on standard output, with one sentence on standard error."""
    result = making.call(*arguments, "--json", catch_exceptions=False)
    assert result.exit_code == code
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"code", "message", "cure"}
    assert result.stderr.strip() == f"error: {error['message']}"
    return error


@pytest.mark.parametrize(
    ("arguments", "code", "cure"),
    [
        (("inspect", "./nowhere"), "reference", "check the path."),
        (("inspect", "x", "--jsn"), "usage", "did you mean --json?"),
        (("inspekt", "x"), "usage", "did you mean 'inspect'?"),
        (("inspect",), "usage", "see loraprobe inspect --help."),
        (("merge", "A", "B", "-o", "OUT", "--method", "tise"), "usage", "did you mean 'ties'?"),
        (("inspect", "A", "--limit", "0"), "usage", ""),
        (("merge", "A", "B", "-o", "OUT", "--limit", "2"), "usage", "add one"),
        (("inspect", "A", "--metric", "x"), "usage", "exact_match"),
        (("merge", "A", "OTHER", "-o", "OUT"), "incompatible", "--allow base-mismatch"),
        (("merge-and-eval", "A", "B", "--task", "no.jsonl"), "task", "check the path."),
        (("demo", "--scenario", "paradise"), "world", ""),
    ],
)
def test_an_error_is_a_document_where_json_is_asked_for(tmp_path, arguments, code, cure):
    a, b = making.saved_pair(tmp_path)
    making.random_adapter("c", base_model="other/base", seed=9).save(tmp_path / "c")
    places = {"A": a, "B": b, "OTHER": tmp_path / "c", "OUT": tmp_path / "out"}
    error = document(*(places.get(argument, argument) for argument in arguments))
    assert error["code"] == code
    assert error["cure"] and cure in error["cure"]
    assert error["cure"].removeprefix("give ") in error["message"]


def test_without_json_standard_output_stays_empty():
    result = making.call("inspect", "./nowhere")
    assert result.exit_code == 2 and result.stdout == ""


def test_an_interruption_and_a_defect_have_codes_of_their_own(monkeypatch):
    def ends_in(error: BaseException):
        def load(*_: object) -> None:
            raise error

        monkeypatch.setattr("loraprobe.hub.load_all", load)

    ends_in(KeyboardInterrupt())
    assert document("inspect", "x", code=130)["code"] == "interrupted"
    ends_in(ValueError("odd"))
    assert document("inspect", "x")["code"] == "defect"
    ends_in(OSError(28, "No space left on device"))
    assert document("inspect", "x")["code"] == "system"
    ends_in(MemoryError())
    assert document("inspect", "x")["code"] == "out-of-memory"


def test_every_error_says_what_to_do():
    """What no message says, the kind of error does, and the sentence then ends in it."""
    for kind in KINDS:
        error = kind("Something is odd.")
        assert error.cure and error.cure in str(error) and str(error).startswith("Something is odd")
        assert kind("x must be a number, not 'y'.").cure == "give a number"
        assert str(kind("It is odd; mend it.")) == "It is odd; mend it."
        again = pickle.loads(pickle.dumps(kind("It is odd.", "Mend it.")))
        assert again.cure == "Mend it." and str(again) == "It is odd."


def test_every_kind_of_error_has_its_own_code():
    own = [kind for kind in KINDS if kind.__module__ == "loraprobe.errors"]
    assert len({kind.code for kind in own}) == len(own) > 10


def test_a_command_line_that_cannot_be_imported_is_one_sentence_and_a_document():
    code = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['loraprobe', 'methods', '--json'];"
        "from loraprobe.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "typer" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "installation"


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"margn": 0.1}, "did you mean 'margin'"),
        ({"limit": "three"}, "^limit takes a whole number, not 'three'"),
        ({"limit": True}, "^limit takes a whole number"),
        ({"margin": "wide"}, "^margin takes a number"),
        ({"per_module": "yes"}, "^per_module takes True or False"),
        ({"batch_size": "many"}, "^batch_size takes auto or a positive whole number"),
        ({"batch_size": 2.5}, "^batch_size takes a whole number or auto"),
        ({"allow": "base-mismatsch"}, "did you mean 'base-mismatch'"),
        ({"diagnostics": "karma"}, "'karma'"),
        ({"chat_template": "of"}, "^chat_template must be one of auto, on, off"),
        ({"tasks": "task.jsonl"}, 'add base="DIR" or base="auto"'),
    ],
)
def test_python_keywords_are_refused_in_words_of_python(keywords, said):
    pair = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]
    with pytest.raises(UsageError, match=said):
        loraprobe.inspect(pair, **keywords)


@pytest.mark.parametrize(
    ("message", "shell", "python"),
    [
        ("Give --metric=contains.", "--metric contains", 'metric=["contains"]'),
        ("--metric contains it; go.", "--metric contains it", "metric contains it"),
        ("Give --base=DIR (or auto).", "--base DIR (", 'base="DIR" ('),
        ("Use --limit=3, or go.", "--limit 3, or", "limit=3, or"),
        ("Add --run-unsafe-code=True if so.", "--run-unsafe-code if", "run_unsafe_code=True if"),
        ("Add --overwrite.", "--overwrite", "--overwrite"),
        ("--fields=a=b,c=d: go.", "--fields a=b,c=d: go", 'fields={"a": "b", "c": "d"}: go'),
        ("Add --answer-after='# 1'.", "--answer-after '# 1'", 'answer_after=["# 1"]'),
    ],
)
def test_an_error_names_an_option_as_its_reader_writes_it(message, shell, python):
    @takes("inspect")
    def failing(adapters, **options):
        raise UsageError(message)

    assert shell in str(UsageError(message))
    with pytest.raises(UsageError) as found:
        failing([])
    assert python in str(found.value)


def test_python_takes_the_texts_of_the_command_line():
    pair = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]
    one = loraprobe.merge(pair, "task_arithmetic", weights="0.7,0.3", rank="2")
    other = loraprobe.merge(pair, "task_arithmetic", weights=[0.7, 0.3], rank=2)
    assert one.weights == other.weights and one.adapter.rank_range == (2, 2)


def test_errors_in_python_name_its_keywords(tmp_path):
    a, b = (making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1))
    other = replace(b, base_model="owner/other")
    with pytest.raises(CompatibilityError) as found:
        loraprobe.merge([a, other])
    assert 'allow=["base-mismatch"]' in str(found.value) and "--" not in str(found.value)
    assert 'allow=["base-mismatch"]' in found.value.cure
    for wrong, said in (
        (lambda: loraprobe.merge([a, b], "cat"), "task_arithmetic"),
        (lambda: loraprobe.merge([a, b], "svd"), "task_arithmetic with rank=N"),
        (lambda: loraprobe.merge([a, b], weights=[1.0]), "^weights gives 1 number for 2"),
        (lambda: loraprobe.merge_and_eval([a, b]), r'needs tasks=\["FILE"\]'),
        (lambda: loraprobe.compose([a, b], router="centroid"), 'base="DIR" or base="auto"'),
        (lambda: loraprobe.merge_and_eval([a], methods="ties"), r'tasks=\["FILE"\]'),
    ):
        with pytest.raises(UsageError, match=said) as found:
            wrong()
        assert "--" not in str(found.value), found.value


@pytest.mark.parametrize("function", [loraprobe.merge, loraprobe.inspect, loraprobe.merge_and_eval])
def test_adapters_are_a_list(function, tmp_path):
    a, b = (making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1))
    a.save(tmp_path / "a")
    for given in ((a, b), (str(tmp_path / "a"), str(tmp_path / "a")), ([a], b)):
        with pytest.raises(UsageError, match=rf"give {function.__name__}\(\[a, b\]\)"):
            function(*given)


def test_a_merge_of_one_adapter_needs_something_to_change(tmp_path):
    adapter = making.random_adapter("a")
    adapter.save(tmp_path / "a")
    merge = ("merge", tmp_path / "a", "-o", tmp_path / "out")
    result = making.call(*merge)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "--weights, --subtract, --rank or --dtype" in result.stderr
    for change in (["--weights", "-1", "--method", "task_arithmetic"], ["--rank", 2]):
        assert making.call(*merge, *change, "--overwrite").exit_code == 0
    with pytest.raises(UsageError, match="by weights, subtract, rank or dtype"):
        loraprobe.merge([adapter])
    assert loraprobe.merge([adapter], "sum", rank=2).adapter.rank_range == (2, 2)
