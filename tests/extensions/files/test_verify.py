"""A merged directory is read back before it appears, and verified later against its card, its
sources and its base, which are found again and have to be the ones that were used."""

import json
import os
import shutil
from pathlib import Path

import making
import pytest
import tampering
import torch
from making import call, peft_adapter, random_adapter, saved_pair, tiny_llama
from merges import merge

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.errors import AdapterError
from loraprobe.extensions.files.provenance import MergeRecord
from loraprobe.extensions.files.verification import Check, Verification
from loraprobe.extensions.files.verifying import TOLERANCES, same_product
from loraprobe.front_matter import read_front_matter
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS
from loraprobe_lab import shipped_world

WEIGHTS, CARD, STATE = "adapter_model.safetensors", "README.md", "out/router.safetensors"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, tmp_path):
    """For the disk, or for a search of sources in the folders of the repository."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


@pytest.fixture
def pair(tmp_path):
    return [str(path) for path in saved_pair(tmp_path, tampering.SHAPES, scaling=0.1)]


def merged(pair, tmp_path, *options: str) -> Path:
    out = tmp_path / "out"
    done = call("merge", *pair, "-o", out, *options)
    assert done.exit_code == 0, done.output
    return out


def failed(out: Path, *others: str | Path) -> list[str]:
    """The names of the checks that do not hold, or that cannot be told where none fails."""
    result = call("verify", out, *others, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == {True: 0, False: 1, None: 3}[document["verified"]], result.output
    told = document["checks"]
    return [c["name"] for c in told if c["passed"] is document["verified"] is not True]


@pytest.mark.parametrize(
    "options",
    [
        *(["--method", name, "--rank", "6"] for name in METHODS.names()),
        ["--method", "task_arithmetic", "--weights", "1,-0.3", "--balance", "norm"],
        ["--method", "ties:density=0.4,variant=mergekit", "--space", "core", "--dtype", "bfloat16"],
        ["--method", "dare_linear:density=0.3", "--seed", "7", "--rank", "3"],
    ],
    ids=" ".join,
)
def test_every_method_and_choice_is_in_the_card(pair, tmp_path, options):
    assert failed(merged(pair, tmp_path, *options)) == []


def test_a_merge_in_float64_is_verified(tmp_path):
    for seed, name in enumerate("ab"):
        adapter = random_adapter(name, tampering.SHAPES, seed=seed, dtype=torch.float64)
        adapter.save(tmp_path / name)
    out = merged([str(tmp_path / name) for name in "ab"], tmp_path)
    assert failed(out) == []
    tampering.weights(lambda t: {key: tensor * (1 + 1e-6) for key, tensor in t.items()})(tmp_path)
    assert failed(out) == [WEIGHTS]


def test_a_subtraction_is_repeated(pair, tmp_path):
    random_adapter("g", tampering.SHAPES, seed=9, scaling=0.1).save(tmp_path / "g")
    out = merged(pair, tmp_path, "--subtract", str(tmp_path / "g"))
    assert failed(out) == []
    random_adapter("g", tampering.SHAPES, seed=10, scaling=0.1).save(tmp_path / "g", overwrite=True)
    assert failed(out) == ["source g"]


OPTIONS = {"merge": ("--method", "task_arithmetic", "--weights", "0.7,0.4"), "route": ()}
TAMPERINGS = {"merge": tampering.of_merges(), "route": tampering.of_compositions()}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A folder of `tampering.made` for each command and dtype, made once."""
    made = {}

    def folder(command: str, dtype: str) -> Path:
        if (command, dtype) not in made:
            place = tmp_path_factory.mktemp(f"{command}-{dtype}")
            made[command, dtype] = tampering.made(place, command, dtype, *OPTIONS[command])
        return made[command, dtype]

    return folder


@pytest.fixture
def copied(untouched, tmp_path):
    """A copy of it, to be changed."""

    def copy(command: str, dtype: str) -> Path:
        return Path(shutil.copytree(untouched(command, dtype), tmp_path / "x/y/z", symlinks=True))

    return copy


