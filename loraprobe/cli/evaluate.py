"""`loraprobe merge-and-eval`: the whole audit."""

from __future__ import annotations

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output
from loraprobe.defaults import RETENTION


def merge_and_eval(
    refs: opt.Refs,
    task: opt.Tasks = None,
    base: opt.Base = "auto",
    method: opt.Methods = None,
    router: opt.Routers = None,
    system: opt.Systems = None,
    space: opt.Space = None,
    rank: opt.Rank = "auto",
    weights: opt.Weights = None,
    search_budget: opt.SearchBudget = 120,
    search_items: opt.SearchItems = None,
    balance: opt.Balance = "none",
    subtract: opt.Subtract = None,
    router_prompts: opt.RouterPrompts = None,
    output: opt.Output = None,
    overwrite: opt.Overwrite = False,
    metric: opt.Metric = None,
    margin: opt.Margin = None,
    retention: opt.Retention = RETENTION,
    prior: opt.Prior = None,
    calibration: opt.Calibration = None,
    limit: opt.Limit = None,
    max_new_tokens: opt.MaxNewTokens = None,
    chat_template: opt.ChatTemplate = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    quantize: opt.Quantize = "none",
    device_map: opt.DeviceMap = "none",
    batch_size: opt.BatchSize = "auto",
    threads: opt.Threads = None,
    per_module: opt.PerModule = False,
    diagnostic: opt.Diagnostics = None,
    exact: opt.Exact = False,
    allow: opt.Allow = None,
    trust_remote_code: opt.TrustRemoteCode = False,
    seed: opt.Seed = 0,
    resume: opt.Resume = False,
    json: opt.Json = False,
    html: opt.Html = None,
    quiet: opt.Quiet = False,
    exit_zero: opt.ExitZero = False,
) -> None:
    """Compose adapters every reasonable way, measure each on your task, and give a verdict.

    Systems: the base, each adapter alone, merges, routers, a chain of the adapters where the task
    has hops, and two controls. Exit code 0: composing likely works; 1: it does not; 3: undecided.
    """
    from loraprobe.cli import _work

    sink = Output(json, quiet, exit_zero, html)
    settings = _work.settings(
        device=device, dtype=dtype, batch_size=batch_size, threads=threads, limit=limit,
        max_new_tokens=max_new_tokens, metric=metric, margin=margin, chat_template=chat_template,
        trust_remote_code=trust_remote_code, seed=seed, resume=resume, per_module=per_module,
        diagnostics=diagnostic, exact=exact, allow=allow, methods=method, routers=router,
        systems=system, space=space, rank=rank, weights=weights, adapters=len(refs),
        retention=retention, prior=prior, calibration=calibration,
        search_budget=search_budget, search_items=search_items, balance=balance,
        subtract=subtract, router_prompts=router_prompts, quantize=quantize,
        device_map=device_map,
    )  # fmt: skip
    _work.merge_and_eval(refs, base, task, settings, sink, target=output, overwrite=overwrite)
