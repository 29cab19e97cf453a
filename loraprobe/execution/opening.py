"""Opens the workers that --executor names."""

from __future__ import annotations

from typing import Any

from loraprobe.execution.local import local_workers
from loraprobe.execution.on_ray import cluster, ray_workers
from loraprobe.execution.pool import Pool


def open_pool(executor: str, job: Any, threads: int | None, *, stateless: bool = False) -> Pool:
    """The workers of --executor: "local", "local:N", "ray" or "ray://ADDRESS".

    job: opened by every worker, `job.open()` gives the function from a part to its result.
    threads: of one worker; None divides the cores. stateless: a part may be computed by any process
    that opens the job, so a Ray cluster needs no actor for it.
    """
    kind, _, rest = executor.partition(":")
    if kind == "ray":
        address = executor if rest else None
        after = cluster(address)
        return Pool(ray_workers(job, threads, stateless=stateless), after)
    return Pool(local_workers(job, int(rest) if rest else None, threads))
