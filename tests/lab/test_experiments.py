"""Experiments: laws of what they compute, on planted answers, and one tiny run of each; the lab has
the commands that stored pages name, and makes these pages of the stored numbers."""

import csv
import itertools
import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy import special, stats
from tiny_worlds import shortened, tiny_base

from loraprobe.base.quiet import quiet
from loraprobe.defaults import ALPHA
from loraprobe.errors import UsageError
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, FactorMethod, LinearMethod
from loraprobe.pipeline.plan import WHY_ADDED
from loraprobe.records import BY_PROMPT, ItemPart, ItemResult, display_name
from loraprobe.routing import ROUTERS
from loraprobe_lab.cli import app
from loraprobe_lab.experiments import methods, recycling, reproduce, rule, success_map, theory
from loraprobe_lab.experiments.mergeability import Pairs, judged, mergeability, read_pairs
from loraprobe_lab.experiments.pairs import Asked, MergedBase
from loraprobe_lab.experiments.runner import BaseInfo, Bases, ExperimentRun, WorldResults
from loraprobe_lab.measure import composed, load_adapters
from loraprobe_lab.training import Recipe, load_base
from loraprobe_lab.world import Scenario, World, read_lines, shipped_world
from loraprobe_lab.worlds.couples import FactSizes, make_facts, methods_world
from loraprobe_lab.worlds.name_sets import (
    GROUPS,
    MapSizes,
    MatrixSizes,
    english_matrix,
    map_world,
    two_hop_matrix,
)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """Models trained for two steps do not know when to stop."""
    monkeypatch.setattr("loraprobe_lab.experiments.runner.NEW_TOKENS", 3)


def results(shares, tasks, items, shift=0):
    """Rows with these shares of right answers; the same items are easy for every system."""
    for system, task, part in tasks:
        count = math.floor(items * shares(system, task, part) + 0.5)
        for i in range(items):
            value = float((i * 7 + shift) % items < count)
            row = (system, task, ItemPart(part), str(i), "exact_match", value, "", str(i))
            yield ItemResult(*row)


# the paper's matrix


@pytest.mark.parametrize(
    ("low", "high", "wider", "side", "outcome"),
    [
        (0.06, 0.30, 0.02, "above", "yes"),  # the wider interval is for a no alone
        (0.04, 0.30, 0.00, "above", "undecided"),
        (-0.2, 0.04, 0.00, "above", "no"),
        (-0.2, 0.04, 0.02, "above", "undecided"),
        (-0.2, 0.04, 0.02, "below", "yes"),
        (0.06, 0.30, 0.00, "below", "no"),
        (0.06, 0.30, 0.02, "below", "undecided"),
    ],
)
def test_a_difference_is_judged_by_its_intervals(low, high, wider, side, outcome):
    shared = (low - wider, high + wider)
    test = reproduce.ClaimTest("", (low + high) / 2, low, high, 100, side, 0.05, shared)
    assert test.outcome == outcome
    assert outcome == "undecided" or test.needed is None
    claims = [
        reproduce.Claim("", "", "", "", overall, sizes).standing
        for overall, sizes in (((test,), ()), ((test,), (test,)), ((), (test,)))
    ]
    standing = {"yes": "holds", "no": "does not hold", "undecided": "not decided"}[outcome]
    assert claims == [standing, standing, standing if outcome == "no" else "not decided"]


SETS = tuple(
    Scenario(
        f"{template}-{library}",
        dict.fromkeys(("hop1", "hop2", "target")[:library]),
        tuple(Path(f"{g}.jsonl") for g in GROUPS),
        axes={
            "template": template,
            "library": library,
            "form": "question" if template == "plain" else "steps",
            "joint": None,
        },
    )
    for template, library in (("plain", 2), ("plain", 3), ("cot", 2), ("shared", 2))
)


def as_the_paper_says(system, group, part):
    """Reuse fails plainly, succeeds with templates where the base knows the names."""
    name = system.partition(":")[0]
    if system.endswith(":chain"):
        return 0.8
    if name.startswith("plain-3") and part == "question":
        return 0.8
    if name.startswith(("cot-2", "shared-2")) and part == "steps":
        return {"fake": 0.0, "half": 0.4, "real": 0.7}[group]
    return 0.8 if name == "target" and part == "question" else 0.02


