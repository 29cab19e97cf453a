"""verify --served: a server over transformers on loopback that runs the base, the adapter, or less.

test_recognising.py has what is told of figures with noise.

docs/serving.md has the same with a real server, llama.cpp's.
"""

import json
import zlib
from collections.abc import Callable
from typing import Any

import making
import numpy as np
import pytest
import torch
from loopback import server
from making import peft_adapter, tiny_llama
from peft import PeftModel
from transformers import AutoTokenizer
from words import word_tokenizer

from loraprobe.errors import BaseError
from loraprobe.extensions.serve import verifying
from loraprobe.extensions.serve.acceptance import first_tokens
from loraprobe.extensions.serve.recognising import Served
from loraprobe.scoring import ModelScorer

pytestmark = pytest.mark.needs("verify")
SECRET = "sk-not-for-anybody-0001"
Answerer = Callable[[str], float]


def answers(figure: Answerer, form: str = "classic", names: tuple[str, ...] = ("a",)):
    """A server's replies: the models, and a completion with the figure of its first token."""

    def reply(path: str, body: dict) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in names]}
        assert path == "/v1/completions" and body["max_tokens"] == 1 and body["temperature"] == 0
        value = figure(body["prompt"])
        held = {
            "classic": {"token_logprobs": [value], "tokens": ["x"]},
            "content": {"content": [{"token": "x", "logprob": value}]},
            "none": None,
        }[form]
        return 200, {"choices": [{"text": "x", "logprobs": held}]}

    return reply


def loud() -> Any:
    """A tiny Llama that is sure of its next token, as a trained one is."""
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight *= 20
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base with an adapter: their directories, and the figures by transformers and peft."""
    root = tmp_path_factory.mktemp("served")
    loud().save_pretrained(root / "base")
    word_tokenizer().save_pretrained(root / "base")
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
    peft_adapter(root / "adapter", tiny_llama(), lora_alpha=16, **settings)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")

    def figures(model) -> Answerer:
        def figure(prompt: str) -> float:
            with torch.no_grad():
                logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            return float(torch.log_softmax(logits, -1).max())

        return figure

    peft_adapter(root / "other", tiny_llama(), lora_alpha=16, seed=5, **settings)
    adapted = PeftModel.from_pretrained(loud(), root / "adapter").eval()
    other = PeftModel.from_pretrained(loud(), root / "other").eval()
    doubled = PeftModel.from_pretrained(loud(), root / "adapter").eval()
    for module in doubled.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            scaling["default"] *= 2
    models = {"adapter": adapted, "other": other, "doubled": doubled}
    return root, {"base": figures(loud().eval())} | {n: figures(m) for n, m in models.items()}


def rounded(figure: Answerer, size: float) -> Answerer:
    """The same figures with noise of this size, as of a server that rounds weights."""

    def noisy(prompt: str) -> float:
        drawn = np.random.default_rng(zlib.crc32(prompt.encode()) + int(1e6 * size))
        return min(figure(prompt) + drawn.normal(0, size), 0.0)

    return noisy


def two_models(figures: dict[str, Answerer]):
    """A server's replies: a base and its adapter, as vLLM lists them."""

    def reply(path: str, body: dict) -> tuple[int, Any]:
        if path == "/v1/models":
            data = [{"id": name, "parent": None if name == "b" else "b"} for name in figures]
            return 200, {"data": data}
        if body["model"] not in figures:
            return 404, {"error": "no such model"}
        value = figures[body["model"]](body["prompt"])
        return 200, {"choices": [{"logprobs": {"token_logprobs": [value]}}]}

    return reply


def verify(world, url: str, *more: str, **env: str):
    root, _ = world
    arguments = ["verify", str(root / "adapter"), "--base", str(root / "base"), "--served", url]
    return making.call(*arguments, *more, env=env)


@pytest.mark.parametrize("form", ["classic", "content"])
@pytest.mark.parametrize(("serves", "code"), [("adapter", 0), ("base", 1)])
def test_a_server_is_told_to_apply_the_adapter_or_not(world, serves, code, form):
    with server(answers(world[1][serves], form)) as (url, _):
        ended = verify(world, f"{url}/v1/", "--json")
    assert ended.exit_code == code, ended.output
    found = json.loads(ended.stdout)["served"]
    assert found["serves"] == serves and found["model"] == "a"
    assert found[f"to_{serves}"] < 1e-5 < found["between"]


