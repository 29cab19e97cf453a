"""Task and probe files, and how the answer in a generated text is read and compared.

`items` holds the records. `sources` reads rows of data files, `reading` maps their fields onto
items and names bad lines. A metric of `metrics` reads the answer in a generated text and judges it,
and `chosen_metric` says which one. `checking` tells what a task allows a verdict to say. `harness`
reads tasks of lm-evaluation-harness.
"""

from loraprobe.tasks.checking import TaskCheck, check_task
from loraprobe.tasks.chosen_metric import (
    given_metric,
    judged_by,
    named_metrics,
    with_metrics,
)
from loraprobe.tasks.items import Hop, Item, ProbePrompts, Task, fill
from loraprobe.tasks.metrics import (
    METRICS,
    answered,
    contains,
    exact_match,
    is_generated,
    normalize_answer,
)
from loraprobe.tasks.reading import FieldMap, is_text, load_probe, load_task, load_text, read_task
