"""Which systems each server can run, and the commands that serve what is advised."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from making import random_adapter
from pathologies.specimens import SPECIMENS, sound

from loraprobe.adapters import read_adapter
from loraprobe.evaluation import System
from loraprobe.extensions.serve.serving import Serving, as_written
from loraprobe.merging import merge
from loraprobe.records import BY_PROMPT, ChainHop, Verdict

WIDE = {"model.layers.0.mlp.up_proj": (700, 700)}
SERVERS = ("vllm", "sglang", "llama.cpp", "ollama")


def pair(rank: int):
    """Two adapters as their files in the directories a and b have them."""
    made = [random_adapter(name, WIDE, rank, seed) for seed, name in enumerate("ab")]
    return [as_written(adapter, adapter.name) for adapter in made]


@functools.cache
def composed(rank: int, most: int | str):
    """A pair, and systems of it whose merge has at most this rank."""
    adapters = pair(rank)
    merged = merge(adapters, "sum", rank=most)
    kinds = {"arrow": "router", BY_PROMPT: "router", "chain": "chain"}
    named = [System(name, kind) for name, kind in kinds.items()]
    return adapters, [System("sum", "merge", merged=merged), *named]


# Server, rank of each of two adapters, --rank of the merge -> systems that it cannot run.
TABLE = [
    *((server, rank, "auto", {"arrow"}) for server in SERVERS for rank in (8, 9, 256)),
    ("vllm", 257, "auto", {"arrow", "sum"}),
    ("vllm", 257, 512, {"arrow"}),
    ("vllm", 513, 64, {"arrow", BY_PROMPT, "a", "b"}),
    *((server, 257, "auto", {"arrow"}) for server in SERVERS[1:]),
    ("llama.cpp,vllm", 257, "auto", {"arrow", "sum"}),
    ("peft", 8, "auto", {"arrow"}),
    (None, 257, "auto", set()),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: " ".join(map(str, case[:3])))
def test_a_server_runs_merges_within_its_ranks_and_no_router_that_mixes(case):
    server, rank, most, out = case
    adapters, systems = composed(rank, most)
    found = Serving((server,) if server else (), adapters).unserved(systems)
    assert set(found) == out
    for name in out - {"arrow"}:
        assert found[name].words["servers"] == "vllm" and "--rank 512" in found[name].words["why"]
        assert str(2 * rank if name == "sum" else rank) in found[name].words["why"]
    if server:
        names = " and ".join(server.split(","))
        assert found["arrow"].words == {"servers": names, "why": ""}


# What an adapter's file holds -> the servers that can never run it alone.
FILES = {
    "plain": (lambda place: sound(place), ()),
    "converted first": (lambda place: sound(place, use_rslora=True), ()),
    "dora": (SPECIMENS["dora"], SERVERS),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", FILES)
def test_an_adapter_that_convert_rewrites_counts_as_served(tmp_path, name, server):
    make, refusing = FILES[name]
    make(tmp_path / "a")
    found = Serving((server,), [read_adapter(tmp_path / "a", "a")]).unserved([])
    assert set(found) == ({"a"} if server in refusing else set())


VLLM = "vllm serve owner/base --enable-lora"
SGLANG = "python -m sglang.launch_server --model-path owner/base"
CHAIN = (ChainHop("t", 1, "a", "p", "1", 5), ChainHop("t", 2, "b", "q {1}", "1", 5))
# Action, --serve, --output -> the commands, and how many of the four servers can run it.
ADVISED = {
    "a merge": ("merge", (), None, [], 4),
    "a merge that is written": (
        "merge", (), "out/m", [f"{VLLM} --lora-modules sum=m"], 4
    ),
    "a merge for a server": ("merge", ("vllm",), None, [f"{VLLM} --lora-modules sum=DIR"], 4),
    "two servers": (
        "step-by-step", ("sglang", "vllm"), None,
        [f"{SGLANG} --enable-lora --lora-paths sum=DIR",
         f"{VLLM} --lora-modules sum=DIR"], 4,
    ),
    "one adapter": ("use-single:a", ("vllm",), None, [f"{VLLM} --lora-modules a=a"], 4),
    "a chain": ("chain", ("vllm",), None, [f"{VLLM} --lora-modules a=a b=b"], 4),
    "switched adapters": (
        "switch-adapters", ("vllm",), "out/m", [f"{VLLM} --lora-modules a=a b=b"], 4
    ),
    "peft is no server": ("merge", ("peft",), None, [], 4),
    "the base": ("use-base", ("vllm",), None, ["vllm serve owner/base"], 4),
    "a router": ("route", (), "out/m", [], 0),
    "by prompt, whose requests name an adapter": (
        "route", ("vllm",), None, [f"{VLLM} --lora-modules a=a b=b"], 4
    ),
    "nothing": ("gather-evidence", ("vllm",), None, [], None),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVISED)
def test_what_is_advised_is_served_by_these_commands(name):
    action, serve, target, lines, servers = ADVISED[name]
    adapters = pair(4)
    system = "arrow" if action == "route" else "sum"
    system = BY_PROMPT if "by prompt" in name else system
    composes = action in ("merge", "step-by-step", "route")
    made = merge(adapters, "sum") if composes and action != "route" else None
    verdict = Verdict("unlikely", "evaluation", (), system, action, composes)
    place = None if target is None else Path(target)
    reasons, commands = Serving(serve, adapters, None, place).advised(verdict, CHAIN, made)
    assert list(map(str, commands)) == lines
    told = [reason.value for reason in reasons if reason.code == "servable"]
    assert told == ([] if servers is None else [servers])


def test_only_the_best_of_each_task_is_served():
    verdict = Verdict(
        "unlikely", "evaluation", action="switch-adapters", by_task={"t": "base", "u": "b"}
    )
    _, commands = Serving(("vllm",), pair(4)).advised(verdict, (), None)
    assert list(map(str, commands)) == [f"{VLLM} --lora-modules b=b"]


def test_an_adapter_that_a_server_misreads_is_converted_first(tmp_path):
    sound(tmp_path / "a", use_rslora=True)
    adapter = read_adapter(tmp_path / "a", "a")
    verdict = Verdict("unlikely", "evaluation", action="use-single:a")
    reasons, commands = Serving(("sglang", "vllm"), [adapter]).advised(verdict, (), None)
    lines = list(map(str, commands))
    assert lines[0] == "loraprobe convert a -o a-served" and "a=a-served" in lines[1]
    assert lines[2].endswith("--lora-modules a=a")  # which vLLM reads as it is
    assert reasons[-1].value == 1


GGUF = "python convert_hf_to_gguf.py full --outfile BASE.gguf"
OLLAMA = ["printf 'FROM ./BASE.gguf\\n' > full.Modelfile", "ollama create full -f full.Modelfile"]


@pytest.mark.parametrize(
    ("serve", "lines"),
    [
        (("vllm",), ["vllm serve full"]),
        ((), ["vllm serve full"]),
        (("llama.cpp",), [GGUF, "llama-server -m BASE.gguf"]),
        (("ollama",), [GGUF, *OLLAMA]),
    ],
)
def test_a_full_model_is_served_by_itself(serve, lines):
    adapters, verdict = pair(4), Verdict("likely", "evaluation", (), "sum", "merge", True)
    serving = Serving(serve, adapters, full=Path("out/full"))
    reasons, commands = serving.advised(verdict, CHAIN, merge(adapters, "sum"))
    assert list(map(str, commands)) == lines and reasons[-1].value == 4