def test_claims_on_scores_as_the_paper_reports_them():
    systems = ["base", "hop1", "hop2", "target"]
    systems += [f"{s.name}:{m}" for s in SETS for m in reproduce.METHODS]
    systems += [f"{s.name}:chain" for s in SETS if s.axes["library"] == 2]
    tasks = [(s, g, p) for g in GROUPS for s in systems for p in ("question", "steps")]
    worlds = tuple(
        WorldResults(
            BaseInfo(f"llama 64-{seed}", "llama 64", seed),
            SETS,
            tuple(results(as_the_paper_says, tasks, 150, seed)),
        )
        for seed in (0, 1)
    )
    matrix = reproduce.Matrix(worlds)
    found = {(f.code, f.where): f for f in reproduce.claims(matrix, reproduce.TWO_HOP)}
    for group in GROUPS:
        assert found["plain-fails", group].standing == "holds"
        assert found["target-rescues", group].standing == "holds"
    assert found["both-fail", "fake"].standing == "holds"
    assert len(found["both-fail", "fake"].overall) == 4  # two methods, two forms
    for template in ("cot", "shared"):
        standing = [found[f"{template}-succeeds", group].standing for group in GROUPS]
        assert standing == ["does not hold", "holds", "holds"]
    cells = [c for c in matrix.cells() if c["role"] == "composition"]
    assert len(cells) == 3 * (4 * 3 + 3)  # the library of three has no chain
    assert {(c["n"], c["worlds"]) for c in cells} == {(300, 2)}
    wanted = ("real", "cot", 2, "arrow")
    (chosen,) = [
        c for c in cells if (c["group"], c["template"], c["library"], c["system"]) == wanted
    ]
    assert chosen["score"] == pytest.approx(0.7) and chosen["gain"] == pytest.approx(0.68)


def test_a_tiny_matrix_leaves_every_cell_and_goes_on_where_it_was(tmp_path, monkeypatch):
    """A second call neither trains nor asks again what is finished."""
    sizes = MatrixSizes(asked=4, worked=8, others=4, cities=3)

    def small(seed, base):
        if seed == 4:
            raise KeyboardInterrupt
        return shortened(two_hop_matrix(seed, base, sizes), 2)

    made = reproduce.Experiment(reproduce.TWO_HOP, small, english_matrix, tiny_base)
    run = ExperimentRun(tmp_path, limit=3)
    found = reproduce.reproduce("two-hop", run, Bases(hidden=(16,), seeds=(3,)), made=made)
    cells = [c for c in found.document["cells"] if c["role"] == "composition"]
    assert len(cells) == 3 * (4 * 3 + 3) and {c["n"] for c in cells} == {3}
    assert (tmp_path / "two-hop.md").read_text(encoding="utf-8") == found.markdown
    ElementTree.parse(tmp_path / "two-hop.svg")
    kept = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.suffix in (".safetensors", ".jsonl")
    }
    monkeypatch.setattr("loraprobe_lab.training.optimise", None)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce("two-hop", run, Bases(hidden=(16,), seeds=(3, 4)), made=made)
    assert kept and all(path.read_bytes() == content for path, content in kept.items())


def test_a_tiny_map_is_drawn_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(success_map, "GATES", (0.4, 1.0))
    monkeypatch.setattr(success_map, "SCALES", (0.5, 2.0))

    def spec(seed, base):
        return shortened(map_world(seed, base, MapSizes(asked=3, taught=4, cities=3)))

    points = list(success_map.points())
    assert len({(p.panel, p.series, p.x) for p in points}) == len(points)
    run, bases = ExperimentRun(tmp_path), Bases(("gpt2",), (16,), (5,))
    success_map.draw_map(run, bases, spec, tiny_base)
    rows = json.loads((tmp_path / "success-map.json").read_text(encoding="utf-8"))["cells"]
    assert len(rows) == len(points) and {r["n"] for r in rows} == {3}
    ElementTree.parse(tmp_path / "success-map.svg")


# the table of methods


