"""The table of methods: who takes part, which questions count, figures over worlds, the pages."""

import dataclasses
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_worlds import shortened, tiny_base
from typer.testing import CliRunner

from loraprobe.errors import UsageError
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, FactorMethod, LinearMethod
from loraprobe.pipeline.plan import PER_PROMPT, WHY_PER_PROMPT
from loraprobe.records import ItemPart, ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.tasks import load_task
from loraprobe_lab.cli import app
from loraprobe_lab.experiments import methods as chosen
from loraprobe_lab.experiments.runner import Bases, ExperimentRun, WorldEvaluator
from loraprobe_lab.world import Scenario, World, shipped_world
from loraprobe_lab.worlds.couples import FactSizes, methods_world


def tiny_world(seed, base):
    sizes = FactSizes(familiar=8, newcomers=4, strangers=4, cities=3, reserve=2)
    return shortened(methods_world(seed, base, sizes))


# --- who takes part -------------------------------------------------------------------------------


def test_every_method_stands_in_every_space_and_every_router_takes_part():
    everyone = chosen.all_systems()
    labels = [e.label for e in everyone]
    assert len(labels) == len(set(labels)), "no two share a name"
    for name in METHODS.names():
        method = METHODS.make(name)
        mine = [e for e in everyone if e.spec == name and e.family != "control"]
        controls = [e for e in everyone if e.family == "control" and not e.learned]
        assert any(name in re.split(r" = | x1| in |,", e.label) for e in controls), name
        if isinstance(method, LinearMethod):
            assert any(name in re.split(r" = | x1", e.label) for e in everyone), name
            continue
        spaces = {space for e in mine for space in ((e.space,) if e.space else e.same)}
        assert spaces == (set() if isinstance(method, FactorMethod) else set(SPACES)), name
        assert all(e.family == "merge" for e in mine) and mine
    for name in ROUTERS.names():
        if not ROUTERS.get(name).constant:
            assert name in labels
    options = ("by=centroid", "per=sequence", "by=centroid,per=sequence")
    assert {f"hard:{option}" for option in options} <= set(labels)
    assert labels[-1] == "chain"


def test_linear_methods_with_equal_coefficients_are_evaluated_once():
    everyone = [e for e in chosen.all_systems() if e.family == "linear"]
    linear = [e for e in everyone if not e.balanced and not e.learned]
    gates = []
    for e in linear:
        method = METHODS.make(e.spec)
        weights = method.default_weights(2) if e.strength is None else (e.strength,) * 2
        gates.append(tuple(method.coefficients(weights)))
    assert len(set(gates)) == len(gates), "no two are the same composition"
    balanced = [e for e in chosen.all_systems() if e.balanced]
    assert len(balanced) == len(linear), "each a second time with equal norms"
    assert {(0.5, 0.5), (1.0, 1.0)} <= set(gates)
    assert "uniform = task_arithmetic" in [e.label for e in linear]


def test_a_merge_is_written_whole_and_a_linear_one_needs_no_new_weights():
    from loraprobe.hub import load_all

    world = shipped_world()
    adapters = load_all([f"{n}={world.adapters[n]}" for n in ("last", "count")])
    compared = chosen.ComparedSystem("t", "merge", "ties", "full")
    ties = compared.builder(adapters).build(compared.spec, name=compared.label)
    assert ties.compression_error == 0.0 and ties.name == "t"
    assert all(u.rank > 32 for u in ties.composition.experts[0].modules.values())
    sides = [min(i.in_features, i.out_features) for i in adapters[0].layout.values()]
    assert chosen.whole_rank(adapters) == max(sides)
    compared = chosen.ComparedSystem("s", "linear", "task_arithmetic", None, 1.0)
    whole = compared.builder(adapters).build(compared.spec)
    assert len(whole.composition.experts) == 2 and whole.composition.router.weights == (1.0, 1.0)


# --- which questions ------------------------------------------------------------------------------


def test_scenarios_are_told_by_what_their_tasks_hold():
    found = {case.scenario.name: case for case in chosen.cases_of(shipped_world())}
    assert {name: case.kind for name, case in found.items()} == {
        "disjoint": "two-hop",
        "skill-and-facts": "step-by-step",
        "keep-both": "keep-both",
    }, "three adapters are no case of two"
    assert found["disjoint"].roles == {"spouse": "hop 1", "city": "hop 2"}
    assert found["skill-and-facts"].roles == {"newcomers": "facts", "steps": "steps"}
    assert found["keep-both"].roles == {"last": "skill 1", "count": "skill 2"}
    for case in found.values():
        assert set(case.roles.values()) == set(chosen.ROLES[case.kind])


