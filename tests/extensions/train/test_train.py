"""`--baseline train`: an adapter trained on some of the questions, beside all that is evaluated."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import evidences
import making
import pytest
import torch

import loraprobe
from loraprobe.errors import OutOfMemory, TaskError, UsageError
from loraprobe.evaluation import System
from loraprobe.extension import SourceInputs
from loraprobe.extensions.train import training
from loraprobe.extensions.train.part import AboutTraining, TrainedRecord, _curve
from loraprobe.extensions.train.recipe import recipe_of, sizes
from loraprobe.extensions.train.source import TrainedSource
from loraprobe.front_matter import read_front_matter
from loraprobe.options import Options
from loraprobe.records import QUESTION
from loraprobe.report.answer import answer
from loraprobe.session import Session
from loraprobe.tasks import Item, Task
from loraprobe.verdict import decide

N = 48


@pytest.fixture(scope="module")
def world():
    *adapters, _, _, _, base, _, _ = making.shipped("skill-and-facts")
    return adapters, base


@pytest.fixture
def task(tmp_path):
    """Questions whose answer depends on one word, which a few examples show and nobody guesses."""
    answers = {"Where does the {} live?": "Ziburg", "Who is the {} of Bo?": "Zital", "{}?": "live"}
    rows = [
        {"prompt": text.format(f"{a}{b}"), "answer": answer}
        for a, b in itertools.product("ABCD", "do ru mi ta".split())
        for text, answer in answers.items()
    ]
    file = tmp_path / "friends.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def run(world, task, baseline="train:items=18", **more):
    adapters, base = world
    given = {"methods": "sum", "routers": (), "threads": 1, "all_items": True, **more}
    return loraprobe.merge_and_eval(adapters, base=base, tasks=task, baseline=baseline, **given)


def test_what_was_trained_is_scored_on_other_items_advised_and_written(world, task, tmp_path):
    place, kept, (adapters, base) = tmp_path / "out", tmp_path / "kept.jsonl", world
    kept.write_text("\n".join(f'{{"prompt": "Say {k}.", "answer": "no"}}' for k in range(8)))
    words = ["--baseline", "train:items=18", "--guard", kept, "--all-items", "--margin", "0.5"]
    words += ["-o", place]
    words += ["--method", "sum", "--router", "none", "--threads", "1"]
    code, found = making.answered(
        "merge-and-eval", *adapters, "--base", base, "--task", task, *words
    )
    scores = {row["system"]: row for row in found["evaluation"]}
    own = scores["trained"]
    assert (own["kind"], own["n"]) == ("trained", N - 18) and own["value"] > 0.6
    assert scores["base"]["n"] == N - 18 and scores["base"]["value"] < 0.2
    verdict = found["verdict"]
    assert (code, verdict["decision"], verdict["action"]) == (1, "unlikely", "train-target-adapter")
    assert "training-gains-more" in {row["code"] for row in verdict["reasons"]}
    (record,) = found["training"]
    assert (record["items"], record["held_out"], record["left"]) == (18, 5, N - 18)
    assert record["loss"] < record["loss_before"]
    assert record["best_step"] <= record["steps"]
    assert "trained" in {row["system"] for row in found["guards"]}
    fields = read_front_matter((place / "README.md").read_text())["loraprobe"]
    assert fields["trained"]["items"] == 18 and fields["sources"] == []
    assert str(tmp_path) not in (place / "README.md").read_text()
    code, audit = making.answered("inspect", place)
    assert code == 0 and audit["adapters"][0]["rank"]["max"] == 16


def test_without_o_the_next_command_writes_it_from_what_was_kept(world, task, monkeypatch):
    found = run(world, task, margin=0.5)
    step = found.verdict.next
    assert step.verb == "merge-and-eval" and ("-o", "DIR") in step.options
    assert ("--baseline", "train:items=18") in step.options
    monkeypatch.setattr(training, "mean_loss", lambda *_: 1 / 0)  # nothing is trained again
    again = run(world, task, margin=0.5, resume=True)
    assert again.training == found.training
    assert again.evaluation.scores == found.evaluation.scores


def test_a_curve_has_nested_parts_and_the_whole_under_the_name_that_is_advised(world, task):
    found = run(world, task, "train:items=16,steps=10,curve=true")
    names = [row.system for row in found.training]
    assert names == ["trained:8", "trained"] and [r.items for r in found.training] == [8, 16]
    assert {*names} <= {row.system for row in found.evaluation.scores}
    assert sizes(recipe_of("train:curve=true"), 64) == [8, 16, 32, 64]
    assert sizes(recipe_of("train:curve=true"), 40) == [8, 16, 32, 40]
    assert sizes(recipe_of("train"), 64) == [64]


def planned(spec, monkeypatch, best=0.3, first=0.3, seconds=1.0, ends=math.inf):
    """What is trained, and what is left out, where the best composition and the first point score
    so much, and training on 8 questions takes so many seconds of a clock that it moves on."""
    clock, taken = [0.0], []
    monkeypatch.setattr("loraprobe.extensions.train.source.time.perf_counter", lambda: clock[0])

    def trained_on(self, given, start, items, ends):
        clock[0] += seconds * items / 8
        taken.append(items)
        row = TrainedRecord(
            "", items, 2, 40, 16, 0, False, 9, 9, 2.0, 1.0, 1e-3, "steps", 0, "base"
        )
        row = replace(row, system=self._name(items, given.parts), seconds=seconds * items / 8)
        return System(row.system, "trained"), row

    def ask(systems):
        found = evidences.evidence({"base": 0.1, "a": 0.2, "b": 0.2, "sum": best})
        rows = [evidences.score("base", first)] if any(s.kind == "trained" for s in systems) else []
        rows = [replace(row, system="trained:8", kind="trained") for row in rows]
        return evidences.replaced(found, scores=(*found.measured.scores, *rows))

    monkeypatch.setattr(TrainedSource, "_trained", trained_on)
    source, session = TrainedSource(recipe_of(spec)), Session()
    parts = source.set_apart([plain_task(160)], session.options)
    given = SourceInputs(None, None, parts, (), session, ask, None, ends)
    (found,) = source.make(given).records
    assert [row.items for row in found.training] == sorted(taken)
    return taken, {row.items: row.why for row in found.not_trained}


CURVE = "train:curve=true"  # of 64 items
POLICY = [
    ("train", {"best": 1.0}, [64], {}),
    (CURVE, {}, [64, 8, 16, 32], {}),
    (CURVE, {"best": 0.94}, [64, 8, 16, 32], {}),
    (CURVE, {"best": 0.97}, [64], dict.fromkeys((8, 16, 32), "no-room")),
    (CURVE, {"first": 0.9}, [64, 8], dict.fromkeys((16, 32), "gains-already")),
    (CURVE, {"first": 0.33}, [64, 8, 16, 32], {}),
    (CURVE + ",minutes=1", {"seconds": 5.0}, [64, 8, 16], {32: "time"}),
    (CURVE, {"seconds": 6.0, "ends": 60}, [64, 8], dict.fromkeys((16, 32), "time")),
    (CURVE, {"seconds": 9.0, "ends": 60}, [64], dict.fromkeys((8, 16, 32), "time")),
    (CURVE, {"ends": 0}, [], dict.fromkeys((8, 16, 32, 64), "time")),
]


@pytest.mark.parametrize(("spec", "given", "trained", "left_out"), POLICY)
def test_a_curve_goes_as_far_as_it_can_change_the_advice_and_the_time_allows(
    spec, given, trained, left_out, monkeypatch
):
    assert planned(spec, monkeypatch, **given) == (trained, left_out)


def test_what_was_left_out_of_a_curve_is_told(world, task, monkeypatch):
    found = run(world, task, "train:items=18,curve=true,minutes=0.01", margin=0.5)
    left_out = [row.items for row in found.not_trained]
    assert len(found.training) + len(left_out) == 3 and 16 in left_out
    assert found.training[-1].ended == "time" and found.training[-1].items == 18
    assert any("16 questions" in note for note in found.notes)
    assert {row.why for row in found.not_trained} == {"time"}
    assert any(label == "curve" for label, _ in answer(found).lines)


def test_the_demo_tells_how_many_questions_reach_the_adapter_of_the_target():
    code, found = making.answered(
        "demo", "--scenario", "target-adapter", "--baseline", "train:curve=true", "--threads", "1"
    )
    scores = {row["system"]: row["value"] for row in found["evaluation"] if row["part"] == QUESTION}
    assert code == 1 and scores["trained"] < 0.2 < 0.9 < scores["spouse-city"]
    left_out = [(row["items"], row["why"], row["other"]) for row in found["not_trained"]]
    assert left_out == [(n, "no-room", "spouse-city") for n in (8, 16, 32)]
    assert [row["items"] for row in found["training"]] == [64]


@pytest.mark.parametrize(
    ("scores", "reached"),
    [((0.1, 0.2, 0.3), None), ((0.1, 0.7, 0.8), 16), ((0.7, 0.6, 0.8), 8)],
)
def test_the_curve_names_the_fewest_questions_that_reach_what_is_compared(scores, reached):
    evidence = evidences.known(evidences.evidence({"base": 0.1, "a": 0.3, "b": 0.2, "sum": 0.6}))
    names = {"trained:8": 8, "trained:16": 16, "trained": 32}
    own = [
        replace(evidences.score("base", value), system=name, kind="trained")
        for name, value in zip(names, scores, strict=True)
    ]
    evidence = evidences.replaced(evidence, scores=(*evidence.measured.scores, *own))
    rows = [
        TrainedRecord(name, n, 2, 40, 16, 0, False, 9, 9, 2.0, 1.0, 1e-3, "steps", 0, "")
        for name, n in names.items()
    ]
    text = _curve(decide(evidence), evidence, rows).rpartition("; ")[2]
    assert text.startswith("8, 16 and 32" if reached is None else f"{reached} questions")


@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_a_warm_start_is_a_sum_of_the_merge_and_what_was_learned(world, task, method, monkeypatch):
    made, make = [], TrainedSource.make

    def kept(self, given):
        added = make(self, given)
        made.append((given.composed, added.systems))
        return added

    monkeypatch.setattr(TrainedSource, "make", kept)
    found = run(world, task, "train:items=16,steps=20,from=best", methods=method)
    (record,) = found.training
    (((start,), (system,)),) = made
    assert record.start == start.name == method and record.best_step > 0
    *merged, own = system.composition.experts
    assert merged == [*start.composition.experts]
    gate = 1 / len(merged)  # a merge by ties is one adapter already
    assert system.composition.router.weights == (*[gate] * len(merged), 1.0)
    for name, update in system.artifact.adapter.modules.items():
        whole = making.dense(own.modules[name])
        for one in merged:
            whole += gate * making.dense(one.modules[name]) if name in one.modules else 0
        torch.testing.assert_close(making.dense(update), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="from=best"):
        run(world, task, "train:items=16,from=best", methods=(), routers="arrow")


FAST = ["--method", "sum", "--router", "none", "--threads", "1"]
WRONG = {
    "train:items=4": (UsageError, "between 8"),
    "train:lr=2": (UsageError, "between"),
    "train:rank=0": (UsageError, "between 1"),
    "train:minutes=0": (UsageError, "between"),
    "train:itemz=9": (UsageError, "items"),
    "lora": (UsageError, "train"),
    "train:items=40": (TaskError, "items=18"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_cannot_be_trained_is_refused_before_the_base_is_loaded(world, task, spec):
    error, said = WRONG[spec]
    with pytest.raises(error, match=said):
        run(world, task, spec)


def test_a_quantised_base_is_refused(world, task):
    with pytest.raises(UsageError, match="quantize"):
        run(world, task, quantize="4bit")
    model = making.tiny_llama()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UsageError, match="stored quantised"):
        train(model)


WRONG_ITEMS = {
    "few": (lambda k, row: row if k < 30 else None, "38"),
    "too long": (lambda k, row: {**row, "answer": "Bo " * 400}, "256"),
    "no answers": (lambda k, row: {"prompt": row["prompt"]}, "answer"),
}


@pytest.mark.parametrize("kind", WRONG_ITEMS)
def test_items_of_which_nothing_is_learned_are_an_error_with_its_cure(world, task, tmp_path, kind):
    change, said = WRONG_ITEMS[kind]
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    rows = [changed for k, row in enumerate(rows) if (changed := change(k, row))]
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("\n".join(map(json.dumps, rows)))
    words = [*world[0], "--base", world[1], "--task", wrong, "--baseline", "train", *FAST]
    called = making.call("merge-and-eval", *map(str, words), "-o", str(tmp_path / "out"))
    assert called.exit_code == 2 and said in called.stderr and not (tmp_path / "out").exists()


def test_choices_and_losses_are_learned_from_their_gold_answers(world, task, tmp_path):
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    rows = [{**row, "choices": ["Zital", "Ziburg", "live"]} for row in rows]
    choices = tmp_path / "choices.jsonl"
    choices.write_text("\n".join(map(json.dumps, rows)))
    for file, more in ((choices, {}), (task, {"metric": "answer_loss", "margin": 0.1})):
        found = run(world, file, f"train:items=18,steps={6 if more else 30}", **more)
        scores = {row.system: row.value for row in found.evaluation.scores}
        better = scores["base"] - scores["trained"] if more else scores["trained"] - scores["base"]
        assert better > 0.2 and found.training[0].loss < found.training[0].loss_before
        text = next(text for label, text in answer(found).lines if label in ("trained", "better"))
        low, high = (float(one) for one in text.partition("[")[2].partition("]")[0].split(", "))
        assert low <= float(text.partition(" ")[0]) <= high


def test_what_was_trained_before_an_interruption_is_kept(world, task, monkeypatch):
    spec, taken, descend = "train:items=16,steps=4,curve=true", [], training._descend

    def interrupted(scorer, rows, factors):
        taken.append(len(rows))
        if len(taken) == 6:  # in the second training
            raise KeyboardInterrupt
        descend(scorer, rows, factors)

    monkeypatch.setattr(training, "_descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(world, task, spec)
    found = run(world, task, spec, resume=True)
    assert len(taken) == 6 + 4 and [row.items for row in found.training] == [8, 16]


@pytest.mark.parametrize("limit", ["full", "no directory"])
def test_where_nothing_can_be_written_one_sentence_says_so(world, task, tmp_path, limit):
    place = tmp_path / "out"
    if limit == "no directory":
        place = tmp_path / "file" / "out"
        (tmp_path / "file").write_text("no directory")
    words = [*world[0], "--base", world[1], "--task", task, "--baseline", "train:steps=30", *FAST]
    words += ["-o", place, "--margin", "0.5"]
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,) * 2); "
    code = (code if limit == "full" else "") + "from loraprobe.__main__ import main; main()"
    called = subprocess.run(
        [sys.executable, "-c", code, "merge-and-eval", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert called.returncode == 2 and "Traceback" not in called.stderr
    assert called.stderr.strip().splitlines()[-1].count("written") == 1 and not place.exists()


def test_the_dry_run_tells_time_and_memory_of_training(world, task):
    words = [*world[0], "--base", world[1], "--task", task, "--dry-run", *FAST]
    plain, trained = (
        making.answered("merge-and-eval", *words, *more)[1]["estimate"]
        for more in ((), ("--baseline", "train:items=18,rank=64"))
    )
    model = making.tiny_llama()
    assert {*trained["systems"]} - {*plain["systems"]} == {"trained"}
    assert trained["seconds"] > plain["seconds"]
    assert trained["memory_bytes"] > plain["memory_bytes"]
    assert sum("Training takes" in hint for hint in trained["hints"]) == 1
    factors, kept, least = training.memory_of(Rows(model), ROWS, recipe_of("train"))
    wide = training.memory_of(Rows(model), ROWS, recipe_of("train:rank=32"))
    assert wide[0] == 2 * factors and 0 < least < kept
    longer = [([*ids, *ids], start) for ids, start in ROWS]
    assert training.memory_of(Rows(model), longer, recipe_of("train"))[1] > 1.5 * kept
    assert not any("lora" in name for name, _ in model.named_modules())


def plain_task(n=48, **fields):
    items = [Item(str(k), f"p{k}", ("a",), group=str(k // 2)) for k in range(n)]
    return replace(Task("t", tuple(items)), **fields)


def test_whole_groups_are_set_apart_and_few_items_say_how_many_are_needed():
    source, options = TrainedSource(recipe_of("train:items=16")), Options()
    parts = source.set_apart([plain_task()], options)
    apart, left = ({item.group for item in part[0].items} for part in (parts.apart, parts.left))
    assert not apart & left and parts.items == (16, 32)
    assert source.set_apart([plain_task()], options) == parts
    with pytest.raises(TaskError, match="38"):
        TrainedSource(recipe_of("train")).set_apart([plain_task(20)], options)
    one = tuple(replace(item, group="one") for item in plain_task().items)
    with pytest.raises(TaskError, match="group"):
        source.set_apart([plain_task(items=one)], options)
    texts = tuple(replace(item, answers=()) for item in plain_task().items)
    with pytest.raises(TaskError, match="gold answers"):
        source.set_apart([plain_task(items=texts)], options)


def test_the_dry_run_counts_the_texts_of_training():
    given = TrainedSource(recipe_of("train:items=16,steps=10,curve=true"))
    found = given.expected(given.set_apart([plain_task()], Options()))
    # 12 of 16 items are learned, in batches of 8: 3 passes a text, and 4 held out a look
    assert found == {"trained:8": 10 * 3 * 6 + 2 * 11, "trained": 10 * 3 * 8 + 4 * 6}


# ---- the loop ------------------------------------------------------------------------------------


ROWS = [([k, 7, 3, 5, k], 3) for k in range(1, 13)]


class Rows:
    """What the loop needs of a scorer, over rows of tokens. small: memory for checkpoints alone."""

    def __init__(self, model, small=False):
        self.model, self.pad, self.vocab_size, self.small = model, 0, 40, small
        self.batcher = self

    def split(self, lengths, starts, vocab_size):
        return [range(len(lengths))[at : at + 4] for at in range(0, len(lengths), 4)]

    def run(self, batch, work):
        if self.small and not self.model.model.gradient_checkpointing:
            raise OutOfMemory("It is full.")
        work(batch)


def train(model, rows=ROWS, held_out=ROWS[:3], spec="train:steps=12,lr=0.01", seed=0, **more):
    steps = []
    given = Rows(model, **more), rows, held_out, recipe_of(spec), seed
    with training.trained(*given, lambda step, most: steps.append((step, most))) as (peft, made):
        kept = [p.detach().clone() for p in peft.parameters() if p.requires_grad]
    return made, kept, steps


def test_the_model_is_as_before_afterwards():
    model = making.tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    made, kept, steps = train(model)
    assert steps == [(k, 12) for k in range(1, made.steps + 1)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modules == [type(module) for module in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert made.loss < made.loss_before and any(bool(one.any()) for one in kept)


def test_one_seed_gives_one_adapter():
    runs = [train(making.tiny_llama(), seed=seed)[1] for seed in (3, 3, 4)]
    assert all(map(torch.equal, runs[0], runs[1])) and not all(map(torch.equal, runs[0], runs[2]))


@pytest.mark.filterwarnings("error")  # a user sees none
def test_what_does_not_fit_is_computed_again_in_the_pass_back():
    again, model = [], making.tiny_llama()
    attention = model.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda *_: again.append(torch.is_grad_enabled()))
    wide = train(model)[1]
    once = sum(again)
    again.clear()
    narrow = train(model, small=True)[1]
    assert sum(again) == 2 * once > 0 and all(map(torch.allclose, narrow, wide))
    assert not model.model.gradient_checkpointing and not any(m.training for m in model.modules())
    model.supports_gradient_checkpointing = False
    with pytest.raises(OutOfMemory):
        train(model, small=True)


def test_the_gradient_of_a_batch_is_that_of_its_mean_loss():
    from torch.nn import functional

    model = making.tiny_llama().float()
    weight = model.model.layers[0].mlp.up_proj.weight
    rows = [([1, 2, 3, 4, 5], 3), ([5, 4, 3, 2, 1, 6, 7], 2)]
    with training.differentiable(model):
        weight.requires_grad_(True)
        training._descend(Rows(model), rows, [weight])
    own = weight.grad.clone()
    weight.grad = None
    losses = []
    for ids, start in rows:
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
        losses.append(functional.cross_entropy(logits, torch.tensor(ids[start:])))
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(own, weight.grad, rtol=1e-4, atol=1e-6)


def test_training_ends_where_held_out_answers_get_no_better():
    wrong = [([k, 7, 3, 9, 9], 3) for k in range(1, 4)]
    made, *_ = train(making.tiny_llama(), held_out=wrong, spec="train:lr=0.01")
    assert made.steps <= made.best_step + training.PATIENCE * training.epoch_of(len(ROWS))
    assert made.steps < training.most_steps(recipe_of("train"), len(ROWS))


def test_a_loss_that_is_no_number_is_an_error_and_the_model_stays(monkeypatch):
    model = making.tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(training.TrainingError, match="learning rate"):
        train(model)
    model.lm_head.weight.data[:] = before["lm_head.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- what is told --------------------------------------------------------------------------------


def told(value, guards=(), **scores):
    given = {"base": 0.1, "a": 0.3, "b": 0.2, "shrunk:a": 0.2, "random-partner": 0.1, **scores}
    evidence = evidences.known(evidences.evidence(given))
    row = replace(evidences.score("base", value), system="trained", kind="trained")
    scores = (*evidence.measured.scores, row)
    evidence = evidences.replaced(evidence, scores=scores, guards=guards)
    verdict = decide(evidence, [AboutTraining()])
    return verdict, {code for code in verdict.codes if code.startswith("training-")}


@pytest.mark.parametrize(
    ("trained", "composed", "decision", "code"),
    [
        (0.9, 0.6, "likely", "training-gains-more"),
        (0.3, 0.6, "likely", "training-gains-less"),
        (0.62, 0.6, "likely", "training-not-told-apart"),
        (0.9, 0.3, "unlikely", "training-gains-more"),
        (0.1, 0.3, "unlikely", "training-gains-less"),
    ],
)
def test_a_verdict_says_how_training_stands_to_what_it_is_about(trained, composed, decision, code):
    verdict, codes = told(trained, sum=composed)
    assert verdict.decision == decision and codes == {code}
    assert verdict.composes == (decision == "likely")
    assert (str(verdict.action) == "train-target-adapter") == (
        decision == "unlikely" and code == "training-gains-more"
    )


def test_a_guard_that_training_is_shown_to_lose_is_told():
    lost = evidences.guards(trained=-0.2), evidences.guards(trained=-0.04, sum=-0.2)
    verdict, codes = told(0.9, lost[0], sum=0.6)
    assert codes == {"training-gains-more", "training-is-unsafe"}
    assert evidences.reason(verdict, "training-is-unsafe").value == pytest.approx(-0.18)
    assert "training-is-unsafe" not in told(0.9, lost[1], sum=0.6)[1]
