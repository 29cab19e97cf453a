"""verify --load: whose adapter answers, of what loopback servers give that mix them up, or fail.

answers.jsonl has what vLLM 0.32 wrote in float32 after twelve prompts with SmolLM2-135M-Instruct
(base) and two adapters of rank 16, token by token with log-probabilities.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import making
import numpy as np
import pytest
from loopback import body_of, listening

from loraprobe.extensions.serve import recognising
from loraprobe.extensions.serve.under_load import (
    APART,
    CROWDED,
    FITS,
    Answers,
    Steps,
    alike,
    attributed,
    check_host,
    distance,
    judged,
    telling,
)

pytestmark = pytest.mark.needs("verify")
NAMES = "facts", "steps", "base"
KNOWN: dict[str, dict[str, Steps]] = {}
for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines():
    row = json.loads(line)
    KNOWN[row["prompt"]] = {n: tuple((t, float(x)) for t, x in row[n]) for n in NAMES}
LONG = {prompt: one for prompt, one in KNOWN.items() if all(len(a) == 8 for a in one.values())}


# ---- attribution ---------------------------------------------------------------------------------


def noisy(answer: Steps, noise: float, drawn: Any) -> Steps:
    pairs = zip(answer, drawn.normal(0, noise, len(answer)), strict=True)
    return tuple((token, min(own + by, 0.0)) for (token, own), by in pairs)


def simulated(share: float, noise: float, n: int, seed: int, names: tuple[str, ...] = NAMES):
    """What is told of n answers with noise, of which a share is by another of the names."""
    drawn = np.random.default_rng(seed)
    known = {prompt: {name: one[name] for name in names} for prompt, one in KNOWN.items()}
    used = telling(known, max(0.01, noise))
    answers = Answers(seconds=60.0)
    for _ in range(n):
        asked = by = names[drawn.integers(len(names))]
        if drawn.random() < share:
            by = [name for name in NAMES if name != asked][drawn.integers(2)]
        prompt = used[drawn.integers(len(used))]
        answers.came.append((asked, prompt, noisy(KNOWN[prompt][by], noise, drawn), 0.1))
    return judged(answers, {prompt: known[prompt] for prompt in used}, max(0.01, noise), 64)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_one_percent_of_others_is_found_and_a_right_server_never_blamed(noise, names):
    """600 answers, as of ten a second. Without the base its answers are nobody's."""
    runs = 25
    right = [simulated(0.0, noise, 600, seed, names) for seed in range(runs)]
    assert {one.serves for one in right} == {"right"}
    assert all(one.at_most < 0.0055 and one.mixed == one.strange == 0 for one in right)
    mixed = [simulated(0.01, noise, 600, seed, names) for seed in range(runs)]
    assert sum(one.serves == "mixed" for one in mixed) >= 0.95 * runs


def test_many_answers_of_others_do_not_pass_for_noise():
    found = simulated(0.9, 0.0, 600, 0, NAMES[:2])
    assert found.serves == "mixed" and found.noise <= CROWDED


def test_the_bound_is_that_of_clopper_and_pearson():
    """By scipy's beta distribution, and for no event by its formula."""
    from scipy import stats

    found = simulated(0.02, 0.0, 500, 0)
    wrong = found.mixed + found.strange
    assert found.at_most == pytest.approx(stats.beta.ppf(0.95, wrong + 1, 500 - wrong))
    none = simulated(0.0, 0.0, 500, 0)
    assert none.at_most == pytest.approx(1 - 0.05 ** (1 / 500))


def test_every_known_answer_is_that_of_its_name():
    for scale in (0.01, 0.02):
        for prompt in telling(KNOWN, scale):
            for name, answer in KNOWN[prompt].items():
                assert distance(answer, answer, scale) == 0
                assert {attributed(n, answer, KNOWN[prompt], scale) for n in NAMES} == {name}


def test_an_adapter_that_comes_in_the_middle_is_nobodys():
    found = 0
    for answers in LONG.values():
        half = (*answers["facts"][:4], *answers["base"][4:])
        found += attributed("facts", half, answers, 0.01) == ""
    assert found >= len(LONG) / 2  # others agree up to a near tie