def test_a_server_that_rounds_applies_the_adapter(world):
    with server(answers(lambda prompt: round(world[1]["adapter"](prompt), 2))) as (url, _):
        assert verify(world, url, "-q").stdout == "adapter\n"


@pytest.mark.parametrize(
    ("truth", "code", "told"),
    [("adapter", 0, "adapter"), ("base", 1, "base"), ("other", 1, "another")],
)
@pytest.mark.parametrize("noise", [0.001, 0.1])
def test_the_distance_of_its_base_is_the_noise(world, truth, code, told, noise):
    figures = {"b": rounded(world[1]["base"], noise), "a": rounded(world[1][truth], 0.9 * noise)}
    with server(two_models(figures)) as (url, _):
        ended = verify(world, url, "--model", "a", "--json")
    found = json.loads(ended.stdout)["served"]
    assert (ended.exit_code, found["serves"]) == (code, told), ended.output
    assert 0.6 * noise < found["floor"] < noise
    assert found["error_rate"] < 0.01 and found["scale"] is None


def test_another_adapter_is_named_among_those_that_were_given(world):
    with server(two_models({"b": world[1]["base"], "a": world[1]["other"]})) as (url, _):
        ended = verify(world, url, str(world[0] / "other"), "--model", "a", "--json")
    found = json.loads(ended.stdout)["served"]
    assert (ended.exit_code, found["serves"], found["other"]) == (1, "another", "other")


def test_an_adapter_of_twice_its_scale_is_told_with_the_scale(world):
    with server(answers(world[1]["doubled"])) as (url, _):
        ended = verify(world, url, "--json")
        shown = verify(world, url).stdout
    found = json.loads(ended.stdout)["served"]
    assert (ended.exit_code, found["serves"]) == (1, "scaled")
    assert found["scale"] == pytest.approx(2.0, rel=0.03)
    assert "times 2.0" in shown or "times 1.9" in shown


def test_noise_that_hides_the_adapter_leaves_it_open(world):
    figures = {"b": rounded(world[1]["base"], 3.0), "a": rounded(world[1]["adapter"], 2.9)}
    with server(two_models(figures)) as (url, _):
        assert verify(world, url, "--model", "a").exit_code == 3


def test_a_name_that_is_not_loaded_is_told_with_those_that_are(world):
    with server(two_models({"b": world[1]["base"], "a": world[1]["adapter"]})) as (url, _):
        ended = verify(world, url, "--model", "mine", "--json")
    told = json.loads(ended.stdout)["error"]["message"]
    assert ended.exit_code == 2 and "mine" in told and "b, a" in told


def test_an_adapter_without_effect_on_the_prompts_leaves_it_open(world, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "base").symlink_to(world[0] / "base")
    peft_adapter(
        tmp_path / "adapter", tiny_llama(), r=1, lora_alpha=1e-4, target_modules=["q_proj"]
    )
    with server(answers(world[1]["base"])) as (url, _):
        ended = verify((tmp_path, None), url)
    assert ended.exit_code == 3, ended.output
    assert "--probe" in ended.stdout


def test_prompts_of_a_file_are_asked(world, tmp_path):
    asked: list[str] = []
    (tmp_path / "mine.txt").write_text("one two\nthree\n")

    def figure(prompt: str) -> float:
        asked.append(prompt)
        return world[1]["adapter"](prompt)

    with server(answers(figure)) as (url, _):
        assert verify(world, url, "--probe", str(tmp_path / "mine.txt")).exit_code == 0
    assert {"one two", "three"} <= set(asked)
    assert all(text.startswith(("one two", "three")) for text in asked)


def test_its_own_prompts_are_asked_without_a_file(world):
    with server(answers(world[1]["adapter"])) as (url, _):
        assert verify(world, url, "--probe", "auto").exit_code == 0


def test_several_models_need_a_name(world):
    reply = answers(world[1]["adapter"], names=("base", "mine"))
    with server(reply) as (url, _):
        ended = verify(world, url)
        assert ended.exit_code == 2 and "--model" in ended.stderr and "mine" in ended.stderr
        assert verify(world, url, "--model", "mine").exit_code == 0


def test_the_key_is_sent_and_never_printed(world):
    key = {"OPENAI_API_KEY": SECRET}
    with server(answers(world[1]["adapter"])) as (url, seen):
        ended = verify(world, url, "--json", **key)
        assert set(seen) == {f"Bearer {SECRET}"} and SECRET not in ended.output
    with server(lambda path, body: (500, {"error": f"bad key {SECRET}"})) as (url, _):
        ended = verify(world, url, "--debug", **key)
        assert ended.exit_code == 2 and SECRET not in ended.output


