"""Task and probe files, and how the answer in a generated text is read and compared.

`items` holds the records. `sources` reads rows of data files, `fields` and `choices` map them onto
items, `reading` checks them and names bad lines. `answers` reads the answer from a generated text,
`metrics` judges it, `choosing` says by which metric. `checking` tells what a task allows a verdict
to say. `harness` reads tasks of lm-evaluation-harness.
"""

from loraprobe.tasks.answers import answered, exact_match, normalize_answer, read_answer
from loraprobe.tasks.checking import TaskCheck, check_task
from loraprobe.tasks.choosing import (
    check_metrics,
    given_metric,
    is_generated,
    item_metric,
    named_metrics,
    with_metric,
)
from loraprobe.tasks.fields import Layout
from loraprobe.tasks.items import Hop, Item, Probe, ProbeItem, Task, fill
from loraprobe.tasks.metrics import GENERATED, METRICS, Metric, contains, judge
from loraprobe.tasks.reading import load_probe, load_task, read_task
