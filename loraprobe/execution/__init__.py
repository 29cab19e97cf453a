"""Where the parts of a run are computed: by shards, by processes, or by workers of a Ray cluster.

pool     hands parts to workers and takes those of a lost worker back; a worker that is a process of
         this machine, on a GPU of its own if there are several; the parts of a shard
on_ray   workers of a Ray cluster

A part is plain data that every worker understands alike, since it opens the same inputs. The caller
(`loraprobe.pipeline.units`) says what a part is and what is computed from it.
"""

from typing import Any

from loraprobe.execution.on_ray import cluster, ray_workers
from loraprobe.execution.pool import Pool, local_workers, share_of


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
