"""Whether a server behind `loraprobe proxy` answers as the router by text did here.

    python compare.py HERE.jsonl SERVED.jsonl --ask URL

Both files are those of `--save-samples`. The scores of by-text in them are compared; then every
question is sent to the front as text, to the model by-text, which shows whom it names, and the
first line of the reply is compared with that of the run here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx

BY_TEXT = "by-text"


def replies(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, item) -> the question, what by-text replied, and whether that was right."""
    found = {}
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        for reply in row["replies"] if row["part"] == "question" else ():
            if reply["system"] == BY_TEXT:
                found[row["task"], row["item"]] = {"prompt": row["question"], **reply}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("here", type=Path)
    parser.add_argument("served", type=Path)
    parser.add_argument("--ask", required=True)
    given = parser.parse_args()
    here, served = replies(given.here), replies(given.served)
    both = sorted(here.keys() & served.keys())
    print(f"{len(both)} questions were asked by-text here and by-text through the front.")
    for task in sorted({task for task, _ in both}):
        own = [key for key in both if key[0] == task]
        scores = [sum(one[key]["right"] for key in own) / len(own) for one in (here, served)]
        print(f"  {task}: {scores[0]:.3f} here, {scores[1]:.3f} served, {len(own)} questions")
    same = sum(here[key]["right"] == served[key]["right"] for key in both)
    print(f"  judged alike: {same} of {len(both)}")
    alike, named = 0, defaultdict[str, Counter[str]](Counter)
    with httpx.Client(base_url=given.ask, timeout=600) as client:
        for key in both:
            body = {"model": BY_TEXT, "prompt": here[key]["prompt"], "temperature": 0}
            answer = client.post("/v1/completions", json={**body, "max_tokens": 32, "seed": 0})
            answer.raise_for_status()
            document = answer.json()
            named[key[0]][document["model"]] += 1
            text = document["choices"][0]["text"].strip().split("\n")[0].strip()
            alike += text == here[key]["text"].strip().split("\n")[0].strip()
    for task, models in named.items():
        print(f"  asked as text, {task} went to {dict(models)}")
    print(f"  the same first line: {alike} of {len(both)}")


if __name__ == "__main__":
    main()