def test_routers_learn_from_questions_that_are_not_asked():
    for case in chosen.cases_of(shipped_world()):
        shown = case.prompts(90)
        asked = set()
        for item in (
            item
            for task in (load_task(path, 90) for path in case.scenario.tasks)
            for item in task.items
        ):
            asked |= {item.prompt, item.cot_prompt}
            asked |= {item.hop_prompt(k) for k in range(len(item.hops))}
        assert set(shown) == set(case.scenario.adapters)
        assert all(len(prompts) == 20 for prompts in shown.values())
        assert not asked & {text for prompts in shown.values() for text in prompts}
        assert case.prompts(None) == case.prompts(10**6) == {}
    two_hop = next(c for c in chosen.cases_of(shipped_world()) if c.kind == "two-hop").prompts(90)
    assert all(text.startswith("Who is") for text in two_hop["spouse"])
    assert all(text.startswith("Where does") for text in two_hop["city"])


def test_invented_couples_and_unknown_second_hops_promise_no_success():
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    for axes in ({"familiar": 0.5}, {"invented": 0.5}):
        rows = {"s": dataclasses.replace(scenario, axes=axes)}
        assert chosen.cases_of(dataclasses.replace(world, scenarios=rows)) == []
    rows = {"s": dataclasses.replace(scenario, axes={"familiar": 1.0, "invented": 0.0})}
    assert len(chosen.cases_of(dataclasses.replace(world, scenarios=rows))) == 1


def test_a_world_without_any_of_the_questions_is_refused_by_name(tmp_path):
    small = shipped_world().path
    assert [w.path for w in chosen.open_worlds([small])] == [small]
    with pytest.raises(UsageError, match="Two worlds are called small-world"):
        chosen.open_worlds([small, small])
    manifest = json.loads((small / "manifest.json").read_text(encoding="utf-8"))
    manifest["scenarios"] = {}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match="holds no scenario of two adapters"):
        chosen.open_worlds([tmp_path])


# --- figures over worlds --------------------------------------------------------------------------


def test_a_mean_over_worlds_has_students_interval_over_worlds():
    values = np.random.default_rng(0).normal(0.3, 0.1, 9)
    found = chosen.pooled(values, 10_000, 20)
    mean, se = values.mean(), values.std(ddof=1) / 3
    assert found["value"] == pytest.approx(mean) and found["worlds"] == 9
    assert found["ci95"] == pytest.approx(stats.t.interval(0.95, 8, mean, se))
    assert found["adjusted_ci95"] == pytest.approx(stats.t.interval(1 - 0.05 / 20, 8, mean, se))


def test_worlds_that_agree_do_not_make_items_certain():
    low, high = chosen.pooled(np.full(4, 0.5), 80, 1)["ci95"]
    assert low < 0.5 < high < 0.53
    alone = chosen.pooled(np.array([0.5]), 98, 1)
    assert alone["ci95"] == pytest.approx(stats.norm.interval(0.95, 0.5, 0.1))


# --- the table, on planted answers ----------------------------------------------------------------

N, WORLDS = 60, 8


def planted(question, scores, world):
    """Answers in which everyone has the share of right answers that is given; paired by item."""
    tasks = ("s1", "s2") if question == "keep-both" else ("t",)
    scenario = Scenario("s", {}, tuple(Path(f"{task}.jsonl") for task in tasks))
    place = World(Path(f"/worlds/{world}"), None, "b", {}, {}, {"seed": 0, "base": {}})
    case = chosen.MethodsCase(question, place, scenario, {})
    rows = []
    for system, share in scores.items():
        for task, one in zip(tasks, share if isinstance(share, tuple) else (share,), strict=True):
            right = math.floor(one * N + 0.5)
            for i in range(N):
                value = float((i + 7 * world) % N < right)
                for part in {chosen.FORM[question], "question"}:
                    row = (system, task, ItemPart(part), str(i), "exact_match", value, "", str(i))
                    rows.append(ItemResult(*row))
    return chosen.CaseResults(case, tuple(rows))


def everyone(*labels):
    families = {"chain": "chain"}
    return [chosen.ComparedSystem(one, families.get(one, "merge"), one) for one in labels]


def one_table(question, scores_of, *labels):
    """The table of worlds in which every system has a share; its rows by label."""
    answered = [planted(question, scores_of(w), w) for w in range(WORLDS)]
    table = chosen.tabulated(answered, everyone(*labels))
    return table, {row["label"]: row[question.replace("-", "_")] for row in table["cells"]}


def two_hops(w):
    alone = {"base": 0.05, "hop 1": 0.1, "hop 2": 0.2}
    return {**alone, "good": 0.5, "none": 0.2, "some": 0.9 if w % 2 else 0.1, "chain": 0.9}


