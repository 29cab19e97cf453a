"""Where the parts of a run are computed: by shards, by processes, or by workers of a Ray cluster.

shares   which of all parts a shard computes
pool     hands parts to workers and takes those of a lost worker back
local    a worker that is a process of this machine, on a GPU of its own if there are several
on_ray   workers of a Ray cluster
opening  the workers that --executor names

A part is plain data that every worker understands alike, since it opens the same inputs. What a
part is, and what is computed of it, the caller says (`loraprobe.pipeline.units`).
"""

from loraprobe.execution.opening import open_pool
from loraprobe.execution.pool import Pool, Worker, WorkerLost
from loraprobe.execution.shares import share_of

__all__ = ["Pool", "Worker", "WorkerLost", "open_pool", "share_of"]
