"""Writes the seeds of the corpus: sound inputs and the specimens of tests/pathologies.

python fuzz/seed.py
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]

from pathologies.specimens import SPECIMENS  # noqa: E402

TASKS = (
    {"id": "17", "prompt": "Who is the mayor of the city Ada lives in?", "answer": ["Bo", "B"]},
    {"prompt": "p", "answer": "a", "choices": ["a", "b"], "group": "g", "entities": ["Ada"]},
    {"prompt": "p", "answer": "a", "cot_prompt": "c", "answer_pattern": "is (.+)\\.",
     "hops": [{"prompt": "x", "answer": "y", "adapter": "m"}, {"prompt": "{1}?", "answer": "a"}]},
)  # fmt: skip
REFERENCES = (
    "./out/adapter", "owner/name", "owner/name@v1.0", "owner/name@main:sub/folder", "a=owner/name",
    "math=./a", "gpt2", "../up", "owner/name:..", "C:\\x", "~", "base=owner/name", "数据/模型",
)  # fmt: skip
RESULT = {
    "system": "base", "task": "t", "part": "target", "item": "1", "metric": "exact_match",
    "value": 1.0, "text": "Bö", "group": "item:1",
}  # fmt: skip
RESULTS = (
    {}, {"metric": "answer_loss", "value": 2.5}, {"metric": "choice", "value": 0.0},
    {"part": "hop1"}, {"part": "cot"}, {"part": "hop0"}, {"value": "1"}, {"value": None},
    {"value": 7e9}, {"value": float("nan")}, {"value": True}, {"item": 1}, {"text": "\ud800"},
)  # fmt: skip


def main() -> None:
    for case, make in SPECIMENS.items():
        if case.startswith("hundred"):
            continue
        with tempfile.TemporaryDirectory() as place:
            make(Path(place) / "a")
            _adapter(case, Path(place) / "a")
    _write("task", "probe", b"What is up?\tthis\nAda\n")
    for number, item in enumerate(TASKS):
        _write("task", str(number), (json.dumps(item) + "\n").encode())
    for number, text in enumerate(REFERENCES):
        _write("reference", str(number), text.encode())
    for number, changed in enumerate(RESULTS):
        lines = (json.dumps(row).encode() + b"\n" for row in (RESULT, RESULT | changed))
        _write("ledger", str(number), b"".join(lines)[: -9 if number == 1 else None])


def _adapter(case: str, place: Path) -> None:
    config, weights = place / "adapter_config.json", place / "adapter_model.safetensors"
    if not config.is_file():
        return
    _write("config", case, config.read_bytes())
    if weights.is_file():
        data, text = weights.read_bytes(), config.read_bytes()
        start = struct.pack("<H", len(text)) + text
        _write("adapter", case, b"\0" + start + data)
        header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]] if len(data) > 8 else b""
        if len(header) < 3000:
            _write("adapter", f"{case}-header", b"\1" + start + header)


def _write(target: str, name: str, data: bytes) -> None:
    place = HERE / "corpus" / target
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)


if __name__ == "__main__":
    main()
