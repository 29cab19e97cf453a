"""Subtraction and balancing before merging and routing, against dense float64 algebra; `--balance`,
`--subtract` and negative weights on the command line, in cards and in audits."""

import composing
import making
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loraprobe
from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.composition import Composition
from loraprobe.errors import CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.plan import SystemBuilder, baseline_systems, plan_of
from loraprobe.pipeline.transforms import scaled_adapter, subtracted, transform
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Hop, Item, Task

PATHS = {"a.proj": (6, 5), "b.proj": (4, 7), "emb": (3, 9), "conv": (5, 12)}


def dense(adapter, path: str) -> torch.Tensor:
    """[out, in], float64; zero where the adapter leaves the module of PATHS alone."""
    if path not in adapter.modules:
        return torch.zeros(*PATHS[path], dtype=torch.float64)
    return adapter.modules[path].to(torch.float64).delta()


def some(name: str, seed: int, drop: tuple[str, ...] = (), **options):
    shapes = {path: shape for path, shape in making.LLAMA.items() if not path.endswith(drop)}
    return making.random_adapter(name, shapes if drop else making.LLAMA, seed=seed, **options)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return float((found - wanted).norm()) <= tolerance * max(float(wanted.norm()), 1e-12)


KINDS = {"emb": "embedding", "conv": "convolution"}


@st.composite
def drawn_adapters(draw):
    """Adapters over some of the modules, of any rank, scaling and dtype."""
    made, seed = [], draw(st.integers(0, 10**6))  # of one seed each: equal ones leave nothing
    for number in range(draw(st.integers(2, 5))):
        paths = draw(st.sets(st.sampled_from(sorted(PATHS)), min_size=1))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        modules = {
            path: making.random_update(
                *PATHS[path],
                rank=draw(st.integers(1, 4)),
                seed=seed + 100 * number,
                scaling=draw(st.sampled_from([1.0, -0.5, 1 / 3, 7.0])),
                dtype=dtype,
            )
            for path in sorted(paths)
        }
        kinds = {path: kind for path, kind in KINDS.items() if path in paths}
        kernels = {"conv": (2, 2)} if "conv" in paths else {}
        made.append(adapter_of(f"n{number}", modules, kinds=kinds, kernels=kernels))
    return made, draw(st.integers(1, len(made) - 1)), draw(st.booleans())


@settings(max_examples=40)
@given(drawn_adapters())
def test_drawn_adapters_are_subtracted_from_and_balanced_exactly(drawn):
    adapters, n, balance = drawn
    tasks, general = adapters[:n], adapters[n:]

    wanted = [
        {p: dense(task, p) - sum(dense(g, p) for g in general) / len(general) for p in PATHS}
        for task in tasks
    ]
    norms = [sum(float(d.norm()) ** 2 for d in each.values()) ** 0.5 for each in wanted]
    mean = sum(norms) / len(norms)
    found = transform(tasks, Options(balance="norm" if balance else "none"), general)
    for task, after, each, norm in zip(tasks, found.adapters, wanted, norms, strict=True):
        assert set(after.modules) == set(task.modules).union(*(g.modules for g in general))
        assert after.norm() == pytest.approx(mean if balance else norm, rel=1e-5)
        for path, info in after.layout.items():
            assert close(dense(after, path), each[path] * (mean / norm if balance else 1), 1e-5)
            assert (info.kind, info.kernel) == (
                KINDS.get(path, "linear"),
                (2, 2) if path == "conv" else (),
            )
            update = after.modules[path]
            assert (info.rank, info.scaling) == (update.rank, update.scaling)


def test_nothing_is_read_before_it_is_asked_for():
    def refuse(path):
        raise AssertionError(path)

    task, other = some("a", 1), some("g", 2)
    object.__setattr__(task.modules, "_read", refuse)
    assert len(scaled_adapter(task, 2.0).modules) == 14 == len(subtracted(task, [other]).modules)


def test_route_takes_the_same_options():
    adapters, general = composing.experts(2), some("g", 3)
    found = transform(adapters, Options(balance="norm"), [general])
    model = making.tiny_llama()
    with Composition("arrow", found.adapters, ROUTERS.make("arrow")).into(model):
        wanted = making.hidden(model)
    with loraprobe.route(model, adapters, balance="norm", subtract=general):
        assert composing.relative(making.hidden(model), wanted) < 1e-6
    with loraprobe.route(model, adapters):
        assert composing.relative(making.hidden(model), wanted) > 1e-3


def test_what_is_not_linear_in_factors_is_refused_by_name():
    path = "model.layers.0.self_attn.q_proj"
    update = {path: making.random_update(16, 16)}
    dora = adapter_of("dora", update, magnitudes={path: torch.ones(16)})
    whole = adapter_of("headed", update, whole={"lm_head.weight": torch.ones(40, 16)})
    lora_bias = adapter_of("biased", update, offsets={path: torch.ones(16)})
    plain = adapter_of("plain", update)
    for adapter, how in ((dora, "DoRA"), (whole, "modules")):
        with pytest.raises(UnsupportedAdapter, match=f"{adapter.name} holds .*{how}"):
            transform([plain, adapter], Options(balance="norm"))
    for adapter in (dora, whole, lora_bias):
        with pytest.raises(UnsupportedAdapter, match=adapter.name):
            transform([plain], Options(), [adapter])
    assert torch.equal(
        subtracted(whole, [some("g", 1)]).whole["lm_head.weight"], whole.whole["lm_head.weight"]
    )
    tripled = scaled_adapter(lora_bias, 3.0)
    kept = tripled.offsets[path] * tripled.layout[path].scaling
    assert torch.equal(kept, torch.full((16,), 1.5))
    kept = subtracted(lora_bias, [some("g", 1)])
    assert torch.equal(kept.offsets[path] * kept.layout[path].scaling, torch.full((16,), 0.5))


