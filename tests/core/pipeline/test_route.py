"""`loraprobe route`, and the composition that merge-and-eval recommends."""

import itertools
import json
from dataclasses import replace

import composing
import making
import pytest

import loraprobe
from loraprobe.options import Options
from loraprobe.pipeline.outcome import recommend
from loraprobe.pipeline.plan import SystemBuilder
from loraprobe.pipeline.transforms import PreparedAdapters, transform
from loraprobe.records import BY_TEXT, Action, Verdict, display_name
from loraprobe.routing import ROUTERS
from loraprobe.routing._saved import Routed, load_composition
from loraprobe.routing.constant import ConstantGates
from loraprobe_lab import shipped_world


def test_route_command(tmp_path):
    a, b = making.saved_pair(tmp_path)
    out = tmp_path / "out"
    call = ["route", a, f"other={b}", "-o", out]
    document = making.document(*call, "--balance", "norm", "--router", "arrow:top_k=1")
    assert document["command"] == "route" and len(document["transformations"]) == 2
    assert document["provenance"]["arguments"] is not None
    verdict = document["verdict"]
    assert (verdict["evidence"], verdict["decision"]) == ("weights", "inconclusive")
    assert verdict["next"].startswith("loraprobe merge-and-eval")
    assert all(row["norm"] is not None for row in document["adapters"])
    composition = load_composition(out)
    assert composition.router == ROUTERS.make("arrow:top_k=1")
    assert [e.name for e in composition.experts] == ["a", "other"]
    card = (out / "README.md").read_text()
    assert "load_composition" in card and "scaled by" in card
    assert making.call(*call).exit_code == 2  # it exists
    constant = ["--router", "constant", "--weights", "1,-0.5"]
    quiet = making.call(*call, "--overwrite", "--quiet", *constant)
    assert quiet.exit_code == 0 and quiet.stderr == "" and len(quiet.stdout.splitlines()) == 1
    assert load_composition(out).router == ConstantGates((1.0, -0.5))


@pytest.mark.needs("verify")
@pytest.mark.parametrize("spec", ["centroid", "hard:by=centroid,per=sequence", BY_TEXT])
def test_a_router_that_learns_is_fitted_before_it_is_saved(tmp_path, spec):
    world = shipped_world()
    adapters = world.scenario("disjoint").adapters
    refs = [f"{name}={path}" for name, path in adapters.items()]
    prompts = []
    for name in adapters:
        (tmp_path / name).write_text(f"Tell me of {name}\nWho is {name}?\n")
        prompts += ["--router-prompts", f"{name}={tmp_path / name}"]
    options = ["--router", spec, "--base", world.base, *prompts, "--json"]
    result = making.call("route", *refs, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)["notes"]
    assert any(f"{display_name(spec)} learned from 2 prompts" in line for line in notes)
    told = " ".join([*notes, *result.stderr.split()])
    assert "hard:" not in told and f"Wrote {display_name(spec)} to " in told
    router = load_composition(tmp_path / "out").router
    assert not router.needs_prompts and router.state()
    # It is fitted again to the files of prompts, which lie beside it.
    assert loraprobe.verify(tmp_path / "out", list(adapters.values()), world.base).passed
    for name in adapters:
        (tmp_path / name).write_text("Another prompt\n")
    found = loraprobe.verify(tmp_path / "out", list(adapters.values()), world.base)
    assert found.passed is None
    assert {c.name for c in found.checks if not c.passed} == {f"prompts {n}" for n in adapters}


def test_a_recommended_router_is_saved_as_a_composition(tmp_path):
    """The output of `merge-and-eval --output` when the verdict is about a router."""
    experts = composing.experts(2)
    balanced = Options(balance="norm")
    builder = SystemBuilder(experts, transform(experts, balanced), balanced)
    built = [builder.build(spec) for spec in ("uniform", "sum", "arrow")]
    for action in ("route", "step-by-step"):
        verdict = Verdict("likely", "evaluation", (), "arrow", Action(action), composes=True)
        made, why = recommend(verdict, built, builder)
        assert isinstance(made, Routed) and "weighs" in why  # so no full model holds it
        made.save(tmp_path / action)
        restored = load_composition(tmp_path / action)
        model, found = making.tiny_llama(), []
        wanted = next(one.composition for one in built if one.name == "arrow")
        for composition in (restored, wanted):
            with composition.into(model):
                found.append(making.hidden(model))
        assert composing.relative(*found) < 1e-6


def test_what_is_not_advised_is_not_saved_and_the_best_measured_is():
    """A router or a form that is still to be tried is no reason to save what failed."""
    experts = composing.experts(2)
    builder = SystemBuilder(experts, PreparedAdapters(experts), Options())
    built = [builder.build(spec) for spec in ("uniform", "sum", "arrow")]
    actions = ("route", "step-by-step", "chain", "use-single:e0", "gather-evidence")
    for action, system in itertools.product(actions, ("uniform", "arrow")):
        verdict = Verdict("unlikely", "evaluation", system=system, action=Action.read(action))
        made, why = recommend(verdict, built, builder)
        assert made is None and action in why
        advised = replace(verdict, composes=True)
        assert recommend(advised, built, builder)[0] is not None
