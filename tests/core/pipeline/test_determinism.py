"""The same inputs, seed, device and dtype give the same document; what else may move is pinned.

Repeated calls and other hash seeds: every byte but `provenance`. Batch sizes, threads and the
order of adapters change the order in which floating-point numbers are added: every count, score,
interval, decision and action stays, and what is a mean of likelihoods or gates moves by less than
TOLERANCE.
"""

import functools
import json
import os
from typing import Any

import numpy as np
import pytest
from forks import Fork
from scipy import linalg
from shipped_audits import SCENARIOS, SHORT, TOLERANCE, WORLD, audit, call, calm, differences

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.evaluation import statistics


def in_no_order(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every list in an order of its own, without sentences and the next command.

    Rows follow the order in which adapters are given, and so do names within a row and a sentence.
    """

    def free(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: free(value[k]) for k in sorted(value) if k not in ("message", "next")}
        if isinstance(value, list) and not all(isinstance(x, (int, float)) for x in value):
            return sorted(map(free, value), key=lambda row: json.dumps(rounded(row)))
        return value

    def rounded(value: Any) -> Any:
        """Numbers last, so that their rounding decides between rows that are else alike."""
        if not isinstance(value, dict):
            return value
        words = {k: v for k, v in value.items() if not isinstance(v, (float, list, dict))}
        names = value.get("adapters", [])
        return [words, names, {k: v for k, v in value.items() if isinstance(v, float)}]

    return free({k: v for k, v in document.items() if k != "notes"})


@pytest.fixture
def threads():
    """The number of threads as it was."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def printed(calls: list[list[str]]) -> None:
    """Prints the hash of a word and the documents of some calls."""
    print(json.dumps([hash("adapter"), *(call(*arguments) for arguments in calls)]))


def test_repeated_calls_and_other_hash_seeds_give_the_same_bytes(tmp_path, first_layers):
    merge = ["merge", *first_layers[::2], "-o", str(tmp_path / "merged")]
    calls = [
        ["inspect", *first_layers, "--per-module", "--threads", "1"],
        [*merge, "--method", "dare_ties:density=0.5", "--overwrite", "--threads", "1"],
        [*audit("skill-and-facts"), *SHORT],
    ]
    code, told, error = Fork(functools.partial(printed, calls), tmp_path / "said").end()
    assert code == 0, error
    other, *first = json.loads(told)
    assert other != hash("adapter") or os.environ.get("PYTHONHASHSEED")
    written = (tmp_path / "merged" / "adapter_model.safetensors").read_bytes()
    second = [*(call(*own) for own in calls[:2]), calm()]
    for document, again in zip(first, second, strict=True):
        assert document == again
    assert (tmp_path / "merged" / "adapter_model.safetensors").read_bytes() == written


def check_moves(first: dict[str, Any], scenario: str, others: list[list[str]], *more: str) -> None:
    """A document against those of other ways to call it, and of the other order of adapters."""
    for other in others:
        threads = [] if "--threads" in other else ["--threads", 1]
        found = call(*audit(scenario), *more, *other, *threads)
        assert not differences(first, found), other
    turned = call(*audit(scenario, turned=True), "--threads", 1, *more)
    assert not differences(in_no_order(first), in_no_order(turned))


def test_batch_size_and_order_move_no_count():
    check_moves(calm(), "skill-and-facts", [["--batch-size", "1"]], *SHORT[:4])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_batch_sizes_threads_and_order_move_no_count_in_whole_scenarios(scenario, threads):
    first = call(*audit(scenario), "--threads", 1)
    others = [["--batch-size", "1"], ["--batch-size", "7"], ["--threads", "2"]]
    check_moves(first, scenario, others)


@pytest.fixture(scope="module")
def first_layers(tmp_path_factory):
    """Three shipped adapters with one or both of two modules of their first layer."""
    place = tmp_path_factory.mktemp("first-layers")
    ends = (".0.self_attn.q_proj", ".0.mlp.down_proj")
    for name in ("spouse", "city", "last"):
        whole = read_adapter(WORLD / "adapters" / name)
        modules = {path: u for path, u in whole.modules.items() if path.endswith(ends)}
        assert len(modules) == 1 + (name == "last")
        adapter_of(name, modules, base_model=whole.base_model).save(place / name)
    return [str(place / name) for name in ("spouse", "city", "last")]


def test_inspect_does_not_depend_on_order_and_threads(threads, first_layers):
    first = call("inspect", *first_layers, "--threads", 1)
    assert not differences(first, call("inspect", *first_layers, "--threads", 2))
    turned = call("inspect", *reversed(first_layers), "--threads", 1)
    assert not differences(in_no_order(first), in_no_order(turned))


# TIES decides entry by entry, and near a threshold by the last bit of a sum.
@pytest.mark.parametrize(("method", "near"), [("uniform", 1e-6), ("ties:density=0.3", 1e-3)])
def test_merges_do_not_depend_on_order_and_threads(method, near, tmp_path, threads, first_layers):
    merged = {}
    for way, (order, n) in {"calm": (1, 1), "turned on two threads": (-1, 2)}.items():
        options = ["--method", method, "-o", tmp_path / way, "--threads", n]
        call("merge", *first_layers[::order], *options)
        merged[way] = read_adapter(tmp_path / way)
    calm, turned = (one.modules for one in merged.values())
    for path, update in calm.items():
        delta = update.delta().double()
        off = (turned[path].delta().double() - delta).norm() / delta.norm()
        assert off < near, path


def test_threads_move_no_answer(small_base, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraprobe.scoring import ModelScorer

    scorer = ModelScorer(
        AutoModelForCausalLM.from_pretrained(small_base).eval(),
        AutoTokenizer.from_pretrained(small_base),
    )
    prompts = ["Once upon a time", "Lily and Tom", "The dog was", "One day"]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        texts = scorer.generate(prompts, max_new_tokens=8)
        likely = scorer.loglikelihood([(p, " a big red ball") for p in prompts])
        found.append((texts, [one.rank for one in likely], [one.logprob for one in likely]))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == pytest.approx(found[1][2], rel=TOLERANCE)


def test_critical_values_do_not_jump_with_rounding():
    """Equal eigenvalues of a covariance have vectors that turn with the last bit of its entries;
    intervals must not."""
    x = linalg.hadamard(32)[:, 1:6].astype(float)
    nudged = x * (1 + 1e-13 * np.random.default_rng(3).standard_normal(x.shape))
    alone = np.arange(32)
    first, again = (
        statistics.largest(statistics.estimate(values, alone), (5, 1), 0.95, 0)
        for values in (x, nudged)
    )
    assert first == pytest.approx(again, abs=1e-6)
