"""Saved compositions: what is read back is what was saved, and what peft's Arrow makes of them."""

import json
import re
import warnings
from pathlib import Path

import composing
import making
import pytest
import torch
from composing import learnable, logits

import loraprobe
from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.base import open_base
from loraprobe.cache import file_hash
from loraprobe.composition import Composition
from loraprobe.errors import AdapterError, OutputError, UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.pipeline.transforms import scaled_adapter, subtracted
from loraprobe.routing import ROUTERS
from loraprobe.routing._saved import FILE, Routed, load_composition, why_not_peft
from loraprobe.routing.constant import ConstantGates, single


def files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def from_disk(tmp_path: Path, *names: str) -> tuple:
    """Random adapters, written and read."""
    read = []
    for seed, name in enumerate(names):
        making.random_adapter(name, seed=seed).save(tmp_path / "sources" / name)
        read.append(read_adapter(tmp_path / "sources" / name))
    return tuple(read)


TEXTS = {"a": ["a 1", "a 2", "a 3"], "b": ["Was it b?", "Was it not b?"]}


def made_router(name: str):
    router = ROUTERS.make(name)
    if not router.needs_prompts:
        return router
    generator = torch.Generator().manual_seed(0)
    if router.reads_text:
        return router.fit(None, [making.random_adapter(n) for n in "ab"], TEXTS)
    planted = {
        f"centroid.{path}": torch.randn(2, inp, generator=generator)
        for path, (_, inp) in making.LLAMA.items()
    }
    return router.with_state(planted)


@pytest.mark.parametrize(
    "name",
    [*ROUTERS.names(), "arrow:top_k=1,temperature=0.5,normalize=true", "arrow:temperature=inf"],
)
def test_every_router_comes_back_as_it_was(tmp_path, name):
    composition = Composition(name, from_disk(tmp_path, "a", "b"), made_router(name))
    made = Routed(composition)
    made.save(tmp_path / "out")
    assert ("answering" in made.load) == ("router.json" in files(tmp_path / "out"))
    assert ("answering" in made.load) == (name == "by_text")
    json.loads((tmp_path / "out" / FILE).read_text(), parse_constant=pytest.fail)
    restored = loraprobe.load_composition(tmp_path / "out")
    assert (restored.name, repr(restored.router)) == (name, repr(composition.router))
    known, own = composition.router.state(), restored.router.state()
    assert all(torch.equal(own[key], known[key]) for key in known | own)
    assert [e.name for e in restored.experts] == ["a", "b"]
    model = making.tiny_llama()
    one, other = (c.answering("a 1") for c in (composition, restored))  # what a layer can run
    assert len(one.experts) == (1 if name == "by_text" else 2)
    assert torch.equal(logits(model, one), logits(model, other))
    assert ("router.safetensors" in files(tmp_path / "out")) == bool(composition.router.state())


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 3}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_experts_are_the_files_that_peft_wrote(tmp_path, options):
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    for seed, name in enumerate("ab"):
        making.peft_adapter(tmp_path / name, making.tiny_llama(tied=False), seed, **config)
    experts = tuple(read_adapter(tmp_path / name) for name in "ab")
    composition = Composition("sum", experts, ConstantGates.ones(2))
    Routed(composition).save(tmp_path / "out")
    for name in "ab":
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            copy = tmp_path / "out" / "experts" / name / file
            assert copy.read_bytes() == (tmp_path / name / file).read_bytes()
    model = making.tiny_llama(tied=False)
    assert torch.equal(
        logits(model, composition),
        logits(model, load_composition(tmp_path / "out")),
    )


def test_what_was_done_to_an_expert_is_what_peft_loads(tmp_path):
    from peft import PeftModel

    a, b, g = from_disk(tmp_path, "a", "b", "g")
    experts = (scaled_adapter(a, 2.5), scaled_adapter(subtracted(b, [g]), 0.5))
    Routed(Composition("arrow", experts, ROUTERS.make("arrow"))).save(tmp_path / "out")
    restored = load_composition(tmp_path / "out")
    for expert, own in zip(experts, restored.experts, strict=True):
        for path in making.LLAMA:
            wanted = expert.modules[path].to(torch.float64).delta()
            found = own.modules[path].to(torch.float64).delta()
            assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())
        model = making.tiny_llama()
        ours = logits(model, single(expert))
        peft = PeftModel.from_pretrained(making.tiny_llama(), own.source.path)
        assert composing.relative(making.hidden(peft), ours) < 1e-5
    document = json.loads((tmp_path / "out" / FILE).read_text())
    assert [entry["copied"] for entry in document["experts"]] == [False, False]


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"lora_bias": True}])
def test_what_stands_beside_factors_survives_a_transformation(tmp_path, options):
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    making.peft_adapter(tmp_path / "a", making.tiny_llama(tied=False), **config)
    shapes = {p: s for p, s in making.LLAMA.items() if p.endswith(("q_proj", "down_proj"))}
    general = making.random_adapter("g", shapes, seed=5)
    expert = subtracted(read_adapter(tmp_path / "a"), [general])
    composition = Composition("a", (expert,), ConstantGates.ones(1))
    Routed(composition).save(tmp_path / "out")
    model = making.tiny_llama(tied=False)
    restored = load_composition(tmp_path / "out")
    assert restored.experts[0].extras
    assert composing.relative(logits(model, restored), logits(model, composition)) < 1e-6


