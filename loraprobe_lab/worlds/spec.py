"""The specification of a world, and `build_world`, which trains it and can be resumed.

Every kind of world is a function from a seed to a `WorldSpec`: the base's pretraining texts, each
adapter's training texts, the tasks, and the scenarios. It is plain data.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters.staging import staged_directory
from loraprobe.records import Progress
from loraprobe_lab.training import (
    NOTES,
    BaseRecipe,
    Example,
    Recipe,
    build_tokenizer,
    load_base,
    train_adapter,
    train_base,
)
from loraprobe_lab.world import (
    FORMAT,
    MANIFEST,
    World,
    WorldError,
    file_hash,
    silent,
    versions,
    write_text,
)
from loraprobe_lab.worlds.facts import table

BASE_NAME = "loraprobe/small-world-base"
Item = Mapping[str, Any]  # as in task files


@dataclass(frozen=True)
class TrainingSet:
    """The training texts and the recipe of one adapter."""

    name: str
    description: str
    examples: tuple[Example, ...] = field(repr=False)
    recipe: Recipe


@dataclass(frozen=True)
class AdapterSet:
    """Adapters whose composition is evaluated on tasks: a scenario of the world.

    `world` is its class of scenarios (two-hop, keep-both ...); `axes` are its parameters in that
    class, for tables and maps. `guards` are tasks that must not get worse.
    """

    name: str
    world: str
    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    description: str
    axes: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorldSpec:
    """A world before it is trained.

    tasks: name -> items as in task files. If the world trains its own base: `base` is its recipe,
    `words` are texts that contain every word of the world, corpus(seed) is a function that draws
    the next pretraining text, and `made_from` holds the other parameters of the base (the sizes of
    its facts ...), so that a build is not resumed on another base. notes: further entries of the
    manifest.
    """

    kind: str
    seed: int
    training: tuple[TrainingSet, ...]
    tasks: Mapping[str, Sequence[Item]] = field(repr=False)
    adapter_sets: tuple[AdapterSet, ...]
    base: BaseRecipe | None = None
    words: tuple[str, ...] = field(default=(), repr=False)
    corpus: Callable[[int], Callable[[], Example]] | None = field(default=None, repr=False)
    reserve: tuple[str, ...] = ()
    made_from: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def own_seed(name: str, seed: int | str, between: str = ":") -> int:
    """A seed for each adapter of a world: no two share their initial A."""
    return zlib.crc32(f"{name}{between}{seed}".encode())


def build_world(
    spec: WorldSpec,
    output: str | Path,
    *,
    base: str | Path | None = None,
    model: tuple[Any, Any] | None = None,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
) -> World:
    """Trains the adapters of a specification in the directory `output`; writes tasks and manifest.

    base: directory of a causal model; without it the specification's own base is trained first.
    model: that model and its tokenizer, if they are loaded. only: the adapters to train; None for
    all. Finished parts of `output` are not trained again. Equal specifications give equal bytes on
    the same machine, library versions and number of threads. Raises BaseError if `base` does not
    load; WorldError for an unknown adapter, another world in `output`, a tokenizer without EOS.
    """
    output, names = Path(output), [one.name for one in spec.training]
    for name in only or ():
        if name not in names:
            raise WorldError(
                f"The world {spec.kind} has no adapter {name!r}; it has {', '.join(names)}."
            )
    wanted = [one for one in spec.training if only is None or one.name in only]
    base_name = BASE_NAME if base is None else str(Path(base).resolve())
    _check_same(output, spec, base_name)
    recipes: dict[str, Any] = {"base": spec.base} if base is None and spec.base else {}
    recipes |= {one.name: one.recipe for one in wanted}
    texts = {name: recipe.steps * recipe.batch_size for name, recipe in recipes.items()}
    before = dict(zip(texts, accumulate(texts.values(), initial=0), strict=False))

    def stage(name: str) -> Progress:
        """Tells the steps of one training as texts seen of all texts of the build."""
        start, size, total = before[name], recipes[name].batch_size, sum(texts.values())
        return lambda what, step, _: progress(what, start + step * size, total)

    if base is None:
        model = _own_base(output, spec, stage("base") if spec.base else silent)
    elif model is None:
        model = load_given_base(Path(base).resolve())
    for name, items in spec.tasks.items():
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        write_text(output / "tasks" / f"{name}.jsonl", "\n".join(lines) + "\n")
    for one in wanted:
        train_adapter(
            *model,
            one.examples,
            one.recipe,
            output / "adapters" / one.name,
            base_name=base_name,
            progress=stage(one.name),
        )
        if base is not None:  # an interrupted build can be used as far as it went
            _record(output, spec, base_name, own_base=False)
    return _record(output, spec, base_name, base is None)


def load_given_base(directory: Path) -> tuple[Any, Any]:
    """A causal model in float32, in evaluation mode, and its tokenizer; none of its code is run."""
    from loraprobe.base import load_base, open_base, pick_device

    loaded = load_base(open_base(directory), device=pick_device("auto"), dtype=torch.float32)
    if loaded.tokenizer.eos_token_id is None:
        raise WorldError(
            f"The tokenizer in {directory} has no EOS token, which ends each answer; give a base "
            "whose tokenizer has one."
        )
    return loaded.model, loaded.tokenizer


def _check_same(output: Path, spec: WorldSpec, base_name: str) -> None:
    if not (output / MANIFEST).is_file():
        return
    found = World.load(output)
    for what, there, here in (
        ("kind", found.manifest["kind"], spec.kind),
        ("seed", found.seed, spec.seed),
        ("base", found.base_name, base_name),
        ("set", found.manifest.get("set"), spec.notes.get("set")),
    ):
        if there != here:
            raise WorldError(
                f"{output} holds a world of {what} {there}, not {here}; choose another directory, "
                "or remove that one."
            )


def _own_base(output: Path, spec: WorldSpec, progress: Progress) -> tuple[Any, Any]:
    """The world's own model and tokenizer, trained unless they are there; then adapters of an older
    base are removed."""
    if spec.base is None or spec.corpus is None:
        raise WorldError(f"A world of kind {spec.kind} needs a base that exists:", "name one.")
    base, recipe = output / "base", dataclasses.replace(spec.base, seed=spec.seed)
    makings = {"recipe": dataclasses.asdict(recipe), **spec.made_from, "dtype": "bfloat16"}
    made_by = json.dumps(makings, indent=2) + "\n"
    record = base / NOTES
    if record.is_file() and record.read_text(encoding="utf-8") == made_by:
        return load_base(base)
    for stale in (base, output / "adapters"):
        shutil.rmtree(stale, ignore_errors=True)
    tokenizer = build_tokenizer(spec.words)
    model = train_base(spec.corpus(recipe.seed), tokenizer, recipe, progress)
    with staged_directory(base) as part:
        model.to(torch.bfloat16).save_pretrained(str(part))
        tokenizer.save_pretrained(str(part))
        write_text(part / NOTES, made_by)
    return load_base(base)


def _record(output: Path, spec: WorldSpec, base_name: str, own_base: bool) -> World:
    """Writes the manifest of the adapters that are finished, by this call or an earlier one.

    All paths in it are relative to `output`; it holds the digest of every file.
    """
    base: dict[str, Any] = {"path": None, "name": base_name}
    if own_base and spec.base is not None:
        base = {"path": "base", "name": base_name, "architecture": spec.base.architecture}
    adapters = {
        one.name: {
            "path": f"adapters/{one.name}",
            "description": one.description,
            "recipe": dataclasses.asdict(one.recipe),
        }
        for one in spec.training
        if (output / "adapters" / one.name / NOTES).is_file()
    }
    sets = [one for one in spec.adapter_sets if set(one.adapters) <= set(adapters)]
    scenarios = {
        one.name: {
            "world": one.world,
            "adapters": list(one.adapters),
            "tasks": [f"tasks/{task}.jsonl" for task in one.tasks],
            "guards": [f"tasks/{task}.jsonl" for task in one.guards],
            "description": one.description,
            "axes": dict(one.axes),
        }
        for one in sets
    }
    places = [row["path"] for row in (base, *adapters.values()) if row["path"]]
    places += [task for row in scenarios.values() for task in (*row["tasks"], *row["guards"])]
    files: dict[str, str] = {}
    for place in sorted({output / place for place in places}):
        inside = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        files |= {path.relative_to(output).as_posix(): file_hash(path) for path in inside}
    manifest = {
        "format": FORMAT,
        "kind": spec.kind,
        "seed": spec.seed,
        "versions": versions(),
        "recipe": dict(spec.recipe)
        or ({"base": dataclasses.asdict(spec.base)} if spec.base else {}),
        "base": base,
        "adapters": adapters,
        "scenarios": scenarios,
        "reserve": list(spec.reserve),
        **spec.notes,
        "files": files,
    }
    write_text(output / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return World.load(output)


# Adapter libraries: the adapters of a world, as data in `data/libraries.json`.
#
# An adapter is trained on the texts of some parts (`learns`) with a recipe; a world makes the texts
# of each part. A set is a scenario of the world: adapters that are composed.


LIBRARIES = table("libraries")
Parts = Mapping[str, Callable[[], Sequence[Example]]]  # part -> what makes its texts


def training_sets(
    library: str,
    parts: Parts,
    seed_of: Callable[[str], int],
    *,
    only: Sequence[str] | None = None,
    recipes: str | None = None,
) -> tuple[TrainingSet, ...]:
    """The adapters of a library; `only` names some, `recipes` a library whose recipes they take."""
    made: dict[str, Sequence[Example]] = {}
    found = []
    for name, row in LIBRARIES[library]["adapters"].items():
        if only is None or name in only:
            for part in row["learns"]:
                made.setdefault(part, parts[part]())
            examples = tuple(text for part in row["learns"] for text in made[part])
            recipe = recipe_of(LIBRARIES[recipes or library]["recipes"][row["recipe"]])
            recipe = dataclasses.replace(recipe, seed=seed_of(name))
            found.append(TrainingSet(name, row["about"], examples, recipe))
    return tuple(found)


def recipe_of(row: Mapping[str, object]) -> Recipe:
    """A recipe from its JSON; what it does not say is `Recipe`'s default."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Recipe(**values)  # type: ignore[arg-type]