def test_every_method_stands_in_every_space_and_every_router_takes_part():
    everyone = methods.all_systems()
    labels = [one.label for one in everyone]
    assert len(labels) == len(set(labels)) and labels[-1] == "chain"
    for name in METHODS.names():
        method = METHODS.make(name)
        if not isinstance(method, LinearMethod):
            mine = [e for e in everyone if e.spec == name and e.family == "merge"]
            spaces = {space for e in mine for space in ((e.space,) if e.space else e.same)}
            assert spaces == (set() if isinstance(method, FactorMethod) else set(SPACES)), name
    assert {name for name in ROUTERS.names() if not ROUTERS.get(name).constant} <= set(labels)
    gates = []
    for one in everyone:
        if one.family == "linear" and not one.balanced and not one.learned:
            method = METHODS.make(one.spec)
            weights = method.default_weights(2) if one.strength is None else (one.strength,) * 2
            gates.append(tuple(method.coefficients(weights)))
    assert len(set(gates)) == len(gates), "no two are the same composition"
    assert {(0.5, 0.5), (1.0, 1.0)} <= set(gates)


ITEMS, WORLDS = 60, 8


def one_table(question, shares_of, *labels):
    """The table of worlds in which every system has a share by task; its rows by label."""
    answers = []
    for w in range(WORLDS):
        shares = shares_of(w)
        count = len(next(iter(shares.values())))
        scenario = Scenario("s", {}, tuple(Path(f"{k}.jsonl") for k in range(count)))
        place = World(Path(f"/worlds/{w}"), None, "b", {}, {}, {"seed": 0, "base": {}})
        parts = {methods.FORM[question], "question"}
        tasks = [(s, str(k), part) for s in shares for k in range(count) for part in parts]
        rows = results(lambda s, task, _, at=shares: at[s][int(task)], tasks, ITEMS, w)
        case = methods.MethodsCase(question, place, scenario, {})
        answers.append(methods.CaseResults(case, tuple(rows)))
    systems = [methods.ComparedSystem(one, "merge", one) for one in labels]
    table = methods.tabulated(answers, systems)
    return table, {row["label"]: row[question.replace("-", "_")] for row in table["cells"]}


def two_hops(w):
    alone = {"base": [0.05], "hop 1": [0.1], "hop 2": [0.2]}
    return {**alone, "good": [0.5], "none": [0.2], "some": [0.9 if w % 2 else 0.1]}


def test_a_planted_gain_is_found_against_the_best_of_base_and_singles():
    table, rows = one_table("two-hop", two_hops, "good", "none", "some")
    good = rows["good"]
    assert good["against"] == "hop 2" and good["gain"]["value"] == pytest.approx(0.3)
    standings = {label: row["standing"] for label, row in rows.items()}
    assert standings == {"good": "gains", "none": "does not gain", "some": "undecided"}
    count = table["counts"]["two-hop"]
    assert (count["worlds"], count["items"]) == (WORLDS, WORLDS * ITEMS)
    values = np.random.default_rng(0).normal(0.3, 0.1, 9)
    found = methods.pooled(values, 10_000, 20)  # Student's interval over worlds
    mean, se = values.mean(), values.std(ddof=1) / 3
    assert found["ci95"] == pytest.approx(stats.t.interval(0.95, 8, mean, se))
    assert found["adjusted_ci95"] == pytest.approx(stats.t.interval(1 - 0.05 / 20, 8, mean, se))


def test_retention_is_of_the_skills_own_adapter_and_the_worse_one_counts():
    alone = {"base": (0.1, 0.0), "skill 1": (1.0, 0.0), "skill 2": (0.1, 0.8)}
    shares = {**alone, "even": (0.85, 0.6), "lopsided": (1.0, 0.2)}
    _, rows = one_table("keep-both", lambda w: shares, "even", "lopsided")
    even, lopsided = rows.values()
    assert even["skills"] == pytest.approx((0.75 / 0.9, 0.75))
    assert even["worse"]["value"] == pytest.approx(0.75), "of 0.8, 0.6 is left"
    assert lopsided["skills"] == pytest.approx((1.0, 0.25))
    assert even["behind"] is None and lopsided["behind"]["value"] == pytest.approx(0.5)


