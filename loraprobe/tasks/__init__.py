"""Task and probe files: what is asked of every system, and how an answer is read.

`items` holds the records, `reading` turns files into them and says which line is wrong and why,
`answers` reads the answer out of a generated text and compares it.
"""

from loraprobe.tasks.answers import answered, exact_match, normalize_answer, read_answer
from loraprobe.tasks.items import Hop, Item, Probe, ProbeItem, Task, fill
from loraprobe.tasks.reading import load_probe, load_task

__all__ = [
    "Hop",
    "Item",
    "Probe",
    "ProbeItem",
    "Task",
    "answered",
    "exact_match",
    "fill",
    "load_probe",
    "load_task",
    "normalize_answer",
    "read_answer",
]