@pytest.mark.parametrize("dtype", tampering.DTYPES)
@pytest.mark.parametrize("command", OPTIONS)
def test_unchanged_directories_are_verified(copied, command, dtype):
    assert failed(copied(command, dtype) / "out") == []


def test_the_text_of_a_card_is_not_checked(copied):
    """It may be edited, and is not called ok; everything else is."""
    out = copied("merge", "float32") / "out"
    (out / CARD).write_text((out / CARD).read_text() + "Mine.\n")
    told = json.loads(call("verify", out, "--json").stdout)
    assert told["verified"] and [c["name"] for c in told["checks"] if not c["checked"]] == [CARD]
    rows = [line.split() for line in call("verify", out).stdout.splitlines() if CARD in line]
    assert [row[1:3] for row in rows] == [["not", "checked"]]


def caught(place: Path) -> bool:
    """Whether `verify` says so: a check that fails, or that there is nothing to verify."""
    try:
        return not loraprobe.verify(place / "out").passed
    except AdapterError:
        return True


def each():
    """Every tampering in every dtype; all but every sixth of these are among the slow tests."""
    dtypes = list(tampering.DTYPES)
    for command, tamperings in TAMPERINGS.items():
        for number, name in enumerate(tamperings):
            for dtype in dtypes:
                often = number % 2 == 0 and dtype == dtypes[number // 2 % 3]
                marks = [] if often else [pytest.mark.slow]
                id_ = f"{command}-{dtype}-{name}"
                yield pytest.param(command, name, dtype, id=id_, marks=marks)


@pytest.mark.parametrize("command, name, dtype", each())
def test_tampered_directories_are_not_verified(copied, command, name, dtype):
    place = copied(command, dtype)
    TAMPERINGS[command][name](place)
    assert caught(place)


@pytest.mark.parametrize("dtype", tampering.DTYPES)
def test_a_change_of_twice_the_tolerance_is_caught(copied, dtype):
    place = copied("merge", dtype)
    by = 1 + 2 * TOLERANCES[tampering.DTYPES[dtype]]
    tampering.weights(tampering.scaled("lora_A", by))(place)
    assert failed(place / "out") == [WEIGHTS]


@pytest.mark.parametrize(
    ("factor", "where", "tolerances", "same"),
    [
        ("B", ..., 2, False),
        ("B", (slice(None), 0), 1, True),  # 0.7 of the tolerance in every row
        ("B", 0, 2, False),  # a row; a quarter of the tolerance in the whole module
        ("A", (slice(None), 0), 2, False),  # a column
    ],
)
def test_rows_and_columns_are_each_compared(factor, where, tolerances, same):
    """Factors of ones, 64 x 2 x 64, compared with those in which some are larger."""
    again = {"A": torch.ones(2, 64), "B": torch.ones(64, 2)}
    found = {name: tensor.clone() for name, tensor in again.items()}
    found[factor][where] += tolerances * TOLERANCES[torch.float32]
    assert same_product(LowRank(**found), LowRank(**again)) is same


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_doubled_number_of_a_large_module_is_caught(dtype):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(64, 2048, generator=generator).to(dtype)
    B = torch.randn(2048, 64, generator=generator).to(dtype)
    changed = A.clone()
    changed[3, 1000] = 2 * A[3].abs().mean()
    assert not same_product(LowRank(changed, B), LowRank(A, B))


def turned(tensors):
    """The same deltas in another orthonormal basis, rounded again: what another library of linear
    algebra may give where singular values are equal."""
    for key in [k for k in sorted(tensors) if k.endswith("lora_A.weight")]:
        A, other = tensors[key], key.replace("lora_A", "lora_B")
        generator = torch.Generator().manual_seed(len(key))
        G = torch.randn(len(A), len(A), dtype=torch.float64, generator=generator)
        Q = torch.linalg.qr(G).Q
        B = tensors[other].double() @ Q.mT
        tensors |= {key: (Q @ A.double()).to(A.dtype), other: B.to(A.dtype)}
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", METHODS.names())
def test_another_order_of_sums_is_close(name, dtype):
    """The same deltas with the rows of A and the columns of B in reverse order."""

    def reverse(adapter):
        modules = {
            path: LowRank(update.A.flip(0), update.B.flip(1), update.scaling)
            for path, update in adapter.modules.items()
        }
        return adapter_of(adapter.name, modules, config=adapter.config)

    shapes = {"model.layers.0.self_attn.q_proj": (96, 80)}
    # Of these seeds the cosine is above 0, without which Model Stock keeps nothing.
    pair = [
        random_adapter(name, shapes, 8, seed, dtype=dtype) for name, seed in (("a", 0), ("b", 5))
    ]
    one, other = (merge(adapters, name) for adapters in (pair, list(map(reverse, pair))))
    for path, update in one.adapter.modules.items():
        assert same_product(other.adapter.modules[path], update)


def mirrored(tensors):
    return {key: -tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", tampering.DTYPES)
@pytest.mark.parametrize("change", [turned, mirrored])
def test_another_machines_rounding_is_verified(copied, dtype, change):
    place = copied("merge", dtype)
    tampering.weights(change)(place)
    assert failed(place / "out") == []


def test_a_module_that_becomes_zero_is_verified_and_stays_zero(tmp_path):
    for name, sign in (("a", 1.0), ("b", -1.0)):
        adapter = random_adapter(name, tampering.SHAPES, seed=1)
        path = next(iter(adapter.modules))
        opposed = {p: u.scaled(sign) if p == path else u for p, u in adapter.modules.items()}
        adapter_of(name, opposed, base_model="owner/base").save(tmp_path / name)
    out = merged([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path)
    assert failed(out) == []
    tampering.weights(lambda t: {k: v + 1e-9 if path in k else v for k, v in t.items()})(tmp_path)
    assert failed(out) == [WEIGHTS]


@pytest.mark.parametrize(
    "options",
    [
        ["--router", "constant", "--weights", "0.5,-1"],
        ["--balance", "norm"],
        ["--router", "arrow:normalize=true"],
        ["--router", "arrow:temperature=inf"],
        ["--router", "hard:per=sequence"],
    ],
)
def test_every_composition_that_learned_nothing_is_verified(pair, tmp_path, options):
    done = call("route", *pair, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert failed(tmp_path / "out") == []


FIELDS = "prompt=Q: {prompt},answer=answer"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A router by prompt that merge-and-eval wrote beside its tasks, and what it was made of."""
    place, scenario = tmp_path_factory.mktemp("learned"), shipped_world().scenario("keep-both")
    tasks = [shutil.copy(task, place) for task in scenario.tasks]
    adapters, base = [*scenario.adapters.values()], ["--base", shipped_world().base]
    asked = [word for task in tasks for word in ("--task", task)]
    how = ["--limit", "40", "--system", "hard:by=centroid,per=sequence", "--fields", FIELDS]
    done = call("merge-and-eval", *adapters, *base, *asked, *how, "-o", place / "out")
    assert done.exit_code == 0, done.output
    return place / "out", tasks, [*adapters, *base]


@pytest.mark.needs("--fields")
def test_a_router_that_learned_from_tasks_is_fitted_again(learned, tmp_path):
    out, tasks, made_of = learned
    prompts = read_front_matter((out / CARD).read_text())["loraprobe"]["learned"]
    assert [row["fields"] for row in prompts["files"]] == [FIELDS] * 2
    assert failed(out, *made_of) == []
    # Far from the files it cannot be told, and the printed command takes them.
    shutil.copytree(out, tmp_path / "out")
    missing = [f"prompts {Path(task).name}" for task in tasks]
    assert failed(tmp_path / "out", *made_of) == missing
    assert " FILE" in call("verify", tmp_path / "out", *made_of).output
    assert failed(tmp_path / "out", *tasks, *made_of) == []
    (tmp_path / "other.jsonl").write_text(Path(tasks[0]).read_text() + "\n")
    assert failed(tmp_path / "out", tmp_path / "other.jsonl", tasks[1], *made_of) == missing[:1]


def _first_place(at: int):
    """A tampering with the first place of a prompt in the card."""

    def change(fields):
        (places,) = fields["loraprobe"]["learned"]["files"][0]["places"].values()
        places[0] = at

    return tampering.card(change)


@pytest.mark.needs("--fields")
@pytest.mark.parametrize(
    ("tamper", "check", "passed"),
    [
        (
            tampering.weights(lambda t: {k: v + 0.002 * v.std() for k, v in t.items()}, STATE),
            "router.safetensors",
            False,
        ),
        (_first_place(0), "router.safetensors", False),
        (_first_place(10**6), "learned", False),
        (tampering.card(lambda fields: fields["loraprobe"].pop("learned")), "learned", None),
    ],
)
def test_what_a_router_did_not_learn_is_not_verified(learned, tmp_path, tamper, check, passed):
    out, tasks, made_of = learned
    shutil.copytree(out, tmp_path / "out")
    tamper(tmp_path)
    assert check in failed(tmp_path / "out", *tasks, *made_of)
    base = str(made_of[-1])
    found = loraprobe.verify(tmp_path / "out", [*map(str, (*tasks, *made_of[:-2]))], base)
    assert found.passed is passed


@pytest.mark.parametrize(
    "card",
    [
        None,
        "",
        "no front matter",
        "---\nbroken: [\n---\n",
        "---\ntags: [lora]\n---\n",
        "---\nloraprobe: {sources: 3}\n---\n",
        "---\nloraprobe: {schema_version: 99, sources: []}\n---\n",
        f"---\nloraprobe: {'[' * 20_000}{']' * 20_000}\n---\n",
    ],
    ids=range(8),
)
def test_a_directory_without_provenance_is_an_error(pair, tmp_path, card):
    out = merged(pair, tmp_path)
    (out / CARD).unlink() if card is None else (out / CARD).write_text(card)
    result = call("verify", out)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and not result.stdout
    with pytest.raises(AdapterError, match=r"README\.md"):
        loraprobe.verify(out)


ODD = (None, "x", -1.5, True, [], {}, [1], ["a"], {"a": 1}, [[1]], 10**400, float("nan"))


@pytest.mark.parametrize("key", MergeRecord.model_fields)
def test_a_card_with_a_false_recipe_gives_no_traceback(pair, tmp_path, key):
    """A false value in a card ends in a failed check or in one sentence."""
    out = merged(pair, tmp_path)
    within = []
    if key == "sources":
        right = read_front_matter((out / CARD).read_text())["loraprobe"]["sources"]
        lies = ((name, odd) for k, name in enumerate(right[0]) for odd in ODD[k % 3 :: 3])
        within = [[right[0] | {name: odd}, *right[1:]] for name, odd in lies]
    for odd in (*ODD, *within):
        tampering.card(lambda matter, odd=odd: matter["loraprobe"].update({key: odd}))(tmp_path)
        result = call("verify", out)
        assert result.exception is None or isinstance(result.exception, SystemExit), odd
        assert result.exit_code in (0, 1, 2, 3) and "Traceback" not in result.output


def test_a_source_that_changed_is_named(pair, tmp_path):
    out = merged(pair, tmp_path)
    random_adapter("b", seed=3).save(pair[1], overwrite=True)
    assert failed(out) == ["source b"]


def test_sources_are_found_below_the_working_directory(pair, tmp_path, monkeypatch):
    """By hash, in three levels of folders, wherever the merge was moved to."""
    out = merged(pair, tmp_path / "elsewhere")
    work = tmp_path / "work"
    (work / "x" / "y").mkdir(parents=True)
    for place, moved in zip(pair, ("x/moved", "x/y/moved"), strict=True):
        Path(place).rename(work / moved)
    monkeypatch.chdir(work)
    assert failed(out) == []
    deeper = work / "x" / "y" / "z" / "deeper"
    deeper.parent.mkdir()
    (work / "x" / "y" / "moved").rename(deeper)
    assert failed(out) == ["source b"]


def test_sources_are_found_where_the_merge_was_made(pair, tmp_path, monkeypatch):
    """By their names in the folders above the merge, from anywhere."""
    project = tmp_path / "project"
    project.mkdir()
    moved = [str(Path(one).rename(project / Path(one).name)) for one in pair]
    out = merged(moved, project / "runs" / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert failed(out) == []
    os.rename(project / "a", project / "below")
    assert failed(out) == ["source a"]


def test_a_given_source_that_cannot_be_read_is_an_error(pair, tmp_path):
    result = call("verify", merged(pair, tmp_path), tmp_path / "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.stderr


@pytest.mark.parametrize("where", ["renamed", "beside", "deeper/down", "far/away/from/here"])
def test_a_source_is_found_by_its_hash(pair, tmp_path, where):
    """Near the directory by itself, and anywhere else once it is named."""
    place = tmp_path / "x" / "y" / "z"
    out = merged(pair, place)
    moved = place / where if where != "far/away/from/here" else tmp_path / where
    moved.parent.mkdir(parents=True, exist_ok=True)
    os.rename(pair[0], place / "a")
    os.rename(pair[1], moved)
    (tmp_path / "b" / "x").mkdir(parents=True)  # what bears its name now is no adapter
    near = where != "far/away/from/here"
    assert loraprobe.verify(out).passed is (True if near else None)
    assert failed(out) == ([] if near else ["source b"])
    assert loraprobe.verify(out, [moved]).passed
    assert call("verify", out, moved, "--quiet").stdout == "verified\n"


def test_a_base_is_found_and_has_to_be_the_one_that_was_used(tmp_path):
    """DoRA is merged with the base's weights."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    for seed, name in enumerate("ab"):
        peft_adapter(tmp_path / name, model, seed, use_dora=True, target_modules=["q_proj"])
    refs = [str(tmp_path / name) for name in "ab"]
    out = merged(refs, tmp_path, "--base", str(tmp_path / "base"), "--method", "uniform")
    assert failed(out) == []
    os.rename(tmp_path / "base", tmp_path / "moved")
    assert failed(out) == ["base"]
    assert loraprobe.verify(out, base=tmp_path / "moved").passed
    tiny_llama(seed=1).save_pretrained(tmp_path / "base")
    assert failed(out) == ["base"]
    scaled = tampering.weights(
        lambda t: {k: v * 1.001 if "magnitude" in k else v for k, v in t.items()}
    )
    scaled(tmp_path)
    assert not loraprobe.verify(out, base=tmp_path / "moved").passed


def shown(thing: object) -> str:
    told = repr(thing)
    assert len(told.splitlines()) <= 15 and len(told) <= 1500
    return " ".join(told.replace("\\", " ").split())


def test_a_verification_ends_in_a_next_step(pair, tmp_path):
    out = merged(pair, tmp_path)
    told = shown(loraprobe.verify(out, pair))
    assert told.startswith("VERIFIED") and f"loraprobe inspect {out}" in told
    for place in pair:
        shutil.rmtree(place)
    told = shown(loraprobe.verify(out))
    assert told.startswith("CANNOT TELL") and f"loraprobe verify {out} REF" in told
    assert "REF: " in told


def test_many_failed_checks_are_few_lines():
    checks = tuple(Check(f"file-{i}", False, "It differs. " * 20) for i in range(40))
    told = shown(Verification("out", checks))
    assert "file-0" in told and "make it again" in told


def test_a_folder_that_is_none_is_a_document_where_json_is_asked_for():
    done = call("verify", "nowhere", "--json")
    assert done.exit_code == 2 and "no directory" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "adapter"


def test_a_merge_of_what_was_measured_ends_with_how_to_verify_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair, base = making.shipped("skill-and-facts")[:2], ["--base", shipped_world().base]
    task = ["--task", shipped_world().scenario("skill-and-facts").tasks[0]]
    few = [*base, *task, "--system", "sum", "--limit", "30", "--quiet"]
    assert call("merge-and-eval", *pair, *few).exit_code == 0
    options = ["--method", "sum", *base, "-o", "out", "--json", "--quiet"]
    verdict = json.loads(call("merge", *pair, *options).stdout)["verdict"]
    names = [one.partition("=")[0] for one in pair]
    assert verdict["next"] == f"loraprobe verify out {' '.join(names)} --base base"
    assert call("verify", "out", *pair, *base).exit_code == 0