def test_a_tiny_table_of_methods_leaves_its_pages_and_asks_nothing_twice(tmp_path, monkeypatch):
    """A method that is refused in one case, one in full, a router."""
    labels = ("uniform = task_arithmetic", "ties in full", "factor_average", "arrow", "chain")
    systems = [one for one in methods.all_systems() if one.label in labels]
    sizes = FactSizes(familiar=8, newcomers=4, strangers=4, cities=3, reserve=2)

    def again():
        run, bases = ExperimentRun(tmp_path, limit=80), Bases(("llama",), (16,), (0, 1))
        worlds = lambda seed, base: shortened(methods_world(seed, base, sizes))  # noqa: E731
        return methods.try_methods(run, (), bases, worlds, tiny_base, systems)

    made = again()
    names = ["methods.md", "methods.json", "methods.svg", "portfolio.md"]
    assert [path.name for path in made.files(tmp_path)] == names
    assert all(path.is_file() for path in made.files(tmp_path)) and "nan" not in made.markdown
    cells = {cell["label"]: cell for cell in made.document["cells"]}
    assert list(cells) == [one.label for one in systems] and len(cells) == len(labels)
    assert set(made.document["counts"]) == {"two-hop", "keep-both", "step-by-step"}
    assert cells["ties in full"]["two_hop"]["gain"]["worlds"] == 2
    assert "leaves module" in made.document["refused"]["factor_average"]
    monkeypatch.setattr("loraprobe.evaluation.asking.ask", None)
    assert again().document == made.document


# pairs of a library, by brute force


def test_merged_pairs_are_those_of_peft():
    world, names = shipped_world(), ("newcomers", "steps")
    merged = MergedBase(world)
    merged.deltas = {name: merged.deltas[name] for name in names}
    items = map(json.loads, read_lines(world.path / "tasks" / "newcomers.jsonl"))
    asked = Asked(list(items)[:16])
    batch = merged.batch(asked)
    model, _ = load_base(world.base)
    wrapped = load_adapters(model, {name: world.adapters[name] for name in names})
    for weight in (0.5, 1.0):
        merged.set(names, weight)
        with composed(wrapped, dict.fromkeys(names, weight)) as composition, torch.no_grad():
            expected = composition(**batch.inputs(composition)).logits
            found = merged.model(**batch.inputs(merged.model)).logits
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert 0.3 < merged.certain(batch) <= merged.decoded(asked)


# the rule


def test_the_rule_is_that_of_the_likelihood_ratio():
    likely, unlikely = rule.decided(60, ALPHA)
    gained, lost = (x[..., None] for x in np.meshgrid(*[np.arange(61.0)] * 2, indexing="ij"))
    possible = (gained + lost <= 60)[..., 0]
    gained, lost, likely, unlikely = (x[possible] for x in (gained, lost, likely, unlikely))
    counts = np.stack([gained + 0.5, lost + 0.5, 60.0 - gained - lost])[..., 0]
    best = special.xlogy(counts, counts / 61).sum(0)
    grid = np.linspace(1e-6, 0.475 - 1e-6, 4001)[:, None]  # shares of lost items, at gain 0.05
    there = special.xlogy(counts[0], grid + 0.05) + special.xlogy(counts[1], grid)
    there += special.xlogy(counts[2], 1 - 2 * grid - 0.05)
    ratio = 2 * (best - there.max(0))
    clear = np.abs(ratio - 1.959963984540054**2) > 1e-2  # of the grid
    beyond, above = ratio > 1.959963984540054**2, (gained - lost)[:, 0] > 0.05 * 61
    assert (likely == (beyond & above))[clear].all() and likely.any()
    assert (unlikely == (beyond & ~above))[clear].all() and unlikely.any()


@pytest.mark.parametrize(
    "n", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 200, 500))]
)
def test_no_number_of_items_is_wrong_more_often_than_three_in_a_hundred(n):
    gains = (-0.3, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.3)
    assert 0.01 < rule.worst(rule.rates_of(n, gains, steps=11)).wrong() <= 0.03


# reuse of published adapters


