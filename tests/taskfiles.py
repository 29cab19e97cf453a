"""Task files of a few lines, and how they are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loraprobe.errors import TaskError
from loraprobe.tasks import load_task

WORKED = {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}


def write(place: Path, *lines: str | bytes | dict, name: str = "t.jsonl") -> Path:
    path = place / name
    texts = [line if isinstance(line, (bytes, str)) else json.dumps(line) for line in lines]
    path.write_bytes(b"\n".join(t if isinstance(t, bytes) else t.encode() for t in texts))
    return path


def line(**changes) -> dict:
    made = {"id": "1", "prompt": "Q?", "answer": "A b"} | changes
    return {key: value for key, value in made.items() if value is not ...}


def refused(path: Path, load: Callable[[Path], object] = load_task) -> str:
    with pytest.raises(TaskError) as error:
        load(path)
    assert error.value.cure and "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)