def test_what_cannot_be_subtracted_is_one_sentence():
    task = some("a", 1)
    with pytest.raises(UsageError, match="Nothing is left of adapter a without b"):
        transform([task], Options(), [task.renamed("b")])
    other = making.random_adapter("g", {"model.layers.0.mlp.up_proj": (24, 20)})
    with pytest.raises(CompatibilityError, match=r"up_proj is linear \[24, 16\] in a"):
        subtracted(task, [other])
    zero = adapter_of("zero", {"x": making.random_update(4, 4).scaled(0.0)})
    with pytest.raises(UsageError, match="zero has no effect"):
        transform([zero, task], Options(balance="norm"))


def test_controls_are_made_of_prepared_partners_and_singles_stay():
    adapters = [some("a", 1), some("b", 2, scaling=4.0)]
    balanced = Options(balance="norm")
    builder = SystemBuilder(adapters, transform(adapters, balanced), balanced)
    prepared = builder.prepared.adapters
    assert [s.composition.experts[0] for s in baseline_systems(adapters)[1:]] == adapters
    hopped = Task("t", (Item("1", "p", ("a",), hops=(Hop("h", ("a",)),)),))
    built = {one: builder.build(one) for one in plan_of(balanced, adapters, [hopped]).specs}
    assert built["uniform"].composition.experts == prepared
    assert [c.experts[0] for c in built["chain"].chain] == adapters
    controls = {s.name: s.composition for s in builder.controls("a", "arrow")}
    assert controls["shrunk:a"].experts == (adapters[0],)
    kept, drawn = controls["random-partner"].experts
    assert kept is prepared[0]
    assert drawn.norm() == pytest.approx(prepared[1].norm(), rel=1e-5)


# The command line


def test_merge_command_and_card_state_the_transformations(tmp_path):
    for name, seed, scaling in (("a", 1, 0.5), ("b", 2, 4.0), ("g", 3, 1.0)):
        some(name, seed, scaling=scaling, dtype=torch.bfloat16).save(tmp_path / name)
    a, b, g = (str(tmp_path / name) for name in "abg")
    options = ["--balance", "norm", "--subtract", g]
    steps = making.document("merge", a, b, "-o", tmp_path / "out", *options)["transformations"]
    assert [step["subtracted"] for step in steps] == [["g"], ["g"]]
    merged, sources = read_adapter(tmp_path / "out"), [read_adapter(p) for p in (a, b, g)]
    assert merged.dtype is torch.bfloat16  # the sources' widest
    path = "model.layers.1.mlp.down_proj"
    wanted = sum(
        (dense(source, path) - dense(sources[2], path)) * step["factor"] / 2
        for source, step in zip(sources[:2], steps, strict=True)
    )
    assert close(dense(merged, path), wanted, 0.01)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{steps[1]['factor']:.4g}" in card and "subtracted" in card
    api = loraprobe.merge([a, b], balance="norm", subtract=[g])
    assert close(dense(api.adapter, path), wanted, 0.01) and "subtracted" in api.card


@pytest.mark.parametrize(
    "form", [["--weights", "1,-0.5"], ["--weights", "-0.5,1"], ["--weights=-1,1"]]
)
def test_negative_weights_negate_and_the_card_states_it(tmp_path, form):
    a, b = some("a", 1), some("b", 2)
    for adapter in (a, b):
        adapter.save(tmp_path / adapter.name)
    out = tmp_path / "out"
    call = ["merge", tmp_path / "a", tmp_path / "b", "--method", "task-arithmetic"]
    assert making.call(*call, *form, "-o", out).exit_code == 0
    w = [float(x) for x in form[-1].rpartition("=")[2].split(",")]
    path = "model.layers.0.self_attn.k_proj"
    found = dense(read_adapter(out), path)
    assert close(found, w[0] * dense(a, path) + w[1] * dense(b, path))
    assert "negated" in (out / "README.md").read_text()


def test_merge_and_eval_leaves_single_adapters_as_they_are():
    """On the shipped world: the same rows for base and singles, others for merges."""
    options = "--limit 12 --system sum --metric answer_loss --margin 0.05".split()
    call = ["merge-and-eval", *making.shipped("keep-both"), *options]
    rows = []
    for extra in ([], ["--balance", "norm"]):
        _, document = making.answered(*call, *extra)
        rows.append({(r["system"], r["task"]): r["value"] for r in document["evaluation"]})
    assert document["verdict"]["probability"] is None
    assert {step["adapter"] for step in document["transformations"]} == {"last", "count"}
    for key, value in rows[0].items():
        assert (rows[1][key] == value) == (key[0] not in ("sum", "random-partner")), key