def test_pickles_and_keys_that_peft_would_ignore_are_rewritten(tmp_path):
    tensors = {}
    for path, (out, inp) in list(making.LLAMA.items())[:2]:
        update = making.random_update(out, inp)
        tensors |= {f"{path}.lora_A.weight": update.A, f"{path}.lora_B.weight": update.B}
    prefixed = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    targets = {"target_modules": ["q_proj", "k_proj"]}
    making.write_adapter(tmp_path / "a", prefixed, pickle=True, **targets)
    making.write_adapter(tmp_path / "b", tensors, **targets)
    experts = tuple(read_adapter(tmp_path / name) for name in "ab")
    Routed(Composition("uniform", experts, ConstantGates())).save(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.bin"))
    for own in load_composition(tmp_path / "out").experts:
        assert not own.issues
        for path, update in own.modules.items():
            assert torch.equal(update.A, tensors[f"{path}.lora_A.weight"])


def test_names_become_folders_of_their_own(tmp_path):
    names = ["x/y", "x-y", "A", "a", "..", "ä b"]
    experts = tuple(making.random_adapter(n, seed=i) for i, n in enumerate(names))
    Routed(Composition("uniform", experts, ConstantGates())).save(tmp_path / "out")
    folders = sorted(p.name for p in (tmp_path / "out" / "experts").iterdir())
    assert len({folder.lower() for folder in folders}) == len(names)
    assert [e.name for e in load_composition(tmp_path / "out").experts] == names


def damaged(change):
    """A function that changes the composition.json of a directory."""

    def apply(directory: Path) -> None:
        document = json.loads((directory / FILE).read_text())
        change(document)
        (directory / FILE).write_text(json.dumps(document))

    return apply


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def of_router(**options):
    return damaged(lambda document: document["router"]["options"].update(options))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda d: (d / "experts/a" / WEIGHTS).write_bytes(b"x"), f"experts/a/{WEIGHTS} is not"),
        (lambda d: (d / "experts/b" / CONFIG).write_text("{}"), f"experts/b/{CONFIG} is not"),
        (lambda d: (d / "experts/b" / CONFIG).unlink(), "is missing"),
        (lambda d: (d / FILE).unlink(), "holds no composition.json"),
        (lambda d: (d / FILE).write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / FILE).write_text("{}"), "damaged"),
        (damaged(lambda j: j.update(schema_version=2)), "version 2"),
        (
            damaged(lambda j: j["router"].update(name="os")),
            "the router 'os', which nothing installed has",
        ),
        (damaged(lambda j: j["router"].update(name="_scored")), "which nothing installed has"),
        (of_router(evil=1), "evil"),
        (of_router(top_k=0), "top_k"),
        (of_router(top_k="x"), "valid integer"),
        (of_router(top_k=["a"]), "damaged"),
        (damaged(lambda j: j["experts"][0].update(folder="../../sources/a")), "folder"),
        (damaged(lambda j: j["experts"][0].update(folder="..")), "folder"),
        (damaged(lambda j: j["experts"][0]["files"].clear()), "sha256"),
        (damaged(lambda j: j.update(experts=[1])), "damaged"),
        (damaged(lambda j: j.update(experts=[])), "experts"),
    ],
)
def test_a_changed_directory_is_refused_by_name(tmp_path, spoil, said):
    composition = Composition("arrow", from_disk(tmp_path, "a", "b"), ROUTERS.make("arrow"))
    Routed(composition).save(tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(AdapterError, match=re.escape(said)):
        load_composition(tmp_path / "out")


def test_a_changed_state_of_a_router_is_refused(tmp_path):
    composition = Composition("centroid", from_disk(tmp_path, "a", "b"), made_router("centroid"))
    Routed(composition).save(tmp_path / "out")
    (tmp_path / "out" / "router.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(AdapterError, match=r"router.safetensors is not the file"):
        load_composition(tmp_path / "out")
    matching = file_hash(tmp_path / "out" / "router.safetensors")
    damaged(lambda j: j["router"].update(state_sha256=matching))(tmp_path / "out")
    with pytest.raises(AdapterError, match=r"router.safetensors is broken"):
        load_composition(tmp_path / "out")


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    experts = from_disk(tmp_path, "a", "b")
    before = files(tmp_path)
    for router, said in (
        (learnable(0.5, 0.5), "is none of"),
        (ROUTERS.make("centroid"), "prompts"),
    ):
        with pytest.raises(UsageError, match=said):
            Routed(Composition("x", experts, router)).save(tmp_path / "out")
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_overwriting_takes_only_what_is_ours(tmp_path):
    a, b = from_disk(tmp_path, "a", "b")
    made, out = (
        Routed(Composition("arrow", (a, b), ROUTERS.make("arrow")), card="x"),
        tmp_path / "out",
    )
    made.save(out)
    with pytest.raises(OutputError, match="exists already"):
        made.save(out)
    made.save(out, overwrite=True)
    a.save(out, overwrite=True)  # an adapter in place of a composition
    assert "composition.json" not in files(out)
    made.save(out, overwrite=True)  # and the other way
    kept = files(out)
    for foreign in (
        "notes.txt",
        "experts/mine.txt",
        "experts/a/data.csv",
        "peft/x.py",
        "other/adapter_config.json",
    ):
        (out / foreign).parent.mkdir(exist_ok=True)
        (out / foreign).write_text("mine")
        for save in (made.save, a.save):
            with pytest.raises(OutputError, match="is not overwritten"):
                save(out, overwrite=True)
        (out / foreign).unlink()
        if foreign.startswith(("peft", "other")):
            (out / foreign).parent.rmdir()
    assert files(out) == kept


GPT2 = {
    f"transformer.h.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {"attn.c_attn": (48, 16), "mlp.c_fc": (64, 16)}.items()
}


def planted(name: str, seed: int, shapes=making.LLAMA):
    """Deltas whose second singular value is 0.97 of the first, in every module."""
    modules = {}
    for number, (path, (out, inp)) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(seed * 100 + number)
        U, V = (
            torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64)).Q
            for n in (out, inp)
        )
        S = torch.tensor([2.0, 2.0 * 0.97, 0.1], dtype=torch.float64)
        A, B = (V.T * S[:, None].sqrt()).float(), (U * S.sqrt()).float()
        modules[path] = LowRank(A, B, 1.5)
    return adapter_of(name, modules, base_model="owner/base")


