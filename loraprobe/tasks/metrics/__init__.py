"""How a reply is judged. A metric is a class in a file of this folder; its name is `--metric`'s."""

import functools

from loraprobe.registry import Registry
from loraprobe.tasks.metrics._metric import Judged, Metric

METRICS = Registry("loraprobe.tasks.metrics", Metric, "metric")


@functools.cache
def metric_of(name: str) -> Metric | None:
    """The metric of a name; None for one of lm-evaluation-harness, which judges by itself."""
    return METRICS.members[name]() if name in METRICS.members else None


def is_generated(metric: str) -> bool:
    """Whether a score's metric, or one of several joined by "+", judges written replies."""
    return any(m is not None and m.generated for m in map(metric_of, metric.split("+")))
