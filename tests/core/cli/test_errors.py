"""Errors: a document with --json, one sentence beside it, and Python's keywords the same way."""

import json
import pickle
import shlex
import shutil
import subprocess
import sys
from unittest import mock

import making
import pytest
import torch
from safetensors.torch import load_file, save_file

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.errors import LoraprobeError, UsageError

KINDS: list[type[LoraprobeError]] = [LoraprobeError]
for kind in KINDS:
    KINDS += kind.__subclasses__()


def document(*arguments: object, code: int = 2) -> dict[str, str]:
    """The error that a call prints on standard output, with one sentence on standard error."""
    result = making.call(*arguments, "--json", catch_exceptions=False)
    assert result.exit_code == code
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"code", "message", "cure"}
    said = result.stderr.strip()
    assert said.startswith("error: ") and said.endswith(error["message"]) and "\n" not in said
    return error


WEIGHTS = "adapter_model.safetensors"
WRONG = [  # a call, its code, what the sentence says, and perhaps the cure
    ("inspect ./nowhere", "reference", "nowhere", "check the path."),
    ("inspect nowhere", "reference", "nowhere"),
    ("inspect owner/name 'a b'", "reference", "a b"),
    ("inspect a/adapter_model.safetensors", "reference", "directory"),
    ("inspect base a", "adapter", "whole model", "--base"),
    ("inspect x --jsn", "usage", "--jsn", "did you mean --json?"),
    ("inspect x --nope", "usage", "--nope", "see loraprobe inspect --help."),
    ("inspekt x", "usage", "inspekt", "did you mean 'inspect'?"),
    ("inspect", "usage", "", "see loraprobe inspect --help."),
    ("inspect a --limit 0", "usage", "--limit must be at least 1, not 0",
        "see loraprobe inspect --help."),
    ("inspect a b --seed 99999999999999999999", "usage", "--seed must lie"),
    ("inspect a --metric x", "usage", "'x'", "exact_match"),
    ("inspect a --metric acc", "usage", "'acc'", "did you mean exact_match, or choice"),
    ("inspect a --metric answer_loss", "usage", "--margin"),
    ("inspect a b --task x.jsonl", "usage", "--base"),
    ("inspect a b --probe auto", "usage", "--base"),
    ("inspect a b --base ./nowhere", "reference", "nowhere"),
    ("inspect a b --diagnostic karma", "usage", "karma"),
    ("inspect a b --device tpu", "usage", "--device"),
    ("inspect a b --device cuda:99", "usage", "--device"),
    ("inspect a b --dtype float7", "usage", "--dtype"),
    ("merge base a -o out", "adapter", "whole model", "--base"),
    ("merge a c -o out", "incompatible", "", "--allow base-mismatch"),
    ("merge a wide -o out", "incompatible", "shape"),
    ("merge a bare -o out", "adapter", "adapter_model"),
    ("merge a torn -o out", "adapter", "adapter_config.json"),
    ("merge a more -o out", "incompatible", "lm_head"),
    ("merge a -o out", "usage", "only a was given", "give another"),
    ("merge a -o out --weights 0.5", "usage", "only a was given", "task_arithmetic"),
    ("merge a b -o out --limit 3", "usage", "--limit goes with --task", "add one"),
    ("merge a b -o out --method tise", "usage", "tise", "did you mean 'ties'?"),
    ("merge a b -o out --method ties:density=x", "usage", "must be a valid number"),
    ("merge a b -o out --method ties:density=7", "usage", "density"),
    ("merge a b -o out --method ties:densty=0.3", "usage", "did you mean 'density'"),
    ("merge a b -o out --method ties:dense=1", "usage", "density, lambda, variant"),
    ("merge a b -o out --weights 0.5", "usage", "2 adapters"),
    ("merge a b -o out --weights a,b", "usage", "--weights"),
    ("merge a b -o out --weights nan,1", "usage", "finite"),
    ("merge a b -o out --rank 0", "usage", "--rank"),
    ("merge a b -o out --rank many", "usage", "--rank"),
    ("merge a b -o out --space inner", "usage", "'inner': there are full, core and knots"),
    ("merge a b -o out --dtype float7", "usage", "--dtype"),
    ("merge a b -o out --allow foo", "usage", ", such as "),
    ("merge a b -o out --allow base-mismatsch", "usage", "did you mean 'base-mismatch'"),
    ("merge a -o out --balance norms", "usage", "--balance must be one of none, norm"),
    ("merge a -o out --subtract ./nowhere", "reference", "nowhere"),
    ("merge a -o out --subtract a", "usage", "Nothing is left"),
    ("merge a b -o out --weights learning", "usage", "or learn"),
    ("merge a b -o out --weights learn --method task-arithmetic", "usage", "add --base DIR"),
    ("merge spouse city -o out --weights learn --method task-arithmetic --base base", "usage",
        "--task FILE"),
    ("merge spouse city -o out --weights learn --method task-arithmetic --base base --task t.jsonl",
        "task", "too few"),
    ("merge a b -o out --weights learn --base base --task t.jsonl", "usage",
        "uniform has weights of its own"),
    ("merge a b -o out --weights 1,1 --base base --task t.jsonl", "usage", "add --weights learn"),
    ("route a b -o out --router arrows", "usage", "did you mean 'arrow'"),
    ("route a b -o out --weights 1,1", "usage", "arrow gives each token gates of its own"),
    ("route a b -o out --weights learn --router constant", "usage", "add --base DIR"),
    ("route a b -o out --weights 1 --router constant", "usage", "1 number for 2 adapters"),
    ("route a b -o out --router centroid", "usage", "add --base DIR"),
    ("route a b -o out --task t.jsonl", "usage", "add --weights learn"),
    ("route a b -o out --balance no", "usage", "--balance must be one of"),
    ("route a b -o out --router-prompts a", "usage", "NAME=FILE"),
    ("route a b -o out --router-prompts a=t.jsonl", "usage", "learns nothing from prompts"),
    ("route a b -o out --limit 4", "usage", "--limit goes with --task"),
    ("merge-and-eval a b", "usage", "--task"),
    ("merge-and-eval a --task t.jsonl", "usage", "two"),
    ("merge-and-eval a b --task no.jsonl", "task", "no.jsonl", "check the path."),
    ("merge-and-eval a b --task no.jsonl --device tpu", "usage", "--device"),
    ("merge-and-eval a b --sytem uniform", "usage", "--sytem", "did you mean --system?"),
    ("merge-and-eval a b --task t.jsonl --base base --system chian", "usage",
        "did you mean 'chain'"),
    ("merge-and-eval base a --task t.jsonl", "adapter", "whole model", "--base"),
    ("demo --scenario paradise", "world", "paradise", ""),
    ("methods tie", "usage", "did you mean 'ties'"),
    ("methods karcher", "usage", "--balance norm"),
    ("methods learn", "usage", "--weights learn"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Adapters a and b, some that do not go with them, a base and a task."""
    place = tmp_path_factory.mktemp("folder")
    making.saved_pair(place)
    making.random_adapter("c", base_model="other/base", seed=9).save(place / "c")
    making.random_adapter("wide", dict.fromkeys(making.LLAMA, (40, 40))).save(place / "wide")
    for name in ("bare", "torn", "more"):
        shutil.copytree(place / "b", place / name)
    (place / "bare" / WEIGHTS).unlink()
    (place / "torn" / "adapter_config.json").write_text("{")
    tensors = load_file(place / "b" / WEIGHTS)
    tensors["base_model.model.lm_head.weight"] = torch.ones(4, 4)
    save_file(tensors, place / "more" / WEIGHTS)
    (place / "t.jsonl").write_text('{"id": "1", "prompt": "Who?", "answer": "Bo"}\n')
    (place / "base").symlink_to(shipped_world().base)
    for name in ("spouse", "city"):
        (place / name).symlink_to(shipped_world().adapters[name])
    return place


@pytest.mark.parametrize("row", WRONG, ids=lambda row: row[0])
def test_a_wrong_call_is_a_document_where_json_is_asked_for(folder, monkeypatch, row):
    monkeypatch.chdir(folder)
    words, code, said, *cure = row
    error = document(*shlex.split(words))
    assert error["code"] == code and said in error["message"] and len(error["message"]) < 600
    assert error["cure"]
    for one in cure:
        assert one in error["cure"] and error["cure"].removeprefix("give ") in error["message"]
    assert not (folder / "out").exists() and not list(folder.glob(".*"))


def test_an_option_without_its_value_says_where_to_read_on():
    shown = making.call("inspect", "a", "--task")
    assert shown.exit_code == 2 and shown.stderr.endswith("see loraprobe inspect --help.\n")


def test_an_interruption_and_a_defect_have_codes_of_their_own():
    full = OSError(28, "No space left on device")
    errors = {"interrupted": KeyboardInterrupt(), "defect": ValueError("odd"), "system": full}
    for code, error in (errors | {"out-of-memory": MemoryError()}).items():
        with mock.patch("loraprobe.hub.load_all", side_effect=error):
            found = document("inspect", "x", code=130 if code == "interrupted" else 2)
        assert found["code"] == code


def test_python_names_what_it_can_give_and_quotes_commands():
    """An option that a function lacks, and a command to type, stay as they are."""
    error = UsageError("--rank=3 or --task=FILE, not --probe; loraprobe convert x --rank=3 -o DIR.")
    error.in_python("merge", {"--rank": "rank", "--task": "tasks", "--allow": "allow"})
    typed = "loraprobe convert x --rank 3 -o DIR."
    assert str(error) == f"rank=3 or tasks=FILE, not --probe; {typed}" and error.cure == typed
    told = UsageError("Accept it with --allow base-mismatch; give --allow to drop it.")
    told.in_python("merge", error.keywords)
    assert str(told) == "Accept it with allow='base-mismatch'; give allow to drop it."


def test_every_error_says_what_to_do():
    """What no message says, the kind of error does, and the sentence then ends in it."""
    for kind in KINDS:
        error = kind("Something is odd.")
        assert error.cure and error.cure in str(error) and str(error).startswith("Something is odd")
        assert str(kind("It is odd; mend it.")) == "It is odd; mend it."
        again = pickle.loads(pickle.dumps(kind("Add --base=DIR; mend it.")))
        assert again.cure == "mend it." and str(again) == "Add --base DIR; mend it."
        placed = kind("t.jsonl, line 3: it is odd.")  # a place is no cure
        assert placed.cure and placed.cure in str(placed) and "odd" not in placed.cure
        given = kind("It is odd; more.", "Mend --base=DIR.", "[odd]").at("t, line 3")
        parts = "t, line 3: It is odd; more.", "Mend --base DIR."
        assert (given.problem, given.cure) == parts and str(given) == " ".join((*parts, "[odd]"))
        assert kind("It is odd:", "mend it.").problem == kind("It is odd.").problem == "It is odd"


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
        ({"limit": "three"}, r"^limit takes a whole number.*see help\(loraprobe.inspect\)"),
        ({"limit": True}, "^limit takes a whole number"),
        ({"margin": "wide"}, "^margin takes a number"),
        ({"per_module": "yes"}, "^per_module takes True or False"),
        ({"batch_size": "many"}, "^batch_size takes auto or a positive whole number"),
        ({"batch_size": 2.5}, "^batch_size takes a whole number or auto"),
        ({"metric": "answer_loss"}, "^metric='answer_loss' needs margin;"),
        ({"allow": "base-mismatsch"}, "did you mean 'base-mismatch'"),
        ({"diagnostics": "karma"}, "'karma'"),
        ({"chat_template": "of"}, "^chat_template must be one of auto, on, off"),
        ({"tasks": "task.jsonl"}, "^tasks and probe ask .* add base=DIR or base='auto'"),
    ],
)
def test_python_keywords_are_refused_in_words_of_python(keywords, said):
    pair = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab", 1)]
    with pytest.raises(UsageError, match=said):
        loraprobe.inspect(pair, **keywords)
