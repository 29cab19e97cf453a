"""`screen --task` on libraries in which is known what each adapter knows, and on noise."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import making
import numpy as np
import pytest
from planted_answers import Planted
from planted_library import FIRST, SECOND, write_chained, write_library

import loraprobe.demo
from loraprobe.defaults import HOPELESS
from loraprobe.evaluation import ResponseCache, System, asking, rounds
from loraprobe.extensions.screen import screening
from loraprobe.extensions.screen.forecasting import ForecastTexts
from loraprobe.extensions.screen.ranking import choose, rank
from loraprobe.extensions.screen.screening import Screen
from loraprobe.extensions.screen.splits import split_for_screening
from loraprobe.options import Options
from loraprobe.pipeline.evaluate import SequentialEvaluation
from loraprobe.pipeline.inputs import Inputs
from loraprobe.results import NAME
from loraprobe.session import Session
from loraprobe.tasks import Item, Task
from loraprobe.verdict import Evidence, decide_compositions

NOISE = {"noise0": {"bo": "?"}, "noise1": {"?": "cy"}, "noise2": {".": "?"}}
PAIR = {"firsts": FIRST, "seconds": SECOND}
EVERY = FIRST | SECOND


def screened(words, *options, code=None):
    few = ("--method", "sum", "--keep", "3")
    found = making.call(*words, "--json", *few, *options)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    if code is not None:
        assert found.exit_code == code, found.stdout + found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A pair that composes among adapters that know nothing."""
    place = tmp_path_factory.mktemp("library")
    return write_library(place, {**NOISE, **PAIR}), place


@pytest.fixture(scope="module")
def found(library):
    return screened(library[0], code=0)


def test_a_pair_that_composes_is_found_and_proved(found):
    verdict, (best, *_) = found["verdict"], found["shortlist"]
    assert verdict["decision"] == "likely" and verdict["action"] in ("merge", "route")
    assert best["adapters"] == ["firsts", "seconds"] and best["outcome"] == "compose"
    assert (best["place"], best["looked_at"]) == (1, 10 + 10)
    assert best["system"] == verdict["system"] and "(firsts, seconds)" in verdict["system"]
    assert best["forecast"]["gain"] == pytest.approx(0.75, abs=0.15)  # all but prompts with "of"
    assert best["gain"]["difference"] == pytest.approx(0.75, abs=0.15)
    assert verdict["next"].split()[1] in ("merge", "route")
    assert verdict["next"].split()[2:4] == ["firsts", "seconds"]
    assert found["rounds"]["total"] == 60
    alone = {
        a["name"]: {s["part"]: s["n"] for s in a["scores"]} for a in found["library"]["adapters"]
    }
    assert alone == {name: {"question": 20} for name in (*NOISE, *PAIR)}
    assert any(reason["code"] == "chosen-from-library" for reason in verdict["reasons"])


