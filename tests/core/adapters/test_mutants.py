"""Mutants of a sound adapter: each means what it says, or is refused or named. Nothing else.

A mutant is changed in its header, its data, its keys, shapes or types, or in its config. Where an
oracle of thirty lines, which knows plain LoRA files and nothing else, understands the mutant, the
merge must give what the oracle gives; where it does not, inspect must say something or exit 2, and
merge must refuse or say something. Never a traceback, never an output half there.
"""

import json
import random
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from making import call
from pathologies.specimens import CONFIG, PREFIX, RANK, SETTINGS, WEIGHTS, WIDTH, partner, sound
from safetensors.torch import load, save

from loraprobe.adapters import read_adapter

ORDINARY, ALL = 250, 10_000
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])(?:\.default)?\.weight")
# Keys that change no delta, whatever their value.
HARMLESS = frozenset(
    "lora_dropout inference_mode revision auto_mapping peft_version peft_type "
    "base_model_name_or_path task_type r lora_alpha target_modules bias fan_in_fan_out "
    "use_rslora exclude_modules alpha_pattern".split()
)
TYPED = {"exclude_modules": (str, list), "fan_in_fan_out": bool, "use_rslora": bool}
TYPED |= dict.fromkeys(("revision", "task_type", "bias"), str)
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 4, 8, 0.5, 1e308, "", "x", "LORA"),
    *([], ["q_proj"], {}, {"q_proj": 2}, [[1, 2]]),
]
OTHERS = (
    "rank_pattern alpha_pattern use_dora modules_to_save target_parameters "
    "trainable_token_indices init_lora_weights layers_to_transform lora_bias use_qalora "
    "new_key exclude_modules"
)
KEYS = [*sorted(HARMLESS), *OTHERS.split()]
DTYPES = [
    *(torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int8, torch.int64, torch.bool),
]

Mutation = Callable[[random.Random, Path], None]


def on_tensors(change: Callable[[random.Random, dict[str, torch.Tensor]], None]) -> Mutation:
    """The mutation that changes the file's tensors so."""

    def mutation(draw: random.Random, place: Path) -> None:
        tensors = load((place / WEIGHTS).read_bytes())
        change(draw, tensors)
        (place / WEIGHTS).write_bytes(save({k: t.contiguous() for k, t in tensors.items()}))

    return mutation


