"""lm_eval --model loraprobe: a merge and a router score there as here, item by item."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from harness_tasks import WORLD, write_tasks

import loraprobe
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Asker, System
from loraprobe.extensions.harness.tasks import load_harness

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
GROUP = "lm_eval.models"
TASKS = {"spouse_choice": "acc", "spouse_written": "exact_match", "last_word": "acc"}
BASE, PAIR = WORLD / "base", [WORLD / "adapters/newcomers", WORLD / "adapters/steps"]


@pytest.fixture(scope="module", autouse=True)
def plugged_in():
    """The model as lm-eval finds it: by the entry point of this package, which is lazy."""
    from lm_eval.api.registry import model_registry

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"][GROUP]
    assert list(points) == ["loraprobe"]
    if "loraprobe" not in model_registry:
        point = EntryPoint("loraprobe", points["loraprobe"], GROUP)
        model_registry.register("loraprobe", target=point)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), items=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A merge and a router, as the commands write them."""
    place = tmp_path_factory.mktemp("made")
    loraprobe.merge(PAIR, "sum").save(place / "merged")
    loraprobe.compose(PAIR, router="arrow:top_k=1").save(place / "routed")
    return place


def theirs(composition, folder, **more):
    """Task -> what the harness says of each item, in order."""
    found = lm_eval.simple_evaluate(
        model="loraprobe",
        model_args=f"composition={composition},base={BASE},dtype=float32",
        tasks=list(TASKS),
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        **more,
    )
    return {
        task: [one[TASKS[task]] for one in samples if one["filter"] == samples[0]["filter"]]
        for task, samples in found["samples"].items()
    }


def ours(composition, folder):
    """The same by the loop of merge-and-eval."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loraprobe.extensions.harness.model import opened
    from loraprobe.scoring import ModelScorer

    model = AutoModelForCausalLM.from_pretrained(BASE).float().eval()
    scorer = ModelScorer(model, AutoTokenizer.from_pretrained(BASE))
    tasks = load_harness(f"lm_eval:{','.join(TASKS)}@{folder}", run_unsafe_code=True)
    rows = Asker(scorer).run([System("one", "merge", opened(str(composition)))], tasks)
    return {task: [row.value for row in rows if row.task == task] for task in TASKS}


@pytest.mark.parametrize("kind", ["merged", "routed"])
def test_every_item_scores_as_in_merge_and_eval(made, folder, kind):
    found = theirs(made / kind, folder)
    assert found == ours(made / kind, folder)
    assert all(len(values) == 12 for values in found.values())
    # The adapter knows the facts and the base does not, so the composition was in the model.
    alone = theirs(PAIR[1], folder)
    assert sum(found["spouse_written"]) > sum(alone["spouse_written"])


def test_what_cannot_be_used_is_named(made, tmp_path):
    from loraprobe.extensions.harness.model import CompositionLM

    with pytest.raises(UsageError, match="did you mean 'dtype'"):
        CompositionLM(str(made / "merged"), str(BASE), dtyp="float32")
    with pytest.raises(LoraprobeError, match="nowhere"):
        CompositionLM(str(tmp_path / "nowhere"), str(BASE))
    with pytest.raises(LoraprobeError, match="batch"):
        CompositionLM(str(made / "merged"), str(BASE), batch_size="many")


@pytest.mark.slow  # starts the command of lm-eval twice
def test_the_command_scores_and_ends_in_a_sentence(made, folder, tmp_path):
    command = [sys.executable, "-m", "loraprobe.extensions.harness", "--model", "loraprobe"]
    command += ["--include_path", str(folder), "--tasks", "last_word", "--limit", "2"]
    given = f"composition={made / 'merged'},base={BASE}"
    done = subprocess.run(
        [*command, "--model_args", given, "--output_path", str(tmp_path / "results")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(result.read_text())["results"]["last_word"]["sample_len"] == 2
    done = subprocess.run(
        [*command, "--model_args", f"composition={tmp_path / 'nowhere'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and "nowhere" in done.stderr
