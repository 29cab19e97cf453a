"""The stages of each command in order; the command line and the Python functions call these.

`commands` has one function a command. It calls, in this order:

    inputs          opens adapters, base, tasks and prompt files
    examination     compatibility and diagnostics, licences, servers
    transforms      `--subtract` and `--balance`
    screening       a library of adapters
    inspecting      answers on the base model, to a sample of the questions
    evaluating      answers on the base model, by `rounds`; for both, `scorer` loads the base,
                    `evaluator` runs systems on it, `systems` builds compositions with
                    `portfolio`, `weight_search`, `router_fitting`, `random_partner`, and
                    `results` stores the results for `--resume`
    merges, saved   a merge; a composition and its directory, which `loading` reads
    conclusion      the verdict, and what it recommends
    audits, cards   the audit and the model card

`units` are the parts that can be computed apart: by `shards`, whose results files and the ledger
keep, or by `workers`.

`estimating` tells what an evaluation will take. `converting` writes one adapter again.
`verification` makes a directory again from its card and compares it, `served` asks a running server
about an adapter.

Modules are imported when one of their names is used: `merge` needs no model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraprobe.pipeline.commands import Outcome as Outcome
    from loraprobe.pipeline.commands import compose as compose
    from loraprobe.pipeline.commands import estimate_cost as estimate_cost
    from loraprobe.pipeline.commands import inspect as inspect
    from loraprobe.pipeline.commands import merge as merge
    from loraprobe.pipeline.commands import merge_and_eval as merge_and_eval
    from loraprobe.pipeline.converting import convert as convert
    from loraprobe.pipeline.inputs import base_of as base_of
    from loraprobe.pipeline.loading import load_composition as load_composition
    from loraprobe.pipeline.saved import Routed as Routed
    from loraprobe.pipeline.screening.command import estimate_screen as estimate_screen
    from loraprobe.pipeline.screening.command import screen as screen
    from loraprobe.pipeline.screening.command import screen_shard as screen_shard
    from loraprobe.pipeline.served import ask_server as ask_server
    from loraprobe.pipeline.shard_files import joined_run as joined_run
    from loraprobe.pipeline.shards import run_shard as run_shard
    from loraprobe.pipeline.verification import verify as verify

_MODULES = {
    "ask_server": "served",
    "Outcome": "commands",
    "Routed": "saved",
    "base_of": "inputs",
    "compose": "commands",
    "convert": "converting",
    "estimate_cost": "commands",
    "estimate_screen": "screening.command",
    "inspect": "commands",
    "joined_run": "shard_files",
    "load_composition": "loading",
    "merge": "commands",
    "merge_and_eval": "commands",
    "run_shard": "shards",
    "screen": "screening.command",
    "screen_shard": "screening.command",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"loraprobe.pipeline.{_MODULES[name]}"), name)