def flip(draw: random.Random, place: Path, header: bool, most: int) -> None:
    data = bytearray((place / WEIGHTS).read_bytes())
    end = 8 + struct.unpack("<Q", data[:8])[0]
    start, end = (0, end) if header else (end, len(data))
    for _ in range(draw.randint(1, most)):
        data[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
    (place / WEIGHTS).write_bytes(data)


def cut(draw: random.Random, place: Path) -> None:
    file = place / draw.choice([WEIGHTS, WEIGHTS, CONFIG])
    data = file.read_bytes()
    if draw.random() < 0.3:
        file.write_bytes(data + bytes(draw.randrange(256) for _ in range(draw.randint(1, 64))))
    else:
        file.write_bytes(data[: draw.randrange(len(data))])


@on_tensors
def rename(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    key = draw.choice(sorted(tensors))
    parts = key.split(".")
    spot = draw.randrange(len(parts))
    words = "x lora_A lora_B weight bias base_layer default modules_to_save lora_embedding_A 0"
    parts[spot] = draw.choice(["", "q_proj", *words.split(), parts[spot][::-1], parts[spot] * 2])
    tensors[".".join(parts)] = tensors.pop(key)


@on_tensors
def drop(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    for _ in range(draw.randint(1, 3)):
        tensors.pop(draw.choice(sorted(tensors)))


@on_tensors
def double(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    key = draw.choice(sorted(tensors))
    named = key.replace(".weight", ".default.weight")
    again = draw.choice([named, PREFIX + key, key + ".x", key.removeprefix(PREFIX)])
    tensors[again] = tensors[key] * draw.choice([1, 2])


@on_tensors
def retype(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    for key in draw.sample(sorted(tensors), draw.randint(1, len(tensors))):
        tensors[key] = tensors[key].to(draw.choice(DTYPES))


@on_tensors
def reshape(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    key = draw.choice(sorted(tensors))
    t = tensors[key]
    shapes = [t.T, t.flatten(), t[..., None], t[None], t[:2], t[:, :2], t[:0], torch.cat([t, t])]
    tensors[key] = draw.choice([*shapes, t.reshape(2, -1)])


@on_tensors
def values(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    for key in draw.sample(sorted(tensors), draw.randint(1, len(tensors))):
        scale = draw.choice([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 3.0])
        tensors[key] = tensors[key] * scale


def configure(draw: random.Random, place: Path) -> None:
    config = json.loads((place / CONFIG).read_text())
    for _ in range(draw.randint(1, 2)):
        key = draw.choice(KEYS)
        if draw.random() < 0.2:
            config.pop(key, None)
        else:
            config[key] = draw.choice(VALUES)
    (place / CONFIG).write_text(json.dumps(config))


def garble(draw: random.Random, place: Path) -> None:
    data = bytearray((place / CONFIG).read_bytes())
    data[draw.randrange(len(data))] = draw.randrange(256)
    (place / CONFIG).write_bytes(data)


MUTATIONS: list[Mutation] = [
    *(partial(flip, header=False, most=4), partial(flip, header=True, most=3)),
    *(cut, rename, drop, double),
    *(retype, reshape, values, configure, garble),
]


def oracle(place: Path) -> dict[str, torch.Tensor] | None:
    """Module -> delta [out, in] in float64, of a plain LoRA file; None for anything else."""
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        tensors = load((place / WEIGHTS).read_bytes())
    except Exception:
        return None
    if not isinstance(config, dict) or set(config) - HARMLESS or config.get("peft_type") != "LORA":
        return None
    if not all(config.get(k) is None or isinstance(config[k], kind) for k, kind in TYPED.items()):
        return None
    if config.get("task_type") not in (SETTINGS["task_type"], None, ""):
        return None
    if config.get("base_model_name_or_path") != SETTINGS["base_model_name_or_path"]:
        return None
    if _excludes(config.get("exclude_modules"), [key.removeprefix(PREFIX) for key in tensors]):
        return None
    r, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    usual = type(r) is int and r > 0 and type(alpha) in (int, float) and isinstance(targets, list)
    if not usual or not all(FACTOR.fullmatch(key) for key in tensors):
        return None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, side = FACTOR.fullmatch(key).groups()
        if side in found.setdefault(path, {}):
            return None
        found[path][side] = tensor
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or any(type(a) not in (int, float) for a in alphas.values()):
        return None
    paths, deltas = set(found), {}
    for path, sides in found.items():
        own = next((a for k, a in alphas.items() if re.match(rf"(.*\.)?({k})$", path)), alpha)
        scaling = own / (r**0.5 if config.get("use_rslora") else r)
        pair = [sides.get(side) for side in "AB"]
        if any(t is None or t.dim() != 2 or not t.is_floating_point() for t in pair):
            return None
        A, B = (t.double() for t in pair)
        named = any(path == t or path.endswith(f".{t}") for t in targets)
        if A.shape != (r, WIDTH) or B.shape != (WIDTH, r) or not named:
            return None
        deltas[path] = scaling * B @ A
    finite = all(torch.isfinite(delta).all() for delta in deltas.values())
    small = all(delta.norm() < 1e15 for delta in deltas.values())
    whole = len(paths) == 4 and all(any(p.endswith(t) for p in paths) for t in targets)
    odd = not any(delta.any() for delta in deltas.values())
    return deltas if finite and small and whole and not odd else None


def _excludes(names, keys: list[str]) -> bool:
    """Whether exclude_modules may take a module out: by an ending or a regular expression."""
    if isinstance(names, str):
        return bool(names) and any(re.fullmatch(names, key.rpartition(".lora_")[0]) for key in keys)
    if not isinstance(names, list):
        return bool(names)
    return any(str(name) in key for name in names for key in keys)


def check(seed: int, place: Path) -> str:
    """One mutant through inspect and merge; what became of it."""
    draw = random.Random(seed)
    sound(place / "a")
    for mutation in draw.sample(MUTATIONS, draw.choice([1, 1, 1, 2])):
        try:
            mutation(draw, place / "a")
        except Exception:
            break  # what the first one broke, the second cannot read
    partner(place / "b", "")
    meant = oracle(place / "a")
    out = place / "out"
    seen = call("inspect", place / "a", "--json")
    done = call("merge", place / "a", place / "b", "-o", out, "--json")
    for result in (seen, done):
        known = result.exception is None or isinstance(result.exception, SystemExit)
        assert known and result.exit_code in (0, 1, 2), (result.exception, result.output)
        assert "Traceback" not in result.output
        if result.exit_code == 2:
            assert result.stderr.startswith("error: ")
            assert set(json.loads(result.stdout)) == {"error"}
    assert out.exists() == (done.exit_code == 0)
    assert not [p for p in place.iterdir() if p.name.startswith(".")]
    said = [] if seen.exit_code == 2 else json.loads(seen.stdout)["compatibility"]["issues"]
    if meant is None:
        told = [] if done.exit_code else json.loads(done.stdout)["compatibility"]["issues"]
        told = [i for i in told if not i["code"].startswith("licence")]  # what merge says
        # What is odd beside a partner alone, such as another base, inspect of one cannot see.
        seen_or_refused = seen.exit_code == 2 or said or done.exit_code == 2
        assert seen_or_refused or same(place), "an odd mutant passed in silence"
        assert done.exit_code == 2 or told or same(place), "an odd mutant was merged in silence"
        return "refused" if done.exit_code else "named"
    assert seen.exit_code == 0 and done.exit_code == 0, (seen.output, done.output)
    theirs = oracle(place / "b")
    assert theirs is not None
    merged = read_adapter(out)
    total = sum(float(d.norm()) ** 2 for d in meant.values()) ** 0.5
    for path, update in merged.modules.items():
        wanted = (meant.get(path, 0) + theirs.get(path, 0)) / 2
        found = update.to(torch.float64).delta()
        assert float((found - wanted).norm()) <= 1e-2 * total + 1e-6
    assert set(merged.modules) == set(meant) | set(theirs)
    return "merged"


def same(place: Path) -> bool:
    """Whether loraprobe reads the unchanged deltas: the mutation touched nothing that matters."""
    sound(place / "original")
    was = oracle(place / "original")
    now = read_adapter(place / "a").modules
    assert was is not None
    if set(now) != set(was):
        return False
    for path, delta in was.items():
        update = now[path].to(torch.float64)
        if update.A.shape != (RANK, WIDTH) or update.B.shape != (WIDTH, RANK):
            return False
        if float((update.delta() - delta).norm()) > 1e-2 * float(delta.norm()):
            return False
    return True


@pytest.mark.parametrize("block", range(5))
def test_mutants(tmp_path, block):
    seeds = range(block * ORDINARY // 5, (block + 1) * ORDINARY // 5)
    assert {"refused", "merged"} <= {check(seed, tmp_path / str(seed)) for seed in seeds}


@pytest.mark.slow
def test_ten_thousand_mutants(tmp_path):
    fates: Counter[str] = Counter()
    for seed in range(ORDINARY, ORDINARY + ALL):
        fates[check(seed, tmp_path / "m")] += 1
        shutil.rmtree(tmp_path / "m")
    assert min(fates.values()) > ALL / 100