@pytest.mark.needs("--serve")
def test_what_a_screen_advises_is_what_servers_run(library):
    found = screened(library[0], "--router", "arrow", "--serve", "vllm")
    verdict = found["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("likely", "merge")
    assert verdict["system"] == "sum(firsts, seconds)"
    assert "--method sum --serve vllm -o DIR" in verdict["next"]
    (line,) = found["serve"]
    assert line.startswith("vllm serve ") and line.endswith(" --lora-modules sum=DIR")


@pytest.mark.needs("--baseline")
def test_what_is_trained_stands_beside_the_sets_that_are_proved(library):
    found = screened(library[0], "--baseline", "train:items=50,steps=4", code=0)
    scores = {row["system"]: row for row in found["evaluation"]}
    assert {scores[name]["n"] for name in ("base", "trained", "sum(firsts, seconds)")} == {30}
    assert scores["trained"]["kind"] == "trained" and found["rounds"]["total"] == 50
    assert [(row["items"], row["left"]) for row in found["training"]] == [(50, 50)]
    codes = {reason["code"] for reason in found["verdict"]["reasons"]}
    assert codes & {"training-gains-more", "training-gains-less", "training-not-told-apart"}


@pytest.mark.needs("--baseline")
def test_where_training_is_best_the_next_command_of_a_screen_writes_it(tmp_path, monkeypatch):
    words = write_library(tmp_path, NOISE)
    found = screened(words, "--baseline", "train:items=50,lr=0.02", code=3)
    verdict = found["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("inconclusive", "train-target-adapter")
    monkeypatch.chdir(tmp_path)
    verb, *rest = verdict["next"].split()[1:]
    assert verb == "merge-and-eval"
    code, again = making.answered(verb, *rest, "--exit-zero")
    own = [row["training"][-1]["items"] for row in (found, again)]
    assert code == 0 and own == [50, 50] and (tmp_path / "DIR" / "adapter_config.json").is_file()


@pytest.mark.needs("--baseline")
def test_nothing_is_trained_where_one_adapter_leaves_no_room(tmp_path):
    words = write_library(tmp_path, {**NOISE, "all": {**EVERY, "of": "bo", "bo": "is"}}, items=220)
    found = screened(words, "--baseline", "train", "--margin", "0.1", code=1)
    assert found["verdict"]["action"] == "use-single:all" and found["training"] == []
    assert any(note.startswith("trained was not made") for note in found["notes"])


@pytest.mark.needs("--baseline")
def test_a_screen_that_trains_without_questions_is_refused(library):
    words = library[0]
    at = words.index("--task")
    called = making.call(*words[:at], *words[at + 2 :], "--baseline", "train")
    assert called.exit_code == 2 and "--baseline" in called.stderr


CHOICE = {"choices": ["cy", "mayor"], "answer": "mayor"}  # a longer word of one token


@pytest.mark.parametrize(
    ("last", "decision", "outcome"),
    [("lives", "likely", "guard-kept"), ("the", "unlikely", "guard-lost")],
)
def test_a_set_that_loses_a_guard_is_not_advised(library, tmp_path, last, decision, outcome):
    """The base prefers the longer word; `firsts` knows another word after "the"."""
    guard = tmp_path / "guard.jsonl"
    rows = [{"prompt": f"{k} {last}", **CHOICE} for k in range(300)]
    guard.write_text("\n".join(map(json.dumps, rows)))
    verdict = screened(library[0], "--guard", str(guard), "--margin", "0.1")["verdict"]
    assert verdict["decision"] == decision and verdict["composes"] is (decision == "likely")
    told = [r["message"] for r in verdict["reasons"] if r["code"] == outcome]
    assert any(message.startswith("sum(firsts, seconds)") for message in told)


OPEN = ("unlikely", "inconclusive")
KNOWS = {**NOISE, **PAIR, "expert": EVERY}
KNOWS_ALL = {**KNOWS, "expert": {**EVERY, "of": "bo", "bo": "is"}}


def test_where_no_set_gains_the_action_says_what_to_use(tmp_path):
    found = screened(write_library(tmp_path, KNOWS))
    verdict = found["verdict"]
    assert verdict["decision"] in OPEN and verdict["action"] == "use-single:expert"
    assert any(row["kind"] == "merge" for row in found["evaluation"])
    chance = (verdict["gain"] or {}).get("probability")
    hopeless = chance is not None and chance <= HOPELESS  # what is advised comes next
    if verdict["decision"] == "inconclusive" and not hopeless:  # merge-and-eval takes no single one
        looks = "task sample" if verdict["missing"] == "answers" else "screen"
        assert verdict["next"].startswith(f"loraprobe {looks} ")
    assert "expert" in verdict["next"] and found["shortlist"][0]["adapters"] == ["expert"]


def asked_alone(document):
    """How many questions each adapter answered alone."""
    return {a["name"]: sum(s["n"] for s in a["scores"]) for a in document["library"]["adapters"]}


def test_where_an_adapter_leaves_no_room_nothing_is_composed(tmp_path):
    words = write_library(tmp_path, KNOWS_ALL, items=140)
    found = screened(words)
    verdict = found["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("unlikely", "use-single:expert")
    assert {(row["system"], row["n"]) for row in found["evaluation"]} == {
        ("base", 100),
        ("expert", 100),
    }
    assert asked_alone(found) == dict.fromkeys(KNOWS_ALL, 20)  # one pass was enough
    assert [row["adapters"] for row in found["shortlist"]] == [["expert"]]


def test_where_the_base_leaves_no_room_no_adapter_is_asked(library, tmp_path, monkeypatch):
    words = [*library[0][:-1], str(tmp_path / "task.jsonl")]
    rows = [{"prompt": f"bo {k} is", **CHOICE} for k in range(140)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "library.txt").write_text("\n".join(words[1:6]))
    monkeypatch.chdir(tmp_path)
    given = ["screen", "@library.txt", *words[6:]]
    found = screened(given)
    assert found["verdict"]["action"] == "use-base"
    assert set(asked_alone(found).values()) == {0}
    chosen = next(r for r in found["verdict"]["reasons"] if r["code"] == "chosen-from-library")
    assert "20 questions" in chosen["message"] and "0 adapters" not in chosen["message"]
    assert found["verdict"]["next"].split()[:3] == ["loraprobe", "screen", "@library.txt"]
    assert "HARDER-task.jsonl" in found["verdict"]["next"]


def test_sums_of_sets_choose_which_are_proved(library, monkeypatch):
    """Of ten sets, a forecast that is wrong puts the best one last."""
    ranking = Screen.ranking

    def wrong(self, names):
        right = ranking(self, names)
        forms = [replace(f, order=(*f.order[1:], f.order[0])) for f in right.forms]
        return replace(right, forms=forms)

    monkeypatch.setattr(Screen, "ranking", wrong)
    found = screened(library[0], code=0)
    best = found["shortlist"][0]
    assert (best["adapters"], best["place"]) == (["firsts", "seconds"], 10)
    assert set(asked_alone(found).values()) == {20}
    chosen = next(r for r in found["verdict"]["reasons"] if r["code"] == "chosen-from-library")
    assert "6 passes over 20 questions, the sums of 10 sets over 20 more" in chosen["message"]


def counted(monkeypatch, stop=None):
    """Counts questions and readings; `stop` interrupts the run at so many calls."""
    calls = {"ask": 0, "read": 0}

    def counting(name, real):
        def call(*args, **kwargs):
            calls[name] += 1
            if sum(calls.values()) == stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    for name, owner in {"ask": asking, "read": ForecastTexts}.items():
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return calls


def comparable(document):
    """A document without what may differ between two runs."""
    document.pop("provenance")
    document["notes"] = [n for n in document["notes"] if "earlier run" not in n]
    return document


def test_an_interrupted_run_goes_on_where_it_was(library, found, own_cache, monkeypatch):
    words, whole = library[0], comparable(dict(found))
    with monkeypatch.context() as patch:
        counted(patch, stop=6)
        few = ("--json", "--method", "sum", "--keep", "3")
        assert making.call(*words, *few).exit_code != 0
    for reads in (6 - 2, 0):  # base and an adapter were read before, and then all
        with monkeypatch.context() as patch:
            calls = counted(patch)
            assert comparable(screened(words, "--resume")) == whole
            assert calls["read"] == reads and (reads or not calls["ask"])
    (responses,) = own_cache.rglob(NAME)
    rows = [json.loads(line) for line in responses.read_text().splitlines()]
    keys = [tuple(row.get(k) for k in ("system", "task", "part", "item")) for row in rows]
    assert len(keys) == len(set(keys))


def test_one_adapter_more_is_the_only_one_that_is_read(tmp_path, own_cache, monkeypatch):
    few = {name: table for name, table in {**NOISE, **PAIR}.items() if name != "noise2"}
    screened(write_library(tmp_path / "few", few))
    more = write_library(tmp_path / "more", few | {"noise2": NOISE["noise2"]})
    calls = counted(monkeypatch)
    again = screened(more, "--resume")
    assert len(again["library"]["adapters"]) == 5 and calls["read"] == 1
    monkeypatch.undo()
    monkeypatch.setenv("LORAPROBE_CACHE", str(own_cache / "another"))
    assert comparable(again) == comparable(screened(more, "--resume"))


def budget_for(monkeypatch, calls):
    """A budget that is over after so many looks at it."""
    left = iter([100.0] * calls)
    monkeypatch.setattr(screening, "left", lambda session, share=1.0: next(left, -1.0))


def test_a_budget_ends_the_screening_and_the_proof(library, monkeypatch):
    budget_for(monkeypatch, 3)
    found = screened(library[0], "--budget", "5")
    asked = [a["name"] for a in found["library"]["adapters"] if a["scores"]]
    assert len(asked) == 3  # adapters, then the time was over
    assert "firsts" in asked  # which adds most, so that it is asked before those that come first
    assert found["rounds"]["used"] == 1 and len(found["shortlist"]) == 1
    assert any("--budget" in note for note in found["notes"])
    chosen = next(r for r in found["verdict"]["reasons"] if r["code"] == "chosen-from-library")
    assert f"3 of {len(found['library']['adapters'])} adapters" in chosen["message"]


def test_a_budget_for_one_adapter_is_refused(library, monkeypatch):
    budget_for(monkeypatch, 1)
    refused = making.call(*library[0], "--budget", "5")
    assert refused.exit_code == 2 and "--budget" in refused.stderr


def test_what_a_budget_left_out_decides_nothing(tmp_path, monkeypatch):
    words = write_library(tmp_path, {**NOISE, "seconds": SECOND, "firsts": {"who": "bo"}})
    whole = screened(words)["verdict"]
    assert whole["decision"] in OPEN
    assert whole["action"] in ("train-target-adapter", "gather-evidence")
    budget_for(monkeypatch, 3)
    verdict = screened(words, "--budget", "5", code=3)["verdict"]
    assert (verdict["decision"], verdict["missing"]) == ("inconclusive", "time")
    assert verdict["next"].startswith("loraprobe screen ") and "--resume" in verdict["next"]
    assert "--budget" not in verdict["next"]


def test_a_chain_of_the_best_knowers_of_the_hops_is_named_and_can_be_run(tmp_path):
    tables = {**NOISE, "who": {"who": "ada", "the": "cy"}, "whose": {"ada": "bo", "cy": "mayor"}}
    words = write_chained(tmp_path / "library", tables)
    found = screened(words, code=1)
    verdict = found["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("unlikely", "chain")
    assert [(row["hop"], row["adapter"]) for row in found["chain"]] == [(1, "who"), (2, "whose")]
    (row,) = [row for row in found["shortlist"] if row["kind"] == "chain"]
    assert row["adapters"] == ["who", "whose"] and row["outcome"] == "chain"
    assert row["gain"]["difference"] == 1.0
    assert "PeftModel.from_pretrained(base, 'who', adapter_name='who')" in verdict["next"]
    assert "model.load_adapter('whose', adapter_name='whose')" in verdict["next"]


@pytest.mark.parametrize("apart", [True, False], ids=["two tasks", "half of one task"])
def test_items_without_worked_steps_stand_beside_items_with_them(library, tmp_path, apart):
    words, place = library
    own = (place / "task.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in own]
    for row in rows[:: 1 if apart else 2]:
        row["cot_prompt"] = row["prompt"]
    worked = tmp_path / "worked.jsonl"
    worked.write_text("\n".join(map(json.dumps, rows)))
    words = [*words, "--task", str(worked)] if apart else [*words[:-1], str(worked)]
    found = screened(words)
    best = found["shortlist"][0]
    assert best["adapters"] == ["firsts", "seconds"] and best["outcome"] == "compose"
    assert best["forecast"]["part"] == best["gain"]["part"]
    assert (best["gain"]["task"] is None) is apart
    items = {(row["task"], row["part"]): row["n"] for row in found["evaluation"]}
    assert (0 < items["worked", "steps"] < items["worked", "question"]) is not apart


@pytest.mark.slow  # a model that generates
def test_sets_that_gain_step_by_step_are_forecast():
    world = Path(loraprobe.demo.__file__).parent / "small-world"
    words = ["screen", *(str(world / "adapters" / name) for name in ("newcomers", "steps"))]
    words += ["--base", str(world / "base"), "--task", str(world / "tasks" / "newcomers.jsonl")]
    words += ["--items", "20", "--limit", "50", "--max-new-tokens", "24"]
    found = screened(words)
    row, chain = found["shortlist"]
    assert chain["kind"] == "chain"
    assert row["gain"]["part"] == row["forecast"]["part"] == "steps"
    assert row["forecast"]["gain"] > 0.3 and row["gain"]["difference"] > 0.3
    chosen = next(r for r in found["verdict"]["reasons"] if r["code"] == "chosen-from-library")
    assert "3 passes over 20 questions, then" in chosen["message"]
    estimate = screened([*words, "--dry-run"])["estimate"]
    assert estimate["systems"] == ["base", "newcomers", "steps"] and estimate["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--items", "80"), "--items"),
        (("--limit", "60"), "--items"),
        (("--router", "centroid"), "merge-and-eval"),
        ((), "two"),
    ],
)
def test_too_few_items_adapters_and_routers_that_learn_are_refused(library, options, told):
    words, _ = library
    if not options:  # one adapter is left
        words = [word for word in words if "noise" not in word and "seconds" not in word]
    found = making.call(*words, "--json", *options)
    assert found.exit_code == 2 and told in json.loads(found.stdout)["error"]["message"]


# The choice out of a library does not make a verdict. Every composition gains just as much as is
# asked for: the best of many pairs on the items that choose looks far better, not on those that
# prove.
ADAPTERS, ITEMS, RIGHT, SEEDS = 60, 100, 0.3, 8
TASK = Task("t0", tuple(Item(str(k), f"p{k}", ("x",)) for k in range(ITEMS)))


def decision(seed: int, leak: bool) -> str:
    """The decision on one library of noise. leak: the items that choose prove too."""
    options = Options(margin=RIGHT, seed=seed, all_items=True)  # 40 items choose
    parts, _ = split_for_screening([TASK], options)
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(ADAPTERS), 2))
    composed = rng.random((len(pairs), ITEMS)) < RIGHT
    wrong = np.zeros(ITEMS, bool)
    chosen = [int(item.id) for item in parts.apart[0].items]
    place = {pair: k for k, pair in enumerate(pairs)}

    def score(subsets: np.ndarray) -> list[np.ndarray]:
        """The strongest choice there is: by what the compositions answer."""
        means = composed[:, chosen].mean(1)
        return [
            np.array(
                [means[place[m]] if (m := tuple(s)) in place else 0.0 for s in subsets.tolist()]
            )
        ]

    finalists = [pair for _, pair in choose(rank(ADAPTERS, score), 2, range(ADAPTERS))]
    members = sorted({m for pair in finalists for m in pair})
    singles = [System("base", "base"), *(System(f"a{m}", "adapter") for m in members)]
    systems = [System(str(pair), "merge") for pair in finalists]
    answers: dict[tuple[str, str], Any] = {("base", "t0"): wrong}
    answers |= {(f"a{m}", "t0"): wrong for m in members}
    answers |= {(str(pair), "t0"): composed[place[pair]] for pair in finalists}
    controls = [System("shrunk", "control"), System("random-partner", "control")]
    answers |= {(one.name, "t0"): wrong for one in controls}
    session = Session(options)
    tasks = parts.apart if leak else parts.left
    inputs, scorer = Inputs((), (), None, tasks), SimpleNamespace(chat_template=False)
    evaluator = Planted(inputs, session, scorer, scorer, ResponseCache(), tasks, answers=answers)  # type: ignore[arg-type]
    schedule = rounds(tasks, seed, all_items=True)
    run = SequentialEvaluation(evaluator, [*singles, *systems], schedule, lambda *_: controls)
    made = run.ask().records()
    evidence = Evidence(made, tasks=1, level="evaluation", margin=RIGHT)
    return decide_compositions(evidence).decision