def test_a_near_tie_may_fall_otherwise():
    known: Steps = (("a", -0.01), ("b", -0.70), ("c", -0.2), ("d", -0.1))
    tie: Steps = (("a", -0.011), ("x", -0.703), ("y", -1.9), ("z", -1.4))
    other: Steps = (("q", -0.9), ("r", -1.7), ("c", -0.9), ("d", -2.0))
    assert distance(tie, known, 0.01) <= FITS * 4
    assert attributed("m", tie, {"m": known, "n": other}, 0.01) == "m"
    sure: Steps = (("x", -0.01), *known[1:])  # no rounding takes another for a sure token
    assert distance(sure, known, 0.01) > FITS * 4
    ended = known[:1]
    assert distance(ended, known, 0.01) >= 3 * 8


def test_names_that_answer_alike_are_named():
    twins = {
        p: {"a": one["facts"], "b": one["steps"], "c": one["facts"]} for p, one in KNOWN.items()
    }
    assert alike(KNOWN, 0.01) is None and alike(twins, 0.01) == ("a", "c")
    assert telling(twins, 0.01) == [] and APART > 0


def test_noise_that_hides_all_names_leaves_no_prompt():
    assert telling(KNOWN, 0.6) == []


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:1", "http://127.9.9.9"],
)
def test_this_machine_may_be_loaded(address):
    check_host(address, 64, 60.0, False)


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1",
        "http://example.org:8000",
        "http://localhost.example.org",
        "http://0.0.0.0",
    ],
)
def test_another_machine_needs_a_yes(address):
    check_host(address, 64, 60.0, True)
    ended = making.call("verify", "--served", address, "--adapters", "a,b", "--load", "8")
    assert ended.exit_code == 2 and "--yes" in ended.stderr


# ---- servers -------------------------------------------------------------------------------------

Answering = Callable[[BaseHTTPRequestHandler, dict, int], bool]


