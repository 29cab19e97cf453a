"""Whole commands on a GPU, its memory, and batches that do not fit into it."""

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from composing import experts, relative
from making import call, skip_without, tiny_model
from words import word_tokenizer

from loraprobe.base import load_base, open_base
from loraprobe.composition import Composition
from loraprobe.demo import shipped_world
from loraprobe.errors import OutOfMemory
from loraprobe.routing import ROUTERS
from loraprobe.scoring import ModelScorer

pytestmark = pytest.mark.gpu

WORLD = shipped_world()
BASE = ["--base", WORLD.base]
ADAPTERS = [WORLD.adapters[name] for name in ("spouse", "city")]
TASK = ["--task", WORLD.path / "tasks" / "strangers.jsonl"]
ONE_BY_ONE = ["--system", "base", "--limit", "24", "--margin", "0.2", "--all-items"]
# Command line -> options; every stage that computes on the device.
COMMANDS = {
    **{f"demo {name}": ["demo", "--scenario", name] for name in WORLD.scenarios},
    "merges": [*("merge-and-eval", *ADAPTERS, *BASE, *TASK, *ONE_BY_ONE, "--dtype", "float32"),
        *("--system", "ties", "--method", "ties", "--system", "tsv", "--method", "tsv")],
    "routers": [*("merge-and-eval", *ADAPTERS, *BASE, *TASK, *ONE_BY_ONE, "--dtype", "float32"),
        *("--router", "centroid:per=sequence", "--router", "lag", "--router", "spectr")],
    "learned weights": [*("merge-and-eval", *ADAPTERS, *BASE, *TASK, "--limit", "60", "--dtype",
        "float32"), *("--weights", "learn:per=layer", "--system", "base", "--all-items")],
    "inspect with a task": ["inspect", *ADAPTERS, *BASE, *TASK, "--dtype", "float32"],
    "inspect with probes": [
        *("inspect", *ADAPTERS, *BASE, "--probe", "auto", "--dtype", "float32"),
    ],
    "screen": [*("screen", *ADAPTERS, WORLD.adapters["count"], WORLD.adapters["steps"], *BASE,
        *TASK), *("--items", "12", "--keep", "1", "--limit", "48", "--dtype", "float32")],
}  # fmt: skip


def documented(arguments: list, cache: Path) -> dict:
    cache.mkdir()  # so that no run finds the answers of another
    result = call(*arguments, "--json", "--quiet", env={"LORAPROBE_CACHE": str(cache)})
    assert result.exit_code in (0, 1, 3), result.output
    return json.loads(result.stdout)


def scores(audit: dict) -> list:
    keys = ("system", "task", "part", "value", "n")
    return [[row[key] for key in keys] for row in audit["evaluation"] or []]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_says_on_the_cpu(device, name, tmp_path):
    skip_without(COMMANDS[name][0])
    found, wanted = (
        documented([*COMMANDS[name], "--device", at], tmp_path / str(i))
        for i, at in enumerate((device, "cpu"))
    )
    verdicts = [(v["decision"], v["action"]) for v in (found["verdict"], wanted["verdict"])]
    assert verdicts[0] == verdicts[1]
    assert found["provenance"]["device"].startswith(device)
    if device == "cpu":  # a card may round a tie otherwise
        assert scores(found) == scores(wanted)


def test_a_command_spreads_its_base_over_devices(device, tmp_path):
    if device == "cpu":
        pytest.skip("the CPU is one device")
    pytest.importorskip("accelerate")
    found = documented([*COMMANDS["routers"], "--device-map", "auto"], tmp_path / "spread")
    assert found["provenance"]["device"].startswith(device)


def test_a_fitted_router_is_saved_and_loaded(device, tmp_path):
    out = tmp_path / "routed"
    made = call("route", *ADAPTERS, *BASE, "--router", "centroid", "-o", out, "--device", device)
    assert made.exit_code == 0, made.output
    import loraprobe

    loaded = load_base(open_base(WORLD.base), device=device)
    scorer = ModelScorer(loaded.model, loaded.tokenizer)
    with loraprobe.load_composition(out).into(loaded.model):
        assert scorer.first_token_distribution(["Who is the spouse of Ada?"]).isfinite().all()


def test_a_base_is_spread_over_devices(device):
    if device == "cpu":
        pytest.skip("the CPU is one device")
    pytest.importorskip("accelerate")
    spread = load_base(open_base(WORLD.base), device_map="auto")
    plain = load_base(open_base(WORLD.base))
    prompts = ["Who is the spouse of Ada?", "Where does Bo live?"]
    found, wanted = (
        ModelScorer(one.model, one.tokenizer).first_token_distribution(prompts)
        for one in (spread, plain)
    )
    assert {p.device.type for p in spread.model.parameters()} == {"cuda"}
    assert relative(found, wanted) < 1e-4


SIZES = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
LAYERS = {
    f"model.layers.{i}.mlp.{name}": shape
    for i in range(2)
    for name, shape in {"up_proj": (128, 64), "down_proj": (64, 128)}.items()
}
TEXTS = [f"{'who ' * i}{'ada lives in ' * 40}" for i in range(20)]
LONG = [(text, "the mayor of ulm is " * 12) for text in TEXTS]


def scorer_on(device: str, vocab: int = 40, rows: int | str = "auto") -> ModelScorer:
    model = tiny_model("Llama", vocab_size=vocab, **SIZES).to(device)
    return ModelScorer(model, word_tokenizer(), batch_size=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["constant", "arrow", "spectr"])
def test_a_composition_adds_no_more_memory_than_is_stated(device, spec):
    """Twice its factors, and for one layer 4 values a token and rank, 2 a token and output."""
    if device == "cpu":
        pytest.skip("nothing counts the memory of the CPU")
    four, peaks = experts(4, shapes=LAYERS), []
    for composition in (None, Composition("c", four, ROUTERS.make(spec))):
        scorer = scorer_on(device, rows=4)
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with scorer.with_composition(composition):
            scorer.first_token_distribution(TEXTS)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del composition
        gc.collect()
        assert torch.cuda.memory_allocated() <= before + 2**20
    factors = sum(u.A.numel() + u.B.numel() for one in four for u in one.modules.values())
    ranks = sum(one.modules.info(path).rank for one in four for path in [next(iter(LAYERS))])
    tokens = 4 * max(len(row) for row in scorer.encoder.prompts(TEXTS))
    assert peaks[1] - peaks[0] <= 4 * (2 * factors + tokens * (4 * ranks + 2 * 128))


@contextlib.contextmanager
def limited(more: int) -> Iterator[None]:
    """The card has room for this many bytes more than it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    size = torch.cuda.memory_allocated() + more
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_is_halved(device):
    if device == "cpu":
        pytest.skip("the memory of the CPU has no limit")
    one = Composition("c", experts(2, shapes=LAYERS), ROUTERS.make("arrow"))
    found = {}
    for place in ("cpu", device):
        scorer = scorer_on(place, vocab=32768)
        room = limited(2**27) if place == device else contextlib.nullcontext()
        with scorer.with_composition(one), room:
            likely = scorer.loglikelihood(LONG)
        found[place] = torch.tensor([each.logprob for each in likely])
    assert scorer.batcher.failed and scorer.batcher.kept < scorer.batcher.failed
    assert relative(found[device], found["cpu"]) < 1e-4
    with limited(2**10), pytest.raises(OutOfMemory):
        scorer.loglikelihood(LONG)