WRONG: dict[str, Callable[[str, dict], tuple[int, Any]]] = {
    "no log-probabilities": answers(lambda prompt: 0.0, "none"),
    "a positive one": answers(lambda prompt: 0.5),
    "no choices": lambda path, body: (200, {"data": [{"id": "a"}], "choices": []}),
    "no JSON": lambda path, body: (200, b"<html>"),
    "no list of models": lambda path, body: (200, []),
    "nothing there": lambda path, body: (404, b"no such thing"),
    "no key": lambda path, body: (401, b""),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_answer_is_one_sentence_with_a_cure(world, wrong):
    with server(WRONG[wrong]) as (url, _):
        ended = verify(world, url, "--json")
    told = json.loads(ended.stdout)["error"]
    assert (ended.exit_code, told["code"]) == (2, "server") and url in told["message"]
    assert len(told["message"].splitlines()) == 1 and told["cure"]
    assert (wrong == "no key") == ("OPENAI_API_KEY" in told["message"])


@pytest.mark.parametrize(
    "given",
    [("--model", "a"), ("--device", "cpu"), ("--dtype", "float32"), ("--trust-remote-code",)],
)
def test_options_of_a_server_need_one(world, given):
    ended = making.call("verify", str(world[0] / "adapter"), *given)
    assert ended.exit_code == 2 and "--served" in ended.stderr and given[0] in ended.stderr


@pytest.mark.parametrize("given", [("--of", "a"), ("--weights", "1")])
def test_options_that_are_not_about_a_server_go_without_one(world, given):
    ended = verify(world, "http://127.0.0.1:9", *given)
    assert ended.exit_code == 2 and "without --served" in ended.stderr and given[0] in ended.stderr


def test_a_base_whose_figures_are_no_numbers_is_refused():
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[5:] = torch.nan
    with pytest.raises(BaseError):
        first_tokens(ModelScorer(model, word_tokenizer()), [[5, 6]])


def verify_names(world, url: str, names: str, *more: str):
    base = ["--base", str(world[0] / "base"), "--served", url, "--adapters", names]
    return making.call("verify", *base, *more)


def test_several_names_are_each_compared_with_their_files(world, monkeypatch):
    opened = []
    scorer_of = verifying.open_scorer
    monkeypatch.setattr(verifying, "open_scorer", lambda *a: opened.append(1) or scorer_of(*a))
    figures = {"b": world[1]["base"], "adapter": world[1]["adapter"], "o": world[1]["other"]}
    files = f"{world[0] / 'adapter'},o={world[0] / 'other'},b"
    with server(two_models(figures)) as (url, _):
        ended = verify_names(world, url, files, "--json")
        crossed = f"adapter={world[0] / 'other'},o={world[0] / 'adapter'}"
        wrong = verify_names(world, url, crossed, "--json", "--load", "4")
    assert ended.exit_code == 0, ended.output
    assert len(opened) == 2, "one base for each of the two runs"
    found = json.loads(ended.stdout)
    assert [(one["model"], one["serves"]) for one in found["served"]] == [
        ("adapter", "adapter"),
        ("o", "adapter"),
    ]
    assert wrong.exit_code == 1  # and no load is sent
    found = json.loads(wrong.stdout)
    assert [one["serves"] for one in found["served"]] == ["another"] * 2
    assert found["under_load"] is None and found["served"][0]["other"] == "o"


@pytest.mark.parametrize("order", [["base", "unclear"], ["unclear", "base"]])
def test_what_is_false_goes_before_what_is_open(world, monkeypatch, order):
    """In any order of the names."""
    names = dict(zip(["adapter", "o"], order, strict=True))

    def compared(server, name, *_):
        return Served("a", name, names[name], 12, 1.0, 0.0, 1.0, None, 0.0)

    monkeypatch.setattr(verifying.recognising, "compare_served", compared)
    files = f"adapter={world[0] / 'adapter'},o={world[0] / 'other'}"
    with server(two_models({"b": world[1]["base"], **dict.fromkeys(names, abs)})) as (url, _):
        ended = verify_names(world, url, files, "-q")
    assert (ended.exit_code, ended.stdout) == (1, ",".join(order) + "\n")
