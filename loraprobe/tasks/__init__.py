"""Task and probe files, and how the answer in a generated text is read and compared.

`items` holds the records. `sources` reads rows of data files, `reading` maps their fields onto
items and names bad lines. `metrics` reads the answer from a generated text, judges it, and says by
which metric. `checking` tells what a task allows a verdict to say. `harness` reads tasks of
lm-evaluation-harness.
"""

from loraprobe.tasks.checking import TaskCheck, check_task
from loraprobe.tasks.items import Hop, Item, ProbePrompts, Task, fill
from loraprobe.tasks.metrics import (
    GENERATED,
    METRICS,
    Metric,
    answered,
    check_metrics,
    contains,
    exact_match,
    given_metric,
    is_generated,
    item_metric,
    judge,
    named_metrics,
    normalize_answer,
    with_metric,
)
from loraprobe.tasks.reading import FieldMap, load_probe, load_task, read_task
