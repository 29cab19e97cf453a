"""Servers that answer what no server should: figures that are none, texts without end, odd names.

test_served_engine.py has the servers that answer rightly, test_verify_served.py what is verified.
"""

import json
import math
import random
import time
from types import SimpleNamespace
from typing import Any

import making
import pytest
from loopback import listening, server
from mutations import mutated
from test_served_engine import WORLD, call, choices, error_of, run, served_base  # noqa: F401

from loraprobe.errors import UsageError
from loraprobe.evaluation.questions import has_answer
from loraprobe.extensions.serve import client
from loraprobe.extensions.serve.client import KEY, ScoredPrompt, Server, ServerError
from loraprobe.extensions.serve.scorer import _until
from loraprobe.scoring.generation import Written
from loraprobe.secrets import scrub
from loraprobe.tasks.metrics import METRICS

FIGURES = ["NaN", "-Infinity", "Infinity", '"nan"', '"-0.5"', "0.5", "true", "null", "[]", "-1e300"]
FIGURES += ["-" + "9" * 401, "[" * 3000 + "]" * 3000]


def as_it_is(path: str, body: dict, document: Any) -> Any:
    return document


def model(**fields: Any) -> Any:
    """The only model has these fields."""
    return lambda path, _, document: {"data": [fields]} if path == "/v1/models" else document


def too_long(path: str, body: dict, document: Any) -> Any:
    text = {"text": "x\n" * 80_000, "finish_reason": "stop"}
    return {"choices": [text]} if body.get("max_tokens", 0) > 1 else document