def test_a_planted_gain_is_found_against_the_best_of_base_and_singles():
    table, rows = one_table("two-hop", two_hops, "good", "none", "some", "chain")
    good = rows["good"]
    assert good["against"] == "hop 2" and good["gain"]["value"] == pytest.approx(0.3)
    assert good["score"] == pytest.approx(0.5)
    assert good["gain"]["each"] == pytest.approx([0.3] * WORLDS)
    standings = {label: row["standing"] for label, row in rows.items()}
    assert standings["good"] == "gains" and standings["none"] == "does not gain"
    assert standings["some"] == "undecided", "in half of the worlds"
    assert rows["some"]["gain"]["value"] == pytest.approx(0.3)
    assert table["cells"][0]["keep_both"] is None
    low, high = good["gain"]["adjusted_ci95"]
    assert low <= good["gain"]["ci95"][0] < 0.3 < good["gain"]["ci95"][1] <= high
    count = table["counts"]["two-hop"]
    assert (count["worlds"], count["items"]) == (WORLDS, WORLDS * N)
    assert count["baselines"]["hop 2"] == pytest.approx(0.2)


def test_step_by_step_has_to_beat_the_plain_form_of_a_single_too():
    answered = []
    for w in range(WORLDS):
        one = planted("step-by-step", {"base": 0.0, "facts": 0.6, "steps": 0.0, "x": 0.5}, w)
        rows = (
            dataclasses.replace(r, value=0.0) if (r.system, r.part) == ("facts", "steps") else r
            for r in one.results
        )
        answered.append(dataclasses.replace(one, results=tuple(rows)))
    row = chosen.tabulated(answered, everyone("x"))["cells"][0]["step_by_step"]
    assert row["against"] == "facts" and row["gain"]["value"] == pytest.approx(-0.1)


def keeping(w):
    even = (0.85 - w % 4 / N, 0.6)
    alone = {"base": (0.1, 0.0), "skill 1": (1.0, 0.0), "skill 2": (0.1, 0.8)}
    return {**alone, "even": even, "lopsided": (1.0, 0.2), "same": even}


def test_retention_is_of_the_skills_own_adapter_and_the_worse_one_counts():
    _, rows = one_table("keep-both", keeping, "even", "lopsided", "same")
    even, lopsided, same = rows.values()
    first = np.mean([(round((0.85 - j) * N) / N - 0.1) / 0.9 for j in (0, 1 / N, 2 / N, 3 / N)])
    assert even["skills"] == pytest.approx((first, 0.75))
    assert even["worse"]["value"] == pytest.approx(0.75), "of 0.8, 0.6 is left"
    assert even["both"]["value"] == pytest.approx((first + 0.75) / 2)
    assert lopsided["skills"] == pytest.approx((1.0, 0.25)) and lopsided["worse"]["value"] == 0.25
    assert lopsided["both"]["value"] == pytest.approx(0.625)
    assert even["behind"] is None, "the first of equals is the best"
    assert same["behind"]["value"] == 0 and lopsided["behind"]["value"] == pytest.approx(0.5)
    assert lopsided["behind"]["adjusted_ci95"][0] > 0 > same["behind"]["adjusted_ci95"][0]


def test_a_skill_that_the_base_has_already_is_no_skill_to_keep():
    scores = {"base": (0.5, 0.0), "skill 1": (0.5, 0), "skill 2": (0.5, 1.0), "x": (0.5, 1)}
    table, rows = one_table("keep-both", lambda w: scores, "x")
    assert rows["x"] is None and table["counts"]["keep-both"]["worlds"] == WORLDS


# --- a run ----------------------------------------------------------------------------------------


LABELS = ("uniform = task_arithmetic", "ties in full", "ties in core", "factor_average", "arrow")
SYSTEMS = [one for one in chosen.all_systems() if one.label in (*LABELS, "chain")]


