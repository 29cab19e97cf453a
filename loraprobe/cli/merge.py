"""`loraprobe merge`: one adapter from several, without the base model."""

from __future__ import annotations

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output


def merge(
    refs: opt.Refs,
    output: opt.Target,
    method: opt.Method = "uniform",
    weights: opt.Weights = None,
    task: opt.Tasks = None,
    search_budget: opt.SearchBudget = 120,
    search_items: opt.SearchItems = None,
    balance: opt.Balance = "none",
    subtract: opt.Subtract = None,
    space: opt.Space = None,
    rank: opt.Rank = "auto",
    base: opt.BaseOrNone = None,
    dtype: opt.FileDtype = "auto",
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    limit: opt.Limit = None,
    allow: opt.Allow = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    html: opt.Html = None,
    quiet: opt.Quiet = False,
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, and to
    search weights on a task; what cannot be merged exactly as it stands is refused by name.
    """
    from loraprobe.cli import _work

    settings = _work.settings(
        methods=[method], weights=weights, adapters=len(refs), space=space, rank=rank,
        dtype=dtype, search_budget=search_budget, search_items=search_items, limit=limit,
        device=device, allow=allow, balance=balance, subtract=subtract, threads=threads, seed=seed,
    )  # fmt: skip
    _work.merge(refs, base, task, settings, output, overwrite, Output(json, quiet, html=html))
