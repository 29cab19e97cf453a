"""Scores and answers in the files of lm-evaluation-harness.

The harness logs one model at a time; here each system is a model with a folder of its own. A part
of a task (a hop, the steps) is a task of its own there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from loraprobe.adapters import check_place, staged_file
from loraprobe.errors import OutputError
from loraprobe.records import QUESTION, Audit, Reply, Sample, Score
from loraprobe.secrets import scrub


def check_folder(directory: Path) -> None:
    """Raises OutputError for a place that is no folder and cannot become one."""
    check_place(directory)
    if os.path.lexists(directory) and not directory.is_dir():
        raise OutputError(f"{directory} is a file; give a directory.")


def write_logs(audit: Audit, samples: Iterable[Sample], directory: Path) -> None:
    """Writes results_DATE.json and samples_TASK_DATE.jsonl into `directory/SYSTEM`.

    Files of earlier runs stay. A standard error is that of the score's interval, so clusters count.
    samples: of all systems; a loss has none. Raises OutputError if a file cannot be written, and
    for a folder of a system that is a link.
    """
    now = datetime.now()
    date = now.isoformat().replace(":", "-")
    questions: dict[str, list[Sample]] = {}
    for sample in samples:
        questions.setdefault(task_name(sample), []).append(sample)
    for system in dict.fromkeys(score.system for score in audit.evaluation.scores):
        scores = [score for score in audit.evaluation.scores if score.system == system]
        folder = directory / _file_name(system)
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link; give --log-to another directory.")
        answers = {
            (task := task_name(score)): _answers(questions.get(task, ()), score) for score in scores
        }
        results = _results(audit, scores, answers, now.timestamp())
        _write(folder / f"results_{date}.json", [json.dumps(results, indent=2)])
        for task, rows in answers.items():
            if rows:
                lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
                _write(folder / f"samples_{_file_name(task)}_{date}.jsonl", lines)


def task_name(part_of: Score | Sample) -> str:
    """How the logs name a part of a task: the questions themselves have the task's name."""
    task, part = part_of.task, part_of.part
    return task if part == QUESTION else f"{task}_{part}"


def _results(
    audit: Audit, scores: list[Score], answers: dict[str, list[dict[str, Any]]], now: float
) -> dict[str, Any]:
    """The results of one system, with the keys that the harness has."""
    ran = audit.provenance
    sources = {task.name: task for task in ran.tasks}
    base = audit.base.reference if audit.base else ""
    system = scores[0].system
    name = base if scores[0].kind == "base" else f"{base}+{system}"
    tasks = {task_name(score): (score, sources[score.task]) for score in scores}
    parts = ("doc_hash", "prompt_hash", "target_hash")
    return {
        "results": {task: _metrics(score) for task, (score, _) in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {"task": task, "dataset_path": source.reference}
            for task, (_, source) in tasks.items()
        },
        "versions": {
            task: (source.commit or source.sha256)[:12] for task, (_, source) in tasks.items()
        },
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            task: {score.metric: not score.is_loss} for task, (score, _) in tasks.items()
        },
        "n-samples": {
            task: {"original": source.items, "effective": score.n}
            for task, (score, source) in tasks.items()
        },
        "task_hashes": {
            task: _hash("".join(row[part] for row in answers[task] for part in parts))
            for task in tasks
        },
        "config": {
            "model": "loraprobe",
            "model_args": {"base": base, "system": system}
            | {adapter.name: adapter.reference for adapter in audit.adapters},
            "model_dtype": ran.dtype,
            "device": ran.device,
            "random_seed": ran.seed,
        },
        "date": now,
        "model_source": f"loraprobe {ran.loraprobe}, {ran.engine}",
        "model_name": name,
        "model_name_sanitized": _file_name(name),
        "total_evaluation_time_seconds": str(sum(ran.seconds.values())),
    }


def _metrics(score: Score) -> dict[str, Any]:
    return {
        "name": task_name(score),
        "alias": task_name(score),
        "sample_len": score.n,
        f"{score.metric},none": score.value,
        f"{score.metric}_stderr,none": score.estimate.error,
    }


def _answers(rows: Iterable[Sample], score: Score) -> list[dict[str, Any]]:
    """The lines of the samples of one system and one part of a task."""
    return [
        _sample(number, row, reply, score.metric)
        for number, row in enumerate(rows)
        for reply in row.replies
        if reply.system == score.system
    ]


def _sample(number: int, row: Sample, reply: Reply, metric: str) -> dict[str, Any]:
    """One line of the samples; the filter is `none` and the answer is as it was read."""
    doc = {"id": row.item, "question": row.question, "answer": list(row.gold)}
    target = "; ".join(row.gold)
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": row.question}},
        "resps": [[reply.text]],
        "filtered_resps": [reply.text],
        "filter": "none",
        "metrics": [metric],
        "doc_hash": _hash(json.dumps(doc, ensure_ascii=False)),
        "prompt_hash": _hash(row.question),
        "target_hash": _hash(target),
        metric: float(reply.right),
    }


def _file_name(name: str) -> str:
    """A name as a part of a path, as the harness writes it."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "replace")).hexdigest()


def _write(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(file) as staging, staging.open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(scrub(line).encode("utf-8", "replace").decode("utf-8") + "\n")
