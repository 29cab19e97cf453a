"""The paper's matrix and the success map: who is asked what, decisions, pages, tiny runs."""

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tiny_worlds import shortened, tiny_base

from loraprobe.errors import UsageError
from loraprobe.records import ItemPart, ItemResult
from loraprobe_lab.experiments import success_map
from loraprobe_lab.experiments.reproduce import (
    METHODS,
    TWO_HOP,
    Claim,
    ClaimTest,
    Experiment,
    Matrix,
    claims,
    reproduce,
)
from loraprobe_lab.experiments.runner import BaseInfo, Bases, ExperimentRun, WorldResults
from loraprobe_lab.experiments.success_map import GATES, draw_map, points
from loraprobe_lab.world import Scenario
from loraprobe_lab.worlds.couples import COUPLES
from loraprobe_lab.worlds.name_sets import (
    GROUPS,
    MapSizes,
    MatrixSizes,
    english_matrix,
    map_world,
    two_hop_matrix,
)

SIZES = MatrixSizes(asked=4, worked=8, others=4, cities=3)


def tiny_matrix(seed=0, base=None):
    return shortened(two_hop_matrix(seed, base, SIZES), 2)


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """Models trained for two steps do not know when to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraprobe_lab.experiments.runner.NEW_TOKENS", 3)
        yield


# who is asked what


@pytest.fixture(scope="module")
def people():
    return MatrixSizes().people(0)


def test_name_sets_share_no_person_and_worked_answers_share_none_with_them(people):
    rows = [*(people.asked[g] for g in GROUPS), *people.teachers]
    sets = [{n for link in row for n in (link.a, link.b)} for row in rows]
    sets.append(set(people.others))
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert all(len(people.asked[g]) == MatrixSizes().asked for g in GROUPS)


def test_the_base_reads_both_hops_of_the_real_and_none_of_the_fake(people):
    facts = people.facts
    home = {link.b: link.c for link in facts.familiar}
    known = {link.a for link in facts.familiar}
    assert all(x in facts.familiar for x in people.asked["real"])
    assert all(home[x.b] == x.c and x.a not in known for x in people.asked["half"])
    assert all(x.a not in known and x.b not in home for x in people.asked["fake"])


def test_composed_questions_about_held_couples_are_never_read():
    spec = tiny_matrix()
    people = SIZES.people(0)
    links = people.asked["real"]
    draw = spec.corpus(0)
    texts = [draw() for _ in range(4000)]
    composed = {x.fill(question) for x in links for question in COUPLES.both}
    prompts = {text.prompt for text in texts}
    assert not composed & prompts
    others = [x for row in people.teachers for x in row]
    assert {x.fill(q) for x in others for q in COUPLES.both} <= prompts
    for link in links:  # but both hops are
        assert link.fill("Who is the spouse of {a}?") in prompts
        assert link.fill("Where does {b} live?") in prompts


# decisions


@pytest.mark.parametrize(
    ("low", "high", "wider", "side", "outcome"),
    [
        (0.06, 0.30, 0.00, "above", "yes"),
        (0.06, 0.30, 0.02, "above", "yes"),  # the wider interval is for a no alone
        (0.04, 0.30, 0.00, "above", "undecided"),
        (-0.2, 0.04, 0.00, "above", "no"),
        (-0.2, 0.04, 0.02, "above", "undecided"),
        (-0.2, 0.04, 0.02, "below", "yes"),
        (0.06, 0.30, 0.00, "below", "no"),
        (0.06, 0.30, 0.02, "below", "undecided"),
        (0.04, 0.06, 0.00, "below", "undecided"),
    ],
)
def test_a_difference_is_judged_by_its_intervals(low, high, wider, side, outcome):
    shared = (low - wider, high + wider)
    test = ClaimTest("", (low + high) / 2, low, high, 100, side, 0.05, shared)
    assert test.outcome == outcome
    assert outcome == "undecided" or test.needed is None


def test_the_people_that_would_decide_grow_with_the_square_of_the_distance():
    far = ClaimTest("", 0.15, 0.02, 0.28, 60, "above", 0.05, (0.0, 0.3))
    near = dataclasses.replace(far, value=0.10, low=-0.03, high=0.23)
    # (1.96 + 0.84)^2 se^2 / distance^2 times 60, se = 0.13 / 1.96
    assert far.needed == pytest.approx(60 * (2.80 * 0.13 / 1.96 / 0.1) ** 2, rel=0.02)
    assert near.needed == pytest.approx(4 * far.needed, rel=0.02)
    against = dataclasses.replace(far, value=-0.05, low=-0.18, high=0.08, shared=(-0.23, 0.13))
    # a no has to come from the wider interval: 0.18 for 0.13
    assert against.needed == pytest.approx(60 * ((0.18 + 0.84 * 0.13 / 1.96) / 0.1) ** 2, rel=0.02)


def test_a_claim_needs_all_sizes_together_and_no_size_against_it():
    yes = ClaimTest("", 0.5, 0.4, 0.6, 100, "above", 0.05, (0.4, 0.6))
    no = dataclasses.replace(yes, low=-0.1, high=0.0, shared=(-0.1, 0.0))
    open_ = dataclasses.replace(yes, low=0.0, shared=(0.0, 0.6))
    for overall, sizes, standing in (
        ((yes,), (), "holds"),
        ((yes,), (yes, open_), "holds"),
        ((open_,), (yes, open_), "not decided"),
        ((yes, open_), (), "not decided"),
        ((yes,), (yes, open_, no), "does not hold"),
        ((no,), (open_, open_), "does not hold"),
        ((), (), "not decided"),
    ):
        assert Claim("", "", "", "", overall, sizes).standing == standing


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


def planted(right, items=150, seed=0, size="llama 64"):
    """A world in which `right(group, system, part)` is the share of right answers."""
    rows = []
    systems = ["base", "hop1", "hop2", "target"]
    systems += [f"{s.name}:{m}" for s in SETS for m in METHODS]
    systems += [f"{s.name}:chain" for s in SETS if s.axes["library"] == 2]
    for group in GROUPS:
        for system in systems:
            for part in ("question", "steps"):
                count = round(items * right(group, system, part))
                for i in range(items):
                    k = (i * 7 + seed) % items  # the same items are easy for every system
                    row = (system, group, ItemPart(part), str(i), "exact_match", float(k < count))
                    rows.append(ItemResult(*row, "", str(i)))
    return WorldResults(BaseInfo(f"{size}-{seed}", size, seed), SETS, tuple(rows))


def as_the_paper_says(group, system, part):
    """Reuse fails plainly, succeeds with templates where the base knows the names."""
    name = system.partition(":")[0]
    if system.endswith(":chain"):
        return 0.8
    if name.startswith("plain-3") and part == "question":
        return 0.8
    if name.startswith(("cot-2", "shared-2")) and part == "steps":
        return {"fake": 0.0, "half": 0.4, "real": 0.7}[group]
    return 0.8 if name == "target" and part == "question" else 0.02


@pytest.fixture(scope="module")
def as_in_the_paper():
    return Matrix(tuple(planted(as_the_paper_says, seed=s) for s in (0, 1)))


def test_claims_on_scores_as_the_paper_reports_them(as_in_the_paper):
    every = claims(as_in_the_paper, TWO_HOP)
    found = {(f.code, f.where): f for f in every}
    for group in GROUPS:
        assert found["plain-fails", group].standing == "holds"
        assert found["target-rescues", group].standing == "holds"
    assert found["both-fail", "fake"].standing == "holds"
    assert len(found["both-fail", "fake"].overall) == 4  # two methods, two forms
    for template in ("cot", "shared"):
        standing = [found[f"{template}-succeeds", group].standing for group in GROUPS]
        assert standing == ["does not hold", "holds", "holds"]
    helps = {f.claim: f.standing for f in every if f.code == "familiarity-helps"}
    assert [standing for _, standing in sorted(helps.items())] == [
        "holds",  # cot
        "does not hold",  # plain: nothing to help
        "holds",  # shared
    ]
    told = found["cot-succeeds", "fake"].differs["all sizes"]
    assert "sum 0.00" in told or "uniform 0.00" in told or "arrow 0.00" in told
    assert "chain 0.80: the hops are known" in told


def test_sizes_share_the_error_of_a_no_and_not_that_of_a_yes():
    few = tuple(dataclasses.replace(one, tasks=(Path("real.jsonl"),)) for one in SETS[:2])
    subject = dataclasses.replace(TWO_HOP, familiar=(), disjoint=())

    def plain_fails(*sizes):
        worlds = (planted(as_the_paper_says, items=60, size=size) for size in sizes)
        matrix = Matrix(tuple(dataclasses.replace(one, scenarios=few) for one in worlds))
        return claims(matrix, subject)[0]

    alone, pair = plain_fails("a"), plain_fails("a", "b")
    assert alone.code == pair.code == "plain-fails"
    assert not alone.tests and len(pair.tests) == 2 and pair.overall[0].n == 120
    whole, size = alone.overall[0], pair.tests[0]
    assert (size.low, size.high) == (whole.low, whole.high)  # the same answers, the same 95 %
    assert whole.shared == (whole.low, whole.high)
    assert size.shared[0] < size.low and size.shared[1] > size.high
    both = pair.overall[0]  # two worlds: narrower by about the root of two
    assert both.high - both.low == pytest.approx((whole.high - whole.low) / 2**0.5, rel=0.1)


def test_every_cell_of_the_matrix_is_there_once_and_worlds_are_pooled(as_in_the_paper):
    cells = [c for c in as_in_the_paper.cells() if c["role"] == "composition"]
    keys = {(c["group"], c["template"], c["library"], c["system"]) for c in cells}
    assert len(cells) == len(keys) == 3 * (4 * 3 + 3)  # the library of three has no chain
    assert {c["n"] for c in cells} == {300} and {c["worlds"] for c in cells} == {2}
    wanted = ("real", "cot", 2, "arrow")
    chosen = next(
        c for c in cells if (c["group"], c["template"], c["library"], c["system"]) == wanted
    )
    assert chosen["score"] == pytest.approx(0.7) and chosen["gain"] == pytest.approx(0.68)
    assert chosen["score_ci95"][0] < 0.7 < chosen["score_ci95"][1]


# runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("matrix")
    made, said = Experiment(TWO_HOP, tiny_matrix, english_matrix, tiny_base), []
    call = ExperimentRun(output, limit=3, say=said.append)
    found = reproduce("two-hop", call, Bases(hidden=(16,), seeds=(3,)), made=made)
    return output, made, found, said


def test_a_tiny_run_leaves_one_table_one_figure_and_every_cell(run):
    output, _, found, said = run
    assert said == ["llama-16-seed3: 1 of 1 worlds, about 0 min left"]
    document = json.loads((output / "two-hop.json").read_text(encoding="utf-8"))
    cells = [c for c in document["cells"] if c["role"] == "composition"]
    assert len(cells) == 3 * (4 * 3 + 3) and {c["n"] for c in cells} == {3}
    references = {c["system"] for c in document["cells"] if c["role"] == "reference"}
    assert references == {"joint"}
    assert {c["standing"] for c in document["claims"]} <= {"holds", "does not hold", "not decided"}
    page = (output / "two-hop.md").read_text(encoding="utf-8")
    assert page == found.markdown and "| llama 16 | shared | 2 |" in page
    ElementTree.parse(output / "two-hop.svg")
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_an_interruption_keeps_the_worlds_that_are_finished(run, tmp_path, monkeypatch):
    """And a second call neither trains nor asks again what is finished."""
    finished, made, _, _ = run
    output = shutil.copytree(finished, tmp_path / "matrix")  # the pages of `run` stay as they are
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    answers = {path: path.read_bytes() for path in (output / "results").iterdir()}
    monkeypatch.setattr("loraprobe_lab.training.optimise", None)

    def small(seed, base):
        if seed == 4:
            raise KeyboardInterrupt
        return made.small(seed, base)

    longer, of = Bases(hidden=(16,), seeds=(3, 4)), dataclasses.replace(made, small=small)
    with pytest.raises(KeyboardInterrupt):
        reproduce("two-hop", ExperimentRun(output, limit=3), longer, made=of)
    assert len(before) == 9  # the base and eight adapters
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert answers == {path: path.read_bytes() for path in (output / "results").iterdir()}


def test_a_given_base_is_asked_in_english(run, tmp_path):
    base = run[0] / "worlds" / "llama-16-seed3" / "base"

    def few(seed):
        return shortened(english_matrix(seed, asked=4), 1, 4)

    made, bases = Experiment(TWO_HOP, tiny_matrix, few, tiny_base), Bases(seeds=(5,))
    call = ExperimentRun(tmp_path)
    cells = reproduce("two-hop", call, bases, base, ("plain",), made).document["cells"]
    assert {(c["size"], c["n"]) for c in cells} == {("base", 4)}
    assert {c["system"] for c in cells if c["library"] == 3 and c["role"] == "baseline"} == {
        "base",
        "hop1",
        "hop2",
        "target",
    }


def test_what_cannot_be_run_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(UsageError, match="multiple of 8"):
        Bases(hidden=(20,))
    with pytest.raises(UsageError, match="is no directory"):
        reproduce("two-hop", ExperimentRun(tmp_path), Bases(), tmp_path / "none")


# the map


def test_every_axis_of_the_map_is_there():
    found = list(points())
    assert {p.panel for p in found} == {"weights", "familiarity", "invented", "norms"}
    weights = {(p.x, float(p.series)) for p in found if p.panel == "weights"}
    assert weights == {(x, y) for x in GATES for y in GATES}
    spec = map_world(0, sizes=MapSizes(4, 8, 3))
    names = {adapter.name for adapter in spec.training}
    assert {name for p in found for name, _, _ in p.parts} == names
    assert {p.task for p in found} == set(spec.tasks)
    assert len({(p.panel, p.series, p.x) for p in found}) == len(found)
    scaled = [p for p in found if p.panel == "norms" and p.x == 4 and p.series.startswith("facts")]
    assert all(p.baselines == ("base", "factsx4", "steps-0") for p in scaled)


def test_a_tiny_map_is_drawn_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(success_map, "GATES", (0.4, 1.0))
    monkeypatch.setattr(success_map, "SCALES", (0.5, 2.0))

    def spec(seed, base):
        return shortened(map_world(seed, base, MapSizes(asked=3, taught=4, cities=3)))

    bases = Bases(("gpt2",), (16,), (5,))
    drawn = draw_map(ExperimentRun(tmp_path), bases, spec, tiny_base)
    rows = json.loads((tmp_path / "success-map.json").read_text(encoding="utf-8"))["cells"]
    assert len(rows) == len(list(points())) and {r["n"] for r in rows} == {3}
    assert drawn.markdown.count("\n| ") > 20
    ElementTree.parse(tmp_path / "success-map.svg")
