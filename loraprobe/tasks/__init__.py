"""Task and probe files, and how the answer in a generated text is read and compared.

`items` holds the records, `reading` reads files and reports bad lines, `answers` reads the answer
from a generated text and compares it.
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