def adapter_sets(library: str) -> tuple[AdapterSet, ...]:
    """The sets of a library."""
    rows: list[dict[str, Any]] = [
        {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        for row in LIBRARIES[library]["sets"]
    ]
    return tuple(AdapterSet(**row) for row in rows)


@dataclass(frozen=True)
class SetPlan:
    """What each adapter learns (name, description, texts), the tasks, the axes, and a description
    of the set."""

    adapters: Sequence[tuple[str, str, Sequence[Example]]]
    tasks: Mapping[str, Sequence[Item]]
    axes: Mapping[str, Any]
    text: str

    def spec(self, kind: str, number: int, recipes: Sequence[Recipe], layers: int) -> WorldSpec:
        """The set on a base of so many layers: adapters lie on its upper quarter. With fewer
        recipes than adapters, the recipes are used in turn."""
        name = f"{kind}-{number:02d}"
        common: dict[str, Any] = {
            "upper": max(1, round(layers / 4)) if layers > 1 else None,
            "warmup": 5,
        }
        training = []
        for i, (adapter, about, examples) in enumerate(self.adapters):
            seed = own_seed(name, adapter, "/")
            recipe = recipes[i % len(recipes)]
            recipe = dataclasses.replace(recipe, seed=seed, **common)
            training.append(TrainingSet(adapter, about, tuple(examples), recipe))
        axes = {
            **self.axes,
            "steps": [recipe.steps for recipe in recipes],
            "learning_rates": [recipe.learning_rate for recipe in recipes],
            "targets": [recipe.target_modules for recipe in recipes],
        }
        names = tuple(one.name for one in training)
        return WorldSpec(
            kind=kind,
            seed=number,
            training=tuple(training),
            tasks={task: groups_first(items) for task, items in self.tasks.items()},
            adapter_sets=(AdapterSet(name, kind, names, tuple(self.tasks), self.text, axes),),
            notes={"set": name},
        )


def groups_first(items: Sequence[Item]) -> list[Item]:
    """The items in an order that asks every group once before any twice, so that the first items of
    a task are about as many groups as possible."""
    asked = Counter[str]()
    turns = []
    for item in items:
        turns.append(asked[item["group"]])
        asked[item["group"]] += 1
    return [items[i] for i in sorted(range(len(items)), key=lambda i: turns[i])]
