"""What servers read of a file, which systems they can run, and the commands that serve them."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from making import call, dense, peft_adapter, random_adapter, tiny_llama, tiny_model
from merges import merge
from pathologies.specimens import PREFIX, SPECIMENS, factors, paths, renamed, sound, write
from safetensors.torch import load_file

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.errors import UsageError
from loraprobe.evaluation import System
from loraprobe.extensions.serve import serving
from loraprobe.extensions.serve.serving import (
    FEATURES,
    SERVERS,
    Serving,
    as_written,
    serving_issues,
)
from loraprobe.records import BY_PROMPT, BY_TEXT, Action, ChainHop, Command, Verdict


def found(place, *wanted: str) -> dict[str, str]:
    """Code of an issue -> its severity, without the notes of servers that read the file."""
    issues = serving_issues(read_adapter(place), wanted or ("all",))
    return {i.code.removeprefix("serve-"): i.severity for i in issues if i.severity != "note"}


def refusing(place, code: str, *wanted: str) -> set[str]:
    """The servers that the errors of a code name."""
    issues = serving_issues(read_adapter(place), wanted or ("all",))
    errors = [i for i in issues if i.code == f"serve-{code}" and i.severity == "error"]
    told = " ".join(i.message for i in errors)
    return {name for name in SERVERS if re.search(rf"\b{re.escape(name)}\b", told)}


# The scaling of a module by each server's source: r and lora_alpha are the config's.
ARITHMETIC = {
    "sglang": lambda c, A: c["lora_alpha"] / c["r"],
    "llama.cpp": lambda c, A: c["lora_alpha"] / len(A),
    "ollama": lambda c, A: c["lora_alpha"] / len(A),
}
Q1 = "model.layers.1.self_attn.q_proj"
LAYOUTS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "ranks": {"rank_pattern": {Q1: 2}},
    "alphas": {"alpha_pattern": {Q1: 3}},
    "both, one scaling": {"rank_pattern": {Q1: 2}, "alpha_pattern": {Q1: 4}},
    "rank-stabilised ranks": {"use_rslora": True, "rank_pattern": {Q1: 2}},
}


@pytest.mark.parametrize("server", ARITHMETIC)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_server_is_accused_exactly_where_its_arithmetic_is_not_pefts(tmp_path, layout, server):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    peft_adapter(tmp_path, tiny_llama(), **settings, **LAYOUTS[layout])
    adapter = read_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    wrong = False
    for path, update in adapter.modules.items():
        A, B = (tensors[f"{PREFIX}{path}.lora_{f}.weight"].double() for f in "AB")
        own = ARITHMETIC[server](config, A) * B @ A
        wrong |= not torch.allclose(own, dense(update), rtol=1e-6)
        wrong |= server == "sglang" and len(A) != config["r"]  # its buffers have r rows
    assert ("error" in found(tmp_path, server).values()) == wrong
    assert "error" not in found(tmp_path, "vllm").values()  # since 0.32.0 it reads the patterns


def test_what_only_older_versions_misread_is_a_warning(tmp_path):
    sound(tmp_path, alpha_pattern={"q_proj": 4})
    assert found(tmp_path, "vllm") == {"scaling-pattern": "warning"}


def _peft(make=tiny_llama, **config):
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
    return lambda place: peft_adapter(place, make(), **config)


def _with(key, tensor, **changes):
    return lambda place: write(place, sound(place) | {f"{PREFIX}{key}": tensor}, **changes)


def _only(name):
    def make(place):
        tensors = {k: t for k, t in sound(place).items() if name in k}
        write(place, tensors, target_modules=[name])

    return make


def _named(name):
    """Factors of one projection of an attention layer."""

    def make(place):
        place.mkdir(exist_ok=True)
        write(place, factors(paths((name,))), target_modules=[name])

    return make


EXPERTS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
BIAS = "model.layers.0.self_attn.q_proj.base_layer.bias"
TOKENS = "model.embed_tokens.token_adapter.trainable_tokens_delta"
ROWS = {"trainable_token_indices": {"embed_tokens": [1, 2]}}
tiny_mixtral = partial(tiny_model, "Mixtral", num_local_experts=3)
ENGINES = {"vllm", "sglang", "llama.cpp", "ollama"}
GGUF = {"llama.cpp", "ollama"}
FILES = {
    "dora": (_peft(use_dora=True), ENGINES),
    "lora-bias": (_peft(lora_bias=True), ENGINES),
    "bias": (_with(BIAS, torch.ones(16), bias="lora_only"), ENGINES),
    "modules-to-save": (_with("lm_head.weight", torch.ones(40, 16), modules_to_save=["lm_head"]),
        ENGINES),
    "token-delta": (_with(TOKENS, torch.ones(2, 16), **ROWS), ENGINES),
    "target-parameter": (_peft(tiny_mixtral, **EXPERTS), GGUF),
    "no-value": (_only("q_proj"), {"sglang"}),
    "no-query": (_only("v_proj"), {"sglang"}),
    "target-expression": (lambda p: sound(p, target_modules=r".*\.(q|v)_proj"), {"sglang"}),
    "prefix": (lambda p: renamed(p, lambda key: PREFIX + key), {"peft"}),
    "adapter-name": (lambda p: renamed(p, lambda key: re.sub(r"(lora_[AB])", r"\1.default", key)),
        {"vllm", *GGUF}),
    "latent-attention": (_named("kv_b_proj"), {"vllm", *GGUF}),
    "untargeted": (lambda p: sound(p, target_modules=["q_proj"]), {"peft"}),
    "init-changed-base": (lambda p: sound(p, init_lora_weights="pissa"), ENGINES),
}  # fmt: skip


@pytest.mark.parametrize("code", FILES)
def test_each_kind_of_file_accuses_its_servers_and_no_others(tmp_path, code):
    make, servers = FILES[code]
    make(tmp_path)
    assert refusing(tmp_path, code) == servers
    issues = serving_issues(read_adapter(tmp_path), ["all"])
    assert {i.code for i in issues if i.severity == "error"} == {f"serve-{code}"}


def test_unprefixed_keys_are_pefts_problem_alone(tmp_path):
    renamed(tmp_path, lambda key: key.removeprefix(PREFIX))
    assert refusing(tmp_path, "prefix") == {"peft"}


def test_a_sound_file_is_read_by_all_with_a_command_for_each(tmp_path):
    sound(tmp_path)
    issues = serving_issues(read_adapter(tmp_path), ["all"])
    assert [issue.code for issue in issues] == ["serve-ok"] * len(SERVERS)
    assert [issue.cure != "" for issue in issues] == [name != "peft" for name in SERVERS]
    assert str(tmp_path.parent) not in str(issues)


def test_a_rank_beyond_the_default_needs_a_flag_and_one_beyond_all_is_refused(tmp_path):
    shape = {"model.layers.0.mlp.up_proj": (8, 8)}
    for rank, told in ((16, {}), (17, {"rank-default": "warning"}), (513, {"rank": "error"})):
        random_adapter(shapes=shape, rank=rank).save(tmp_path / str(rank))
        assert found(tmp_path / str(rank), "vllm") == told


def test_the_table_is_whole():
    ruled = {feature for feature, *_ in serving.RULES}
    marked = {name for name, feature in FEATURES.items() if feature.marks}
    of_the_base = {"other-class"}
    assert ruled == marked | set(serving.CHECKS) | of_the_base and not marked & set(serving.CHECKS)
    assert ruled | {"rank", "rank-default"} == set(FEATURES)
    assert {name for _, names, *_ in serving.RULES for name in names} == set(SERVERS)


def test_a_head_and_an_embedding_depend_on_the_base(tmp_path):
    shapes = {"lm_head": (40, 16), "model.embed_tokens": (16, 40)}
    kinds = {"model.embed_tokens": "embedding"}
    random_adapter(shapes=shapes, kinds=kinds).save(tmp_path / "out")
    assert found(tmp_path / "out") == {"output-head": "warning", "embedding": "warning"}


def test_an_unknown_server_or_version_is_named():
    adapter = adapter_of("a", {})
    for wrong in ("vlm", "vllm@new", ""):
        with pytest.raises(UsageError, match=wrong.rpartition("@")[2]):
            serving_issues(replace(adapter), [wrong])


def test_the_command_line_exits_by_the_named_servers(tmp_path):
    sound(tmp_path / "rs", use_rslora=True)
    sound(tmp_path / "plain", seed=1)
    place = str(tmp_path / "rs")
    assert call("inspect", place, "--serve", "vllm").exit_code == 0
    wrong = call("inspect", place, "--serve", "vllm,sglang")
    assert wrong.exit_code == 1 and "loraprobe convert" in wrong.stdout
    document = json.loads(call("inspect", place, "--serve", "all", "--json").stdout)
    codes = {issue["code"] for issue in document["compatibility"]["issues"]}
    assert {"serve-rslora", "serve-ok"} <= codes
    for other in (str(tmp_path / "plain"), "--probe=auto"):
        assert call("inspect", place, other, "--serve", "vllm").exit_code == 2


@pytest.mark.needs("convert")
def test_commands_start_where_their_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "in" / "a")
    for told in (call("convert", "in/a", "-o", "out/a"), call("inspect", "out/a", "--serve=vllm")):
        assert told.exit_code == 0 and "--lora-modules a=out/a" in " ".join(told.stdout.split())
    sound(tmp_path / "in" / "rs", use_rslora=True)
    told = call("inspect", "in/rs", "--serve=sglang")
    assert told.exit_code == 1 and "loraprobe convert in/rs -o OUT" in told.stdout


ONE, TWO = {"sum": "DIR"}, {"a": "first=a", "b=1": "b's"}
CONVERTED = "python convert_lora_to_gguf.py {} --base {} --outfile {}.gguf"
SERVED = [  # server, base, adapters, rank -> the commands
    ("vllm", "o/base", ONE, 16, ["vllm serve o/base --enable-lora --lora-modules sum=DIR"]),
    ("vllm", "o/base", ONE, 17,
     ["vllm serve o/base --enable-lora --max-lora-rank 32 --lora-modules sum=DIR"]),
    ("vllm", "/x/base", TWO, 512,
     ["vllm serve base --enable-lora --max-lora-rank 512 --max-loras 3 "
      "--lora-modules a=a b-1='b'\"'\"'s'"]),
    ("vllm", None, {}, 0, ["vllm serve BASE"]),
    ("sglang", "o/base", TWO, 64,
     ["python -m sglang.launch_server --model-path o/base --enable-lora --lora-paths a=a "
      "b-1='b'\"'\"'s'"]),
    ("llama.cpp", "/x/base", TWO, 64,
     ["python convert_hf_to_gguf.py base --outfile BASE.gguf", CONVERTED.format("a", "base", "a"),
      CONVERTED.format("'b'\"'\"'s'", "base", "b-1"),
      "llama-server -m BASE.gguf --lora a.gguf --lora b-1.gguf"]),
    ("ollama", "o/base", ONE, 64,
     ["python convert_hf_to_gguf.py --remote o/base --outfile BASE.gguf",
      "python convert_lora_to_gguf.py DIR --base-model-id o/base --outfile sum.gguf",
      "printf 'FROM ./BASE.gguf\\nADAPTER ./sum.gguf\\n' > sum.Modelfile",
      "ollama create sum -f sum.Modelfile"]),
    ("peft", "o/base", ONE, 8, []),
]  # fmt: skip


@pytest.mark.parametrize("case", SERVED, ids=lambda case: f"{case[0]}-{len(case[2])}-{case[3]}")
def test_a_server_is_started_with_these_adapters(case):
    server, base, places, rank, lines = case
    found = serving.serving_commands(server, base, places, rank)
    assert list(map(str, found)) == lines
    assert [str(Command.read(line)) for line in lines] == lines  # as JSON has them


def test_a_command_names_what_its_user_typed():
    (found,) = serving.serving_commands("vllm", "/x/base", {"a": "first=a"}, 8)
    typed = found.placed({"base": ["/x/base"], "first=a": ["first=/y/a b"]})
    assert str(typed).endswith("--lora-modules a='/y/a b'") and "serve /x/base " in str(typed)


WIDE = {"model.layers.0.mlp.up_proj": (700, 700)}
NAMES = ("vllm", "sglang", "llama.cpp", "ollama")


def pair(rank: int):
    """Two adapters as their files in the directories a and b have them."""
    made = [random_adapter(name, WIDE, rank, seed) for seed, name in enumerate("ab")]
    return [as_written(adapter, adapter.name) for adapter in made]


@functools.cache
def composed(rank: int, most: int | None):
    """A pair, and systems of it whose merge has at most this rank."""
    adapters = pair(rank)
    merged = merge(adapters, "sum", rank=most)
    kinds = {"arrow": "router", BY_PROMPT: "router", "chain": "chain"}
    named = [System(name, kind) for name, kind in kinds.items()]
    return adapters, [System("sum", "merge", artifact=merged), *named]


# Server, rank of each of two adapters, --rank of the merge -> systems that it cannot run.
TABLE = [
    *((server, rank, None, {"arrow"}) for server in NAMES for rank in (8, 9, 256)),
    ("vllm", 257, None, {"arrow", "sum"}),
    ("vllm", 257, 512, {"arrow"}),
    ("vllm", 513, 64, {"arrow", BY_PROMPT, "a", "b"}),
    *((server, 257, None, {"arrow"}) for server in NAMES[1:]),
    ("llama.cpp,vllm", 257, None, {"arrow", "sum"}),
    ("peft", 8, None, {"arrow"}),
    (None, 257, None, set()),
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


def test_the_router_by_text_stands_in_for_that_by_prompt_before_a_server():
    adapters, systems = composed(8, None)
    both = [*systems, System(BY_TEXT, "router")]
    assert set(Serving(("vllm",), adapters).unserved(both)) == {"arrow", BY_PROMPT}
    found = Serving(("llama.cpp", "vllm"), adapters).unserved(both)
    assert set(found) == {"arrow", BY_PROMPT, BY_TEXT}
    assert found[BY_TEXT].words["servers"] == "llama.cpp"


# What an adapter's file holds -> the servers that can never run it alone.
ADAPTERS = {
    "plain": (lambda place: sound(place), ()),
    "converted first": (lambda place: sound(place, use_rslora=True), ()),
    "dora": (SPECIMENS["dora"], NAMES),
}


@pytest.mark.parametrize("server", NAMES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_convert_rewrites_counts_as_served(tmp_path, name, server):
    make, refusing = ADAPTERS[name]
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
    "a chain": ("chain", ("vllm",), None, [f"{VLLM} --max-loras 3 --lora-modules a=a b=b"], 4),
    "switched adapters": (
        "switch-adapters", ("vllm",), "out/m", [f"{VLLM} --max-loras 3 --lora-modules a=a b=b"], 4
    ),
    "peft is no server": ("merge", ("peft",), None, [], 4),
    "the base": ("use-base", ("vllm",), None, ["vllm serve owner/base"], 4),
    "a router": ("route", (), "out/m", [], 0),
    "by prompt, whose requests name an adapter": (
        "route", ("vllm",), None, [f"{VLLM} --max-loras 3 --lora-modules a=a b=b"], 4
    ),
    "by text, behind a front": (
        "route", ("vllm",), "out/m",
        [f"{VLLM} --max-loras 3 --lora-modules a=a b=b",
         "loraprobe proxy m --server http://localhost:8000"], 3,
    ),
    "by text on a server whose requests name no adapter": ("route", ("llama.cpp",), None, [], 3),
    "nothing": ("gather-evidence", ("vllm",), None, [], None),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVISED)
def test_what_is_advised_is_served_by_these_commands(name):
    action, serve, target, lines, servers = ADVISED[name]
    adapters = pair(4)
    system = "arrow" if action == "route" else "sum"
    system = BY_PROMPT if "by prompt" in name else BY_TEXT if "by text" in name else system
    composes = action in ("merge", "step-by-step", "route")
    made = merge(adapters, "sum") if composes and action != "route" else None
    verdict = Verdict("unlikely", "evaluation", (), system, Action.read(action), composes)
    place = None if target is None else Path(target)
    reasons, commands = Serving(serve, adapters, None, place).advised(verdict, CHAIN, made)
    assert list(map(str, commands)) == lines
    told = [reason.value for reason in reasons if reason.code == "servable"]
    assert told == ([] if servers is None else [servers])


def test_only_the_best_of_each_task_is_served():
    verdict = Verdict(
        "unlikely", "evaluation", action=Action("switch-adapters"), by_task={"t": "base", "u": "b"}
    )
    _, commands = Serving(("vllm",), pair(4)).advised(verdict, (), None)
    assert list(map(str, commands)) == [f"{VLLM} --lora-modules b=b"]


def test_an_adapter_that_a_server_misreads_is_converted_first(tmp_path):
    sound(tmp_path / "a", use_rslora=True)
    adapter = read_adapter(tmp_path / "a", "a")
    verdict = Verdict("unlikely", "evaluation", action=Action("use-single", "a"))
    reasons, commands = Serving(("sglang", "vllm"), [adapter]).advised(verdict, (), None)
    lines = list(map(str, commands))
    assert lines[0] == "loraprobe convert a -o a-served" and "a=a-served" in lines[1]
    assert lines[2].endswith("--lora-modules a=a")  # which vLLM reads as it is
    assert reasons[-1].value == 1


CONVERTED_BASE = "python convert_hf_to_gguf.py full --outfile BASE.gguf"
OLLAMA = ["printf 'FROM ./BASE.gguf\\n' > full.Modelfile", "ollama create full -f full.Modelfile"]


@pytest.mark.parametrize(
    ("serve", "lines"),
    [
        (("vllm",), ["vllm serve full"]),
        ((), ["vllm serve full"]),
        (("llama.cpp",), [CONVERTED_BASE, "llama-server -m BASE.gguf"]),
        (("ollama",), [CONVERTED_BASE, *OLLAMA]),
    ],
)
def test_a_full_model_is_served_by_itself(serve, lines):
    adapters, verdict = pair(4), Verdict("likely", "evaluation", (), "sum", Action("merge"), True)
    serving = Serving(serve, adapters, full=Path("out/full"))
    reasons, commands = serving.advised(verdict, CHAIN, merge(adapters, "sum"))
    assert list(map(str, commands)) == lines and reasons[-1].value == 4