def test_a_fitted_rule_finds_what_the_singles_tell_and_only_that(monkeypatch):
    """Composing gains 0.2 where the single adapters are strong and loses 0.2 elsewhere; `told`:
    whether the scores of the singles say so."""
    monkeypatch.setattr(recycling, "DRAWS", 3)
    monkeypatch.setattr(recycling, "SHUFFLES", 100)
    fitted = {}
    for told in (True, False):
        rng, rows = np.random.default_rng(3), []
        for task in range(24):
            strong = task % 2 == 0
            for _ in range(4):
                shown = strong if told else bool(rng.integers(2))
                singles = np.full(10, 0.6 if shown else 0.3) + rng.normal(0, 0.01, 10)
                outcome = (0.5, 0.4, 0.7 if strong else 0.3)
                rows.append((f"task{task}", 10, singles, outcome[2], outcome))
        cases = recycling._cases("planted", ("base", "single", "compose"), rows)
        found = {row["rule"]: row for row in recycling.judged(cases)["rules"]}
        fitted[told] = found["fitted to k, base and singles"]
        assert found["always base"]["regret"] == pytest.approx(0.1)
        assert found["oracle"]["regret"] == 0.0 and found["always base"]["p"] is None
    assert fitted[True]["regret"] < 0.01 and fitted[True]["p"] < 0.05
    assert fitted[False]["regret"] > 0.05 and fitted[False]["p"] > 0.05


# the theory on one layer


@pytest.fixture(scope="module")
def store():
    with quiet():
        return theory.FactStore.of(*load_base(shipped_world().base))


def random_matrix(rows, columns, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=draw)


def test_edits_are_those_of_dense_algebra():
    keys, changes = random_matrix(7, 40), random_matrix(7, 20, 1)
    edit = theory.exact_edit(keys, changes)
    dense = changes.T @ torch.linalg.solve(keys @ keys.T, keys)  # R^T (K K^T)^-1 K
    assert torch.allclose(edit, dense, atol=1e-10)
    assert theory.rank_of(edit) == theory.rank_of(changes) == 7
    one = torch.outer(changes[0], theory.dual(keys[:1])[0])
    assert torch.allclose(one @ keys[0], changes[0], atol=1e-12) and theory.rank_of(one) == 1
    others = random_matrix(200, 40, 2) + 2.0
    sparing = theory.dual(keys, others)
    assert torch.allclose((sparing * keys).sum(-1), torch.ones(7).double(), atol=1e-12)
    assert (others @ sparing.T).pow(2).mean() < (others @ theory.dual(keys).T).pow(2).mean() / 2
    few = random_matrix(7, 3, 3) @ random_matrix(3, 20, 4)  # seven facts, three directions
    for rank in (1, 2, 3):  # Eckart and Young's bound
        error = keys @ theory.edit_of_rank(keys, few, rank).T - few
        left = torch.linalg.svdvals(few)[rank:].pow(2).sum()
        assert error.pow(2).sum() == pytest.approx(float(left), abs=1e-9)


def test_the_store_answers_as_the_model_and_both_hops_hold_where_the_composed_one_does_not(store):
    facts = make_facts(FactSizes(), 0)
    prompts = [link.fill(theory.SPOUSE_QUESTION) for link in facts.familiar[:20]]
    asked = store.read(prompts)
    with torch.no_grad():
        ids = torch.tensor(store.tokenizer(prompts)["input_ids"])
        logits = store.model(ids).logits[:, -1]
    ours = store.logits(asked.before + asked.values)
    assert (ours - logits).abs().max() < 1e-3 * logits.abs().max()
    spouses = store.token([link.b for link in facts.familiar[:20]])
    assert (store.predicted(asked) == spouses).all(), "the base knows its own facts"
    chains = theory.ChainKeys.of(store, facts.strangers[:12])
    rows = {row["system"]: row for row in theory.one_at_a_time(store, chains)}
    both = rows["edit A->B + edit B->C"]
    assert both["hop 1"] == both["hop 2"] == both["chain"] == 1
    assert both["composed"] <= 0.25 < rows["all three edits"]["composed"] == 1
    assert rows["no edit"]["hop 1"] == 0


@pytest.mark.parametrize("name", ["theory", "rule"])
def test_pages_are_made_of_their_numbers(tmp_path, name):
    if name == "rule":
        made, again = rule.examine((20,), 3), rule.rule_pages
    else:
        training = Recipe(steps=3, learning_rate=1e-2)
        plan = theory.TheoryPlan(3, (5,), (5, 8), (1, 4), (("mlp", 5, 1),), training)
        made, again = theory.theory(plan), theory.theory_pages
    page, numbers, figure = made.write(tmp_path).files(tmp_path)
    assert again(json.loads(numbers.read_text())).markdown == page.read_text()
    ElementTree.parse(figure)


