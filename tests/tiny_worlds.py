"""Worlds of the lab that are built in seconds: few facts, a tiny base, a few training steps."""

import dataclasses
from collections.abc import Sequence

from loraprobe.cache import file_hash
from loraprobe_lab import World
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.worlds.couples import FactSizes, small_world
from loraprobe_lab.worlds.spec import WorldSpec

SIZES = FactSizes(familiar=8, newcomers=4, strangers=4, cities=3, reserve=6)


def tiny_base(architecture: str = "llama", hidden: int = 16) -> BaseRecipe:
    return BaseRecipe(
        architecture=architecture,
        hidden=hidden,
        layers=1,
        heads=2,
        intermediate=32,
        steps=2,
        batch_size=4,
        warmup=1,
    )


def shortened(spec: WorldSpec, steps: int = 2, examples: int | None = None) -> WorldSpec:
    """The same world; each adapter takes `steps` steps on `examples` examples."""
    training = tuple(
        dataclasses.replace(
            one,
            examples=one.examples[:examples],
            recipe=dataclasses.replace(one.recipe, steps=steps),
        )
        for one in spec.training
    )
    return dataclasses.replace(spec, training=training)


def tiny_world(
    worlds: Sequence[str] = ("skill-and-facts",), seed: int = 0, only: Sequence[str] | None = None
) -> WorldSpec:
    """A small world that is trained for two steps."""
    return shortened(small_world(worlds, seed, sizes=SIZES, base=tiny_base(), only=only))


def hashes(world: World) -> dict[str, str]:
    """The sha256 of every file of a world, as its manifest has them."""
    files = (path for path in world.path.rglob("*") if path.is_file())
    return {path.relative_to(world.path).as_posix(): file_hash(path) for path in files}