(FIRST, PLACE), (_, OTHER) = WORLD.scenario("skill-and-facts").adapters.items()
ODD = {"loads": False, "named": {FIRST: PLACE, "another": OTHER}}
# A server, what it answers in place of the truth, and what the error tells. Where it is expected to
# have an adapter of the head, vLLM leaves the adapter out, or fails.
FAULTS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "choices, without the adapter": ({"scores": "base"}, as_it_is, "of an answer"),
    "choices, fails": ({"scores": "fails"}, as_it_is, "--lora-target-modules"),
    "choices, no scores": ({"scores": ""}, as_it_is, "no log-probabilities"),
    "an adapter of another name": (ODD, as_it_is, "another"),
    "weighed adapters of another name": ({**ODD, "weighs": ODD["named"], "named": {}}, as_it_is,
        "another"),
    "a small rank": ({"most": 2}, as_it_is, "--max-lora-rank"),
    "another scale": ({"scale": 3.0}, as_it_is, "does not compute"),
    "a negative length": ({}, model(id="base", max_model_len=-5), "http"),
    "no length": ({}, model(id="base", max_model_len=0), "http"),
    "a length of one": ({}, model(id="base", max_model_len=1), "http"),
    "a length in words": ({}, model(id="base", max_model_len="64"), "http"),
    "a long name": ({}, model(id="b" * 5_000_000), "http"),
    "no name": ({}, model(id=""), "http"),
    "a text longer than was asked for": ({}, too_long, "max_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_at_fault_ends_the_run(name, choices):  # noqa: F811
    settings, change, told = FAULTS[name]
    made = served_base(**settings)

    def reply(path: str, body: dict) -> tuple[int, Any]:
        status, document = made(path, body)
        return status, change(path, body, document)

    with server(reply) as (url, _):
        words = [*choices, "--engine", url] if name.startswith("choices") else call(url)
        ended = making.call(*words)
    message = error_of(ended)
    assert told in message and len(message) < 700
    assert made.loaded.keys() <= {**settings.get("named", {}), **settings.get("weighs", {})}.keys()


@pytest.mark.parametrize("figure", FIGURES, ids=range(len(FIGURES)))
def test_log_probabilities_are_finite_numbers_of_at_most_0(figure):
    first = f'{{"choices": [{{"logprobs": {{"token_logprobs": [{figure}]}}}}]}}'
    scored = f'{{"choices": [{{"prompt_logprobs": [null, {{"7": {{"logprob": {figure}}}}}]}}]}}'
    for document in (first, scored):
        replies = server(lambda path, body, text=document: (200, text.encode()))
        with replies as (url, _), pytest.raises(ServerError, match="log-probabilities"):
            if document is first:
                Server(url).first_tokens({"model": "m"}, ["x"])
            else:
                Server(url).ask("/v1/completions", [{"model": "m"}], ScoredPrompt)


def test_a_model_may_be_named_like_a_format():
    """SGLang's names of adapters begin with that of the base; a report holds no path of it."""
    made = served_base(sglang=True)

    def reply(path: str, body: dict) -> tuple[int, Any]:
        status, document = made(path, body)
        if path == "/v1/models":
            document["data"][0]["id"] = "50%s-%d \x1b[31m/home/somebody/base"
        return status, document

    with server(reply) as (url, _):
        ended = run(url, "--method", "sum", "--router", "none")
    assert ended.exit_code in (0, 1, 3), ended.stderr
    assert not made.loaded
    engine = json.loads(ended.stdout)["provenance"]["engine"]
    assert engine == "sglang 0.test, model base"


VERSIONS = {
    "0.9.1+cu128": "vllm 0.9.1+cu128",
    "0.1 \x1b[2J/home/somebody/secret/wheel": "vllm 0.1",
    "/home/somebody/vllm": "vllm",
    "x" * 500_000: "vllm " + "x" * 60,
}


@pytest.mark.parametrize("version", VERSIONS, ids=range(len(VERSIONS)))
def test_a_version_is_short_and_has_no_path(version):
    with server(lambda path, body: (200, {"version": version})) as (url, _):
        assert Server(url).version() == VERSIONS[version]


def endless(handler: Any) -> None:
    """A body of 300 MB, as long as somebody reads it."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(300):
        handler.wfile.write(b"[" * 1_000_000)
        sent.append(1)


sent: list[int] = []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
def test_an_answer_is_read_up_to_a_limit(path):
    sent.clear()
    with listening(endless) as url, pytest.raises(ServerError, match="bytes"):
        if path == "/v1/models":
            Server(url, "--served").models()
        else:
            Server(url, "--served").first_tokens({"model": "m"}, ["x"])
    assert len(sent) < 50  # what the system's buffers hold, and no more


def first_of_all(written: Written, until: Any) -> Written:
    """`_until` by asking of every line."""
    lines = written.text.splitlines(keepends=True)
    for n in range(1, len(lines)):
        if (text := "".join(lines[:n])).strip() and until(text):
            return Written(text, False)
    return written


UNTIL = {"steps": has_answer(("####", "boxed", "answer is")), "json": METRICS["json"].ended}
TEXTS = [
    "", "\n\n", "a\n#### 7\nb\n#### 8\nc", "\n \n{\n}\n{}\n", '{"a":\n1}\n\n2', "```\n12\n34\n",
    "```json\n[1,\n2]\n```\nx\n", "the answer is 4.\r\nno\r\n", "x\u2028#### 5\u2028y",
    "\\boxed{\n1}\n2\n",
]  # fmt: skip


@pytest.mark.parametrize("name", UNTIL)
def test_a_reply_ends_at_the_first_line_that_says_so(name):
    for text in TEXTS:
        written = Written(text, True)
        assert _until(written, UNTIL[name]) == first_of_all(written, UNTIL[name]), text
    assert _until(Written("a\nb", True), None) == Written("a\nb", True)


@pytest.mark.parametrize("name", UNTIL)
def test_the_end_of_a_long_reply_is_found_soon(name):
    begun = time.process_time()
    for line in ("x\n", "\n", "{\n", "```x\n", "#### \n"):
        _until(Written(line * 80_000, True), UNTIL[name])
    assert time.process_time() - begun < 10


KEYS = {"letters": "sk-ünter-0001", "break": "sk-first-0001\nsk-second-0002", "nul": "sk-a\0b-001"}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_is_none_is_not_sent_and_never_told(monkeypatch, kind):
    if kind == "nul":  # an environment holds none
        monkeypatch.setattr(client, "os", SimpleNamespace(environ={KEY: KEYS[kind]}))
    else:
        monkeypatch.setenv(KEY, KEYS[kind])
    with pytest.raises(UsageError) as told:
        Server("http://127.0.0.1:9")
    assert KEY in str(told.value)
    assert not any(part in str(told.value) for part in ("sk-", "second", "0001"))


@pytest.mark.parametrize("form", [str, repr, ascii, lambda key: repr(key.encode()), str.split])
@pytest.mark.parametrize("kind", ["letters", "break"])
def test_no_form_of_a_key_stays_in_a_text(monkeypatch, kind, form):
    monkeypatch.setenv(KEY, KEYS[kind])
    assert not any(part in scrub(f"{form(KEYS[kind])}") for part in ("sk-", "second", "0001"))


URLS = ["host:99999", "host:0", "[::1]:70000", "h:-1", "xn--", "h\ud800", "h\n", ""]
OTHERS = ["ftp://host", "file:///etc/passwd", "http://u:p@host"]


@pytest.mark.parametrize("url", [*URLS, *(f"http://{url}" for url in URLS), *OTHERS])
def test_an_address_that_is_none_is_a_wrong_usage(url):
    with pytest.raises(UsageError, match="--served") as told:
        Server(url, "--served")
    assert "u:p" not in str(told.value)


def test_the_key_and_nothing_else_leaves_in_a_header(monkeypatch):
    monkeypatch.setenv(KEY, "sk-good-0001\n")
    with server(lambda path, body: (200, {"data": []})) as (url, seen):
        assert Server(url).models() == []
    assert seen == ["Bearer sk-good-0001"]


ANSWERS: dict[str, tuple[Any, Any]] = {
    "models": (
        {"data": [{"id": "base", "max_model_len": 64, "owned_by": "vllm"}, {"id": "a"}]},
        lambda asked: all((one.max_model_len or 2) > 1 for one in asked.models()),
    ),
    "version": ({"version": "1.0"}, lambda asked: asked.version().isprintable()),
    "weighed": ([{"id": 0, "path": "/a/b.gguf"}], lambda asked: asked.weighed() != []),
    "first": (
        {"choices": [{"logprobs": {"token_logprobs": [-0.5]}}]},
        lambda asked: -math.inf < asked.first_tokens({"model": "m"}, ["x"])[0] <= 0,
    ),
    "scored": (
        {
            "choices": [
                {"prompt_logprobs": [None, {"1": {"logprob": -0.5}}, {"2": {"logprob": -1}}]}
            ]
        },
        lambda asked: all(
            -math.inf < one <= 0
            for answer in asked.ask("/v1/completions", [{"model": "m"}], ScoredPrompt)
            for one in answer.of([0, 1, 2], 1) or ()
        ),
    ),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_whatever_a_server_answers_is_right_or_one_sentence(monkeypatch, kind):
    drawn, (document, holds) = random.Random(0), ANSWERS[kind]
    asked = Server("http://127.0.0.1:9")
    for _ in range(400):
        body = mutated(document, drawn)
        monkeypatch.setattr(asked, "_answers", lambda path, bodies, read, body=body: [read(body)])
        try:
            assert holds(asked), body
        except ServerError as error:
            assert len(str(error)) < 700 and "\n" not in str(error)