def base_of(model, directory: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    return open_base(directory, "tiny")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("router", ["arrow", "arrow:top_k=2,temperature=0.3"])
def test_peft_gives_the_same_by_the_lines_of_the_card(tmp_path, kind, router):
    """Which are run as they stand."""
    model, shapes = composing.base(kind), making.LLAMA if kind == "llama" else GPT2
    kinds = dict.fromkeys(shapes, "conv1d" if kind == "gpt2" else "linear")
    for seed, name in enumerate("abc"):
        modules = dict(planted(name, seed, shapes).modules.items())
        adapter_of(name, modules, kinds=kinds).save(tmp_path / name)
    base_of(model, tmp_path / "base")
    made = loraprobe.compose(
        [str(tmp_path / n) for n in "abc"], router=router, base=str(tmp_path / "base")
    )
    assert made.why_not_peft is None
    made.save(tmp_path / "out")
    ours = logits(model, load_composition(tmp_path / "out"))
    assert composing.relative(ours, making.hidden(model)) > 0.01
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)[1]
    code = code.replace('pathlib.Path(".")', f"pathlib.Path({str(tmp_path / 'out')!r})")
    code = re.sub(r"^base = .*\n", "", code, flags=re.MULTILINE)  # it is given here
    space = {"base": composing.base(kind)}
    exec(code, space)
    assert composing.relative(making.hidden(space["model"]), ours) < 1e-5
    # Pinned: peft left to itself routes otherwise.
    alone = {"base": composing.base(kind)}
    exec(code.partition("from safetensors")[0], alone)
    assert composing.relative(making.hidden(alone["model"]), ours) > 1e-4


def test_why_peft_cannot_is_said_by_name(tmp_path):
    base = base_of(making.tiny_llama(), tmp_path / "base")
    good = tuple(planted(name, seed) for seed, name in enumerate("ab"))
    q = "model.layers.0.self_attn.q_proj"
    some = {path: shape for path, shape in making.LLAMA.items() if "layers.0" in path}
    fewer = {path: shape for path, shape in making.LLAMA.items() if path != q}
    rank = {path: 3 + (path == q) for path in making.LLAMA}
    dora = adapter_of("dora", dict(good[0].modules.items()), magnitudes={q: torch.ones(16)})
    embedding = adapter_of(
        "emb",
        {"model.embed_tokens": making.random_update(16, 40)},
        kinds={"model.embed_tokens": "embedding"},
    )

    def why(experts, router="arrow", known=base):
        return why_not_peft(Composition("x", tuple(experts), ROUTERS.make(router)), known)

    assert why(good) is None
    for experts, router, known, said in (
        (good, "arrow", None, "without the base"),
        (good, "constant", base, "its router is constant"),
        (good, "hard", base, "its router is hard"),
        (good, "arrow:normalize=true", base, "without normalize"),
        (good, "arrow:per=sequence", base, "each token"),
        (good, "arrow:temperature=inf", base, "finite temperature"),
        ((good[0], planted("c", 3, shapes=fewer)), "arrow", base, "c is more than"),
        ((good[0], making.random_adapter("c", rank=rank)), "arrow", base, "or ranks than a"),
        ((good[0], dora), "arrow", base, "dora is more than"),
        ((embedding,), "arrow", base, "emb is more than"),
        (
            [planted(n, 1, shapes=some) for n in "ab"],
            "arrow",
            base,
            "put on model.layers.1",
        ),
    ):
        assert said in why(experts, router, known), said
