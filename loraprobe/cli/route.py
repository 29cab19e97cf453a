"""`loraprobe route`: adapters and a router as a composition that can be loaded again."""

from __future__ import annotations

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output


def route(
    refs: opt.Refs,
    output: opt.Target,
    router: opt.Router = "arrow",
    base: opt.BaseOrNone = None,
    router_prompts: opt.RouterPrompts = None,
    weights: opt.Weights = None,
    task: opt.Tasks = None,
    search_budget: opt.SearchBudget = 120,
    search_items: opt.SearchItems = None,
    balance: opt.Balance = "none",
    subtract: opt.Subtract = None,
    overwrite: opt.Overwrite = False,
    limit: opt.Limit = None,
    chat_template: opt.ChatTemplate = "auto",
    device: opt.Device = "auto",
    quantize: opt.Quantize = "none",
    device_map: opt.DeviceMap = "none",
    batch_size: opt.BatchSize = "auto",
    threads: opt.Threads = None,
    allow: opt.Allow = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for searched weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    from loraprobe.cli import _work

    settings = _work.settings(
        routers=[router], weights=weights, adapters=len(refs), search_budget=search_budget,
        search_items=search_items, balance=balance, subtract=subtract,
        router_prompts=router_prompts, limit=limit, chat_template=chat_template, device=device,
        quantize=quantize, device_map=device_map, batch_size=batch_size, threads=threads,
        allow=allow, trust_remote_code=trust_remote_code, seed=seed,
    )  # fmt: skip
    _work.route(refs, base, task, settings, output, overwrite, Output(json, quiet))