def test_noise_is_not_likely_although_the_best_of_many_was_chosen():
    honest = [decision(seed, leak=False) for seed in range(SEEDS)]
    leaky = [decision(seed, leak=True) for seed in range(SEEDS)]
    assert leaky.count("likely") > SEEDS / 2  # the test sees a leak
    assert honest.count("likely") <= 1  # 0.2 are expected


@pytest.mark.parametrize("sizes", [[1] * 100, [3, 1, 4] * 40, [2] * 60])
@pytest.mark.parametrize("seed", range(3))
def test_no_cluster_and_no_prompt_serves_both_the_choice_and_the_proof(sizes, seed):
    items = [
        Item(f"{c}-{k}", f"prompt {c % 90}", ("x",), group=str(c) if size > 1 else None)
        for c, size in enumerate(sizes)
        for k in range(size)
    ]
    parts, _ = split_for_screening([Task("t", tuple(items))], Options(seed=seed))
    apart, left = parts.apart[0].items, parts.left[0].items
    assert not {i.cluster for i in apart} & {i.cluster for i in left}
    assert not {i.prompt for i in apart if not i.group} & {i.prompt for i in left if not i.group}
    assert len(apart) >= 40 and len({i.cluster for i in left}) >= 30
    assert sorted(i.id for i in (*apart, *left)) == sorted(i.id for i in items)