def try_tiny(output):
    """A run over two tiny worlds: a method that is refused in one case, one in full, a router."""
    run = ExperimentRun(output, limit=80, command="loraprobe lab methods")
    bases = Bases(("llama",), (16,), (0, 1))
    return chosen.try_methods(run, (), bases, tiny_world, tiny_base, SYSTEMS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    output = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraprobe_lab.experiments.runner.NEW_TOKENS", 3)
        yield try_tiny(output), output


def test_a_tiny_run_leaves_page_numbers_and_figure(tiny):
    made, output = tiny
    files = made.files(output)
    names = ["methods.md", "methods.json", "methods.svg", "portfolio.md"]
    assert [path.name for path in files] == names
    document = json.loads(files[1].read_text(encoding="utf-8"))
    (one, two) = document["worlds"]
    assert (one["name"], two["name"]) == ("llama-16-seed0", "llama-16-seed1")
    assert (one["kind"], one["architecture"]) == ("methods", "llama") and one["parameters"] > 1000
    assert document["command"] == "loraprobe lab methods"
    cells = {cell["label"]: cell for cell in document["cells"]}
    assert list(cells) == [one.label for one in SYSTEMS] and len(cells) == 6
    assert set(document["counts"]) == {"two-hop", "keep-both", "step-by-step"}
    assert cells["ties in full"]["two_hop"]["gain"]["worlds"] == 2
    assert "leaves module" in document["refused"]["factor_average"]
    average = cells["factor_average"]
    assert average["step_by_step"] is None and average["two_hop"] is not None
    page = files[0].read_text(encoding="utf-8")
    assert page == made.markdown and "nan" not in page
    svg = files[2].read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg") and "ties in core" in svg


def test_nothing_is_asked_twice(tiny, monkeypatch):
    made, output = tiny
    ledgers = sorted((output / "results").glob("*.jsonl"))
    before = {path: path.read_bytes() for path in ledgers}
    assert len(ledgers) == 6

    def never(*args, **kwargs):
        raise AssertionError("was answered before")

    monkeypatch.setattr("loraprobe.evaluation.asking.ask", never)
    again = try_tiny(output)
    assert {path: path.read_bytes() for path in ledgers} == before
    assert again.document == made.document


def test_a_router_that_learns_takes_part_without_prompts_of_its_own(tiny, tmp_path):
    world = World.load(tiny[1] / "worlds" / "llama-16-seed0")
    names = ("centroid", "hard:by=centroid")
    learning = [chosen.ComparedSystem(name, "router", name) for name in names]
    evaluator = WorldEvaluator(world, tmp_path, limit=2)
    for case in chosen.cases_of(world):
        found = chosen.evaluate_case(evaluator, case, learning)
        assert not found.refused
        assert set(names) <= {row.system for row in found.results}


def test_the_command_takes_worlds(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("loraprobe_lab.experiments.methods.all_systems", lambda: SYSTEMS[-2:])
    call = ["methods", "-o", str(tmp_path), "--world", str(tiny[1] / "worlds" / "llama-16-seed0")]
    done = CliRunner().invoke(app, [*call, "--limit", "2", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [cell["label"] for cell in document["cells"]] == ["arrow", "chain"]
    assert document["counts"]["two-hop"]["items"] == 2


REPRODUCTION = Path(__file__).parents[2] / "examples" / "reproduction"
FIXED = ["uniform", "sum", "arrow"]


def test_what_joins_the_default_systems_is_what_the_table_of_methods_gives():
    document = json.loads((REPRODUCTION / "methods.json").read_text(encoding="utf-8"))
    page = (REPRODUCTION / "portfolio.md").read_text(encoding="utf-8")
    found = chosen.choices(document)
    assert page == chosen.portfolio_page(found)
    (joins,) = (one for one in found if one["joins"])
    assert (joins["kind"], joins["spec"]) == ("several tasks", PER_PROMPT)
    told = re.search(r"skill ([\d.]+), against ([\d.]+) .* on (\d+) small worlds", WHY_PER_PROMPT)
    figures = (f"{joins['figure']:.2f}", f"{joins['beside']:.2f}", str(joins["worlds"]))
    assert told is not None and told.groups() == figures


def a_table(figures: dict[str, list[float]]) -> dict:
    """A document of `lab methods` with one question, in which these systems took part."""
    same = {"space": None, "balanced": False}
    return {
        "cells": [
            {
                "label": label,
                "family": "router" if label in ROUTERS else "merge",
                "spec": label.partition(" ")[0],
                "strength": 1.0 if label.endswith("x1") else None,
                "keep_both": {"worse": {"value": np.mean(each), "ci95": [0, 1], "each": each}},
                **same,
            }
            for label, each in figures.items()
        ]
    }


def test_a_system_joins_by_what_it_adds_on_worlds_that_did_not_choose_it():
    """A system that is best in one world by luck adds nothing on the others."""
    draw = random.Random(1)
    plain = {name: [0.3 + draw.gauss(0, 0.01) for _ in range(20)] for name in FIXED}
    lucky = [0.3] * 19 + [0.9]
    better = [0.5 + draw.gauss(0, 0.05) for _ in range(20)]
    other = {"tsv": lucky, "ties": [0.31] * 20}
    (step,) = chosen.choices(a_table({**plain, **other}))
    assert step["label"] == "tsv" and not step["joins"]
    first, second = chosen.choices(a_table({**plain, **other, "lag": better}))
    assert (first["label"], first["joins"], second["joins"]) == ("lag", True, False)
    assert first["beside"] == pytest.approx(0.31, abs=0.01)
    assert first["added"][0] == pytest.approx(0.2, abs=0.03)
    (step,) = chosen.choices(a_table({**plain, "slerp x1": better}))
    assert step["added"][0] > 0.1 and not step["joins"], "a spec cannot say its weights"
