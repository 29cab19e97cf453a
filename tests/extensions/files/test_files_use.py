"""`convert` and `verify` as Python and people meet them: --config, what is shown."""

import json
import shutil

import making

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.extensions.files.verification import Check, Verification


def shown(thing: object) -> str:
    told = repr(thing)
    assert len(told.splitlines()) <= 15 and len(told) <= 1500
    return " ".join(told.replace("\\", " ").split())


def test_a_file_turns_off_what_is_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    making.random_adapter("one").save(tmp_path / "one")
    (tmp_path / "run.yaml").write_text("ref: one\nportable: false\n")
    shown = making.call("convert", "--config", "run.yaml", "-o", "out", "--json")
    assert "--compact" in json.loads(shown.stdout)["provenance"]["arguments"]


def test_a_verification_ends_in_a_next_step(tmp_path):
    a, b = making.saved_pair(tmp_path)
    out = tmp_path / "near" / "out"
    loraprobe.merge([a, b]).save(out)
    told = shown(loraprobe.verify(out, [a, b]))
    assert told.startswith("VERIFIED") and f"loraprobe inspect {out}" in told
    shutil.rmtree(a)
    shutil.rmtree(b)
    told = shown(loraprobe.verify(out))
    assert told.startswith("CANNOT TELL") and f"loraprobe verify {out} REF" in told
    assert "REF: " in told


def test_many_failed_checks_are_few_lines():
    checks = tuple(Check(f"file-{i}", False, "It differs. " * 20) for i in range(40))
    told = shown(Verification("out", checks))
    assert "file-0" in told and "make it again" in told


def test_a_folder_that_is_none_is_a_document_where_json_is_asked_for():
    done = making.call("verify", "nowhere", "--json")
    assert done.exit_code == 2 and "no directory" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "adapter"


def test_a_merge_of_what_was_measured_ends_with_how_to_verify_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair, base = making.shipped("skill-and-facts")[:2], ["--base", shipped_world().path / "base"]
    task = ["--task", shipped_world().scenario("skill-and-facts").tasks[0]]
    few = [*base, *task, "--system", "sum", "--limit", "30", "--quiet"]
    assert making.call("merge-and-eval", *pair, *few).exit_code == 0
    options = ["--method", "sum", *base, "-o", "out", "--json", "--quiet"]
    verdict = json.loads(making.call("merge", *pair, *options).stdout)["verdict"]
    names = [one.partition("=")[0] for one in pair]
    assert verdict["next"] == f"loraprobe verify out {' '.join(names)} --base base"
    assert making.call("verify", "out", *pair, *base).exit_code == 0
