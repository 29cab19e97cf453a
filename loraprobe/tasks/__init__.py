"""Task and probe files, and how the answer in a generated text is read and compared.

`items` holds the records. `reading` makes items of the rows of files and names bad lines.
`metrics` says which metric judges an item, and reads the answer in a generated text. `splits` sets
items apart.
"""

from loraprobe.tasks.items import Examiner, Hop, Item, ProbePrompts, Task, fill
from loraprobe.tasks.metrics import (
    METRICS,
    answered,
    contains,
    exact_match,
    given_metric,
    is_generated,
    judged_by,
    named_metrics,
    normalize_answer,
    with_metrics,
)
from loraprobe.tasks.reading import is_text, load_probe, load_task, load_text, read_task