@pytest.fixture
def table(tmp_path):
    """Twelve models: one merge follows the members, the other the figure `told` of a pair."""
    rng = np.random.default_rng(2)
    strength, file = rng.normal(size=12), tmp_path / "pairs.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow("task1 task2 merge_noise merge_told perf_members perf_figure".split())
        for a, b in itertools.combinations(range(12), 2):
            noise, told, rest = rng.normal(size=3)
            of_members = strength[a] + strength[b] + 0.1 * rest
            writer.writerow([f"m{a}", f"m{b}", noise, told, of_members, told + 0.1 * rest])
        writer.writerow(["m0", "m1", "", 1.0, "", 1.0])
    return file


def test_what_tells_the_accuracy_is_found_and_only_that(table):
    rows = {row["merge"]: row for row in mergeability(table).document["merges"]}
    members, figure = rows["members"], rows["figure"]
    assert members["additive"] > 0.95 and members["r"] > 0.95
    assert members["best"] < members["null95"]
    assert figure["best"] > max(0.95, figure["null95"]) and figure["figure"] == "told"
    assert figure["additive"] < 0.7
    assert members["pairs"] == 66 and figure["pairs"] == 67  # what has no accuracy is left out


def test_pairs_without_figures_are_judged_by_their_members(table):
    whole = read_pairs(table)
    few = Pairs(whole.names, whole.members, {}, whole.accuracies)
    row = judged(few, "members", np.random.default_rng(0))
    assert row["additive"] == judged(whole, "members", np.random.default_rng(0))["additive"]
    assert np.isnan([row["best"], row["null"]]).all() and row["figure"] == ""
    ring = Pairs(few.names, few.members[:3], {}, {"members": np.array([0.1, 0.2, 0.3])})
    assert np.isnan(judged(ring, "members", np.random.default_rng(0))["partners"][2])


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n"])
def test_a_file_that_is_no_such_table_is_refused(tmp_path, content):
    file = tmp_path / "pairs.csv"
    if content:
        file.write_text(content)
    with pytest.raises(UsageError):
        mergeability(file)


EXAMPLES = Path(__file__).parents[2] / "examples"
COMMAND = re.compile(r"(?:^|`)loraprobe lab ([^`\n]+)", re.MULTILINE)
TEXTS = {
    f"{page.parent.name}/{page.name}": page.read_text(encoding="utf-8").replace("\\\n", " ")
    for page in EXAMPLES.rglob("*.md")
    if page.name != "rule-simulated.md"  # its README says that the code which made it is gone
}


@pytest.mark.parametrize("page", sorted(page for page in TEXTS if COMMAND.search(TEXTS[page])))
def test_commands_of_stored_pages_are_understood(page):
    group = typer.main.get_command(app)
    for line in COMMAND.findall(TEXTS[page]):
        name, *words = shlex.split(line, comments=True)
        command = group.get_command(None, name)
        assert command is not None, line
        if words:  # a text may name a command alone, or leave out where it writes
            command.make_context(name, [*words, "-o", "DIR"])


@pytest.mark.parametrize(
    ("numbers", "made"),
    [
        ("calibration/rule.json", rule.rule_pages),
        ("reproduction/theory.json", theory.theory_pages),
    ],
)
def test_stored_pages_are_made_of_the_stored_numbers(numbers, made):
    stored = EXAMPLES / numbers
    document = json.loads(stored.read_text(encoding="utf-8"))
    assert made(document).markdown == stored.with_suffix(".md").read_text(encoding="utf-8")


def test_what_joins_the_default_systems_is_what_the_table_of_methods_gives():
    reproduction = EXAMPLES / "reproduction"
    found = methods.choices(json.loads((reproduction / "methods.json").read_text("utf-8")))
    page = (reproduction / "portfolio.md").read_text(encoding="utf-8")
    assert page == methods.portfolio_page(found)
    (joins,) = (one for one in found if one["joins"])
    assert (joins["kind"], display_name(joins["spec"])) == ("several tasks", BY_PROMPT)
    told = re.search(
        r"skill ([\d.]+), against ([\d.]+) .* on (\d+) small worlds", WHY_ADDED[BY_PROMPT]
    )
    figures = (f"{joins['figure']:.2f}", f"{joins['beside']:.2f}", str(joins["worlds"]))
    assert told is not None and told.groups() == figures
