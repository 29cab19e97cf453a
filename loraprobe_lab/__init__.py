"""Controlled worlds with known answers: small bases, adapters and tasks built from a seed.

`worlds` specifies each world as a function of a seed and builds it (`worlds.spec`); `training`
trains bases and LoRA adapters; `experiments` builds worlds, evaluates systems and writes pages
(`experiments.runner`, `experiments.pages`); `calibration` fits the verdict's probability on the
worlds of the atlas (`build`); `cli` is `loraprobe lab`. Words, facts, wordings and recipes are JSON
files in `data`, pages are templates in `templates`.
"""

from loraprobe_lab.world import Scenario, World, WorldError, shipped_world

__all__ = ["Scenario", "World", "WorldError", "shipped_world"]