def send(handler: BaseHTTPRequestHandler, document: Any, status: int = 200) -> None:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def completion(answer: Steps) -> dict:
    tokens, scores = [token for token, _ in answer], [score for _, score in answer]
    return {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": scores}}]}


ALONE = 2 * len(KNOWN)  # requests of a name before those under load


def serving(odd: Answering | None = None, names: tuple[str, ...] = NAMES, alone: bool = True):
    """A server of recorded answers. odd: answers a request (its number under load) otherwise, if it
    returns True; with `alone` false also those before."""
    numbers, lock = itertools.count(), threading.Lock()
    models = [{"id": name, "parent": None if name == "base" else "base"} for name in names]

    def reply(handler: BaseHTTPRequestHandler) -> None:
        asked = json.loads(body_of(handler) or b"{}")
        with lock:
            at = next(numbers) if asked else -1
        number = at - ALONE * len(NAMES) if alone else at
        if odd is not None and (number >= 0 or at < 0) and odd(handler, asked, number):
            return
        if handler.path == "/v1/models":
            return send(handler, {"data": models})
        if asked["model"] not in names:
            return send(handler, {"error": "no such model"}, 404)
        assert asked["max_tokens"] == 8 and asked["temperature"] == 0
        send(handler, completion(KNOWN[asked["prompt"]][asked["model"]]))

    return listening(reply)


def verify(url: str, *more: str, names: str = ",".join(NAMES), seconds: str = "1"):
    words = ["verify", "--served", url, "--adapters", names, "--load", "8", "--seconds", seconds]
    return making.call(*words, *more)


def test_a_right_server_is_right_with_a_bound_and_latencies():
    with serving() as url:
        ended = verify(url, "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)["under_load"]
    assert found["serves"] == "right" and found["mixed"] == found["strange"] == 0
    assert found["requests"] == sum(one["requests"] for one in found["names"]) > 60
    assert found["at_most"] == pytest.approx(1 - 0.05 ** (1 / found["requests"]))
    assert found["requests"] <= 500 * 1.0 + 8  # a bounded rate
    for one in found["names"]:
        assert one["right"] == one["requests"] and 0 < one["median"] <= one["p95"] <= one["longest"]


def swapping(every: int) -> Answering:
    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if number < 0 or number % every or asked.get("model") != "facts":
            return False
        send(handler, completion(KNOWN[asked["prompt"]]["steps"]))
        return True

    return odd


@pytest.mark.parametrize("names", ["facts,steps,base", "facts,steps"])
def test_a_server_that_swaps_adapters_is_caught(names):
    with serving(swapping(7)) as url:
        # without the base fewer requests come before the load, which are right ones then
        ended = verify(url, "--json", names=names)
        shown = verify(url, "-q", names=names) if names.endswith("base") else None
    found = json.loads(ended.stdout)["under_load"]
    assert (ended.exit_code, found["serves"]) == (1, "mixed"), ended.output
    by_name = {one["name"]: one["mixed"] for one in found["names"]}
    assert by_name["facts"].keys() == {"steps"} and not by_name["steps"]
    assert found["strange"] == 0 and found["at_most"] > found["mixed"] / found["requests"]
    assert shown is None or shown.stdout == "mixed\n"


def test_the_answers_of_a_base_that_is_not_named_are_nobodys():
    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if number < 0 or number % 10:
            return False
        send(handler, completion(KNOWN[asked["prompt"]]["base"]))
        return True

    with serving(odd) as url:
        ended = verify(url, "--json", names="facts,steps")
    found = json.loads(ended.stdout)["under_load"]
    assert (ended.exit_code, found["serves"]) == (1, "mixed")
    assert found["strange"] > 0


def often(status: int, document: Any, *, header: tuple[str, str] | None = None) -> Answering:
    """Every second request gets this."""

    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if number < 0 or number % 2:
            return False
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.send_response(status)
        if header:
            handler.send_header(*header)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return True

    return odd


NAN = b'{"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [NaN]}}]}'
FAULTS: dict[str, tuple[Answering, str]] = {
    "busy": (often(429, {}), "status 429"),
    "fails": (often(500, {"error": "EngineCore"}), "status 500"),
    "redirects": (often(302, b"", header=("location", "http://127.0.0.1:9/")), "status 302"),
    "no numbers": (often(200, NAN), "no log-probabilities"),
    "another schema": (often(200, {"answer": "yes"}), "no log-probabilities"),
    "no JSON": (often(200, b"<html>"), "no log-probabilities"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_answer_is_an_error_and_blames_no_adapter(fault):
    odd, told = FAULTS[fault]
    with serving(odd) as url:
        ended = verify(url, "--json")
    found = json.loads(ended.stdout)["under_load"]
    assert found["errors"].keys() == {told} and found["mixed"] == found["strange"] == 0
    assert found["serves"] in ("right", "unclear")  # a busy server is left alone for a second
    assert ended.exit_code == (0 if found["serves"] == "right" else 3)


def test_a_server_that_drips_is_late(monkeypatch):
    monkeypatch.setattr(recognising, "TIMEOUT", 0.4)

    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if number < 0 or number % 10:
            return False
        handler.send_response(200)
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(b" ")
            time.sleep(0.1)
        return True

    with serving(odd) as url:
        ended = verify(url, "--json")
    assert json.loads(ended.stdout)["under_load"]["errors"].keys() == {"no answer in time"}


def test_a_server_that_dies_under_load_is_told_with_what_it_answered():
    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if 0 <= number < 50:
            return False
        gone = number >= 50 or dead
        if gone:
            dead.append(number)
            handler.close_connection = True
        return bool(gone)

    dead: list[int] = []
    with serving(odd) as url:
        ended = verify(url, "--json", seconds="30")
    told = json.loads(ended.stdout)["error"]
    assert (ended.exit_code, told["code"]) == (2, "server")
    assert "50 answers" in told["message"] and "gone" in told["message"]


def test_a_server_that_wants_a_key_ends_the_run():
    with serving(often(401, b"")) as url:
        ended = verify(url)
    assert ended.exit_code == 2 and "OPENAI_API_KEY" in ended.stderr


def test_a_name_that_never_answers_under_load_leaves_it_open():
    """As of an adapter that was unloaded meanwhile: the others are right, and it is not known."""

    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if number < 0 or asked.get("model") != "steps":
            return False
        send(handler, {"error": "no such model"}, 404)
        return True

    with serving(odd) as url:
        ended = verify(url, "--json")
    found = json.loads(ended.stdout)["under_load"]
    assert (ended.exit_code, found["serves"]) == (3, "unclear")
    assert found["errors"].keys() == {"status 404"} and found["at_most"] < 0.05


QUIET: dict[str, tuple[Answering, str]] = {  # before the load, which such a server is spared
    "redirects": (FAULTS["redirects"][0], "status 302"),
    "no numbers": (FAULTS["no numbers"][0], "log-probabilities"),
    "another schema": (FAULTS["another schema"][0], "log-probabilities"),
    "fails": (FAULTS["fails"][0], "status 500"),
    "wants a key": (often(401, b""), "OPENAI_API_KEY"),
    "always busy": (lambda *asked: send(asked[0], {}, 429) or True, "is busy (status 429"),
}


@pytest.mark.parametrize("fault", QUIET)
def test_a_server_at_fault_is_not_loaded(fault, monkeypatch):
    odd, told = QUIET[fault]
    monkeypatch.setattr(recognising, "TIMEOUT", 1.0)
    last = []

    def seen(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        last.append(number)
        return odd(handler, asked, number)

    with serving(seen, alone=False) as url:
        ended = verify(url, "--json", seconds="30")
    error = json.loads(ended.stdout)["error"]
    assert (ended.exit_code, error["code"]) == (2, "server")
    assert told in error["message"] and len(last) < ALONE


def test_a_server_without_log_probabilities_is_told_before_the_load():
    with serving(often(200, {"choices": [{"text": "x"}]}), alone=False) as url:
        ended = verify(url)
    assert ended.exit_code == 2 and "log-probabilities" in ended.stderr


def test_a_name_that_is_not_loaded_is_told_with_those_that_are():
    with serving(names=("facts", "base")) as url:
        ended = verify(url)
    assert ended.exit_code == 2 and "no model named steps" in ended.stderr
    assert "facts, base" in " ".join(ended.stderr.split())


def test_two_names_of_one_adapter_are_told():
    def odd(handler: BaseHTTPRequestHandler, asked: dict, number: int) -> bool:
        if not asked:
            return False
        send(handler, completion(KNOWN[asked["prompt"]]["facts"]))
        return True

    with serving(odd, alone=False) as url:
        ended = verify(url, names="facts,steps")
    assert ended.exit_code == 2 and "alike" in ended.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--adapters", "facts", "--load", "8"), "two or more"),
        (("--adapters", "facts,steps"), "--load"),
        (("--adapters", "facts,facts", "--load", "8"), "twice"),
        (("--adapters", "facts=x,steps=x", "--load", "8"), "one adapter"),
        (("--load", "8"), "--adapters"),
        (("--adapters", "facts,steps", "--load", "8", "--model", "facts"), "--model"),
        (("--adapters", "facts,steps", "--load", "0"), "--load"),
        (("--adapters", "facts,steps", "--load", "8", "--seconds", "0"), "--seconds"),
        ((), "DIR"),
    ],
)
def test_what_does_not_go_together_is_a_wrong_usage(given, told):
    with serving() as url:
        ended = making.call("verify", "--served", url, *given)
    assert ended.exit_code == 2 and told in " ".join(ended.stderr.split()), ended.stderr


@pytest.mark.parametrize("given", [("--adapters", "a,b"), ("--load", "8"), ("--yes",)])
def test_they_need_a_server(given, tmp_path):
    ended = making.call("verify", str(tmp_path), *given)
    assert ended.exit_code == 2 and "--served" in ended.stderr
