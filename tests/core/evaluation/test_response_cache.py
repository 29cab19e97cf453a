"""Results on the disk: what an interruption leaves, and what is refused."""

import dataclasses
import json
import math

import pytest

from loraprobe.errors import OutputError, UsageError
from loraprobe.evaluation import ResponseCache
from loraprobe.records import QUESTION, ItemResult


def row(item="1", value=1.0) -> ItemResult:
    answer = "exact_match", value, "ü", f"item:{item}"
    return ItemResult("base", "t", QUESTION, item, *answer, request=f"base {item} question")


def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "run" / "r.jsonl"
    ResponseCache(path, fingerprint={"seed": 0}).append([row("1"), row("2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    responses = ResponseCache(path, resume=True, fingerprint={"seed": 0})
    assert [r.item for r in responses.results.values()] == ["1"]
    responses.append([row("2")])
    assert path.read_bytes() == whole
    responses.close()
    path.write_bytes(whole[:5])
    assert len(ResponseCache(path, resume=True, fingerprint={"seed": 1}).results) == 0
    assert json.loads(path.read_text())["fingerprint"] == {"seed": 1}


def test_damage_and_other_runs_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    ResponseCache(path, fingerprint={"base": {"sha": "x"}, "seed": 0}).append([row()])
    with pytest.raises(UsageError, match=r'base.sha was "x", is "y"'):
        ResponseCache(path, resume=True, fingerprint={"base": {"sha": "y"}, "seed": 0})
    with pytest.raises(UsageError, match=r"base.sha changed"):
        ResponseCache(path, resume=True, fingerprint={"base": {"sha": "y" * 64}, "seed": 0})
    path.write_text("something else\n")
    with pytest.raises(OutputError, match="remove the file"):
        ResponseCache(path, resume=True)
    assert len(ResponseCache(path).results) == 0
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory.jsonl").mkdir()
    for place in ("file/r.jsonl", "directory.jsonl"):
        for resume in (False, True):
            with pytest.raises(OutputError):
                ResponseCache(tmp_path / place, resume)


def test_a_refused_file_is_free_again(tmp_path):
    """As long as somebody holds the error, its frames hold the response cache."""
    ResponseCache(tmp_path / "results.jsonl", fingerprint={"seed": 0}).append([row()])
    with pytest.raises(UsageError) as refused:
        ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"seed": 1})
    assert (
        len(ResponseCache(tmp_path / "results.jsonl", resume=True, fingerprint={"seed": 0}).results)
        == 1
    ), refused


def test_what_other_runs_keep_is_read_while_they_use_it(tmp_path):
    """But for answers of systems that only their own run knows, and for damaged files."""
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    named = dataclasses.replace(row("2"), request="named:uniform 2 question")
    runs = [ResponseCache(file, fingerprint={"of": file.name}) for file in files[:2]]
    runs[0].append([row("1"), named])
    runs[1].append([row("3")])
    files[1].write_bytes(files[1].read_bytes() + b"{}\n")
    third = ResponseCache(files[2], fingerprint={"of": "c"}, others=files[:2])
    assert third.get(row("1").request) == row("1") and third.reused == {row("1").request}
    assert third.get(named.request) is third.get(row("3").request) is None
    runs[0].append([row("4")])
    assert {r.item for r in ResponseCache(tmp_path / "d.jsonl", others=files).results.values()} == {
        "1",
        "4",
    }


SOUND = json.loads(json.dumps(dataclasses.asdict(row())))
DAMAGE = {
    "text": {"value": "1"},
    "null": {"value": None},
    "nan": {"value": math.nan},
    "infinite": {"value": math.inf, "metric": "answer_loss"},
    "huge": {"value": 7e9},
    "huge loss": {"value": 7e9, "metric": "answer_loss"},
    "half": {"value": 0.5},
    "negative": {"value": -1.0, "metric": "answer_loss"},
    "boolean": {"value": True},
    "many digits": {"value": 10**400},
    "list": {"text": ["x"]},
    "number": {"item": 1},
    "metric": {"metric": "bleu"},
    "part": {"part": "hop0"},
    "surrogate": {"text": "\ud800"},
    "more": {"extra": 1},
    "flag": {"cut": 1},
    "request": {"request": None},
}


LINES = {name: json.dumps(SOUND | change).encode() for name, change in DAMAGE.items()}
LINES |= {str(k): line for k, line in enumerate([b"[" * 3000, b"\xff", b"", b"{}", b"[]", b"null"])}
LINES |= {"open": b"{", "endless": b"1e999"}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_no_run_writes_is_damage(tmp_path, line):
    path = tmp_path / "r.jsonl"
    ResponseCache(path).append([row()])
    path.write_bytes(path.read_bytes() + line + b"\n" + json.dumps(SOUND).encode() + b"\n")
    with pytest.raises(OutputError, match=r"r\.jsonl, line 3"):
        ResponseCache(path, resume=True)
