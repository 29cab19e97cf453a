"""`loraprobe inspect`: what adapters are, and how they stand to each other."""

from __future__ import annotations

from loraprobe.cli import _options as opt
from loraprobe.cli._output import Output


def inspect(
    refs: opt.Refs,
    base: opt.BaseOrNone = None,
    task: opt.Tasks = None,
    probe: opt.Probe = None,
    per_module: opt.PerModule = False,
    diagnostic: opt.Diagnostics = None,
    exact: opt.Exact = False,
    allow: opt.Allow = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_size: opt.BatchSize = "auto",
    threads: opt.Threads = None,
    limit: opt.Limit = None,
    max_new_tokens: opt.MaxNewTokens = None,
    metric: opt.Metric = None,
    margin: opt.Margin = None,
    prior: opt.Prior = None,
    calibration: opt.Calibration = None,
    chat_template: opt.ChatTemplate = "auto",
    trust_remote_code: opt.TrustRemoteCode = False,
    seed: opt.Seed = 0,
    resume: opt.Resume = False,
    json: opt.Json = False,
    html: opt.Html = None,
    quiet: opt.Quiet = False,
    exit_zero: opt.ExitZero = False,
) -> None:
    """Look at adapters: one, layer by layer; several, all pairs and whether they fit together.

    Needs no base model. --base adds what needs its weights; with --task or --probe it also
    measures what the base knows, and gives a verdict as far as that evidence goes.
    """
    from loraprobe.cli import _work

    output = Output(json, quiet, exit_zero, html)
    settings = _work.settings(
        device=device, dtype=dtype, batch_size=batch_size, threads=threads, limit=limit,
        max_new_tokens=max_new_tokens, metric=metric, margin=margin, chat_template=chat_template,
        trust_remote_code=trust_remote_code, seed=seed, resume=resume, per_module=per_module,
        diagnostics=diagnostic, exact=exact, allow=allow, prior=prior, calibration=calibration,
    )  # fmt: skip
    _work.inspect(refs, base, task, probe, settings, output)
