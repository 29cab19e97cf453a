"""`loraprobe merge`: one adapter from several, without the base model."""

from __future__ import annotations

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output


def merge(
    refs: opt.Refs,
    output: opt.Target,
    method: opt.Method = "uniform",
    weights: opt.Weights = None,
    balance: opt.Balance = "none",
    subtract: opt.Subtract = None,
    space: opt.Space = None,
    rank: opt.Rank = "auto",
    base: opt.BaseOrNone = None,
    dtype: opt.FileDtype = "auto",
    overwrite: opt.Overwrite = False,
    allow: opt.Allow = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model; what cannot be merged exactly as it stands is refused by name.
    """
    from loraprobe.cli import _work

    settings = _work.settings(
        methods=[method], weights=weights, adapters=len(refs), space=space, rank=rank,
        dtype=dtype, allow=allow, balance=balance, subtract=subtract, threads=threads, seed=seed,
    )  # fmt: skip
    _work.merge(refs, base, settings, output, overwrite, Output(json, quiet))
