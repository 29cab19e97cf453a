"""Tasks of lm-evaluation-harness: `lm_eval:TASK[,TASK]`, and `lm_eval:TASK@DIR` for own YAML files.

The package lm-eval loads the tasks, writes their prompts, filters replies and judges them. A
`HarnessTask` here tells which requests belong to an item and turns what the harness says of it into
one value: a share in [0, 1], or a loss under the metric "answer_loss".

Of a task's metrics the first that is a mean over items counts, shares before losses, unless
`--metric TASK=METRIC` or `TASK=METRIC:FILTER` names another. A perplexity is the exponential of a
mean of losses: nats a word or a byte, where a longer text counts more, as in the harness.

A group with one score over all items of its subtasks (its `aggregate_metric_list` weighs by size)
is one task with all these items. Other groups and tags are only names for several tasks, whose
plain mean decides here too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from loraprobe.defaults import LOSS
from loraprobe.errors import TaskError, UsageError
from loraprobe.extensions.harness import PREFIX
from loraprobe.formatting import listing, nearest
from loraprobe.tasks import Examiner, Item, Task, given_metric
from loraprobe.untrusted import error_line

SEED = 1234  # of few-shot examples, the harness's default
DUMMY = {"generate_until": "", "loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0}
WEIGHTED = {"weighted_perplexity": 1.0, "bits_per_byte": math.log(2)}  # aggregation -> nats in one
MetricOfFilter = tuple[str, str]


class HarnessTask(Examiner):
    """One task of the harness, its requests in each form of prompts, and how it is judged."""

    name = "lm-evaluation-harness"

    def __init__(self, task: Any, limit: int | None, most: int | None, unsafe: bool) -> None:
        self.task, self.title, self.limit = task, task.task_name, limit
        if getattr(task, "UNSAFE_CODE", False) and not unsafe:
            raise UsageError(
                f"Task {self.title} runs code that a model writes:",
                "add --run-unsafe-code if that may happen on this machine.",
            )
        if getattr(task, "MULTIMODAL", False):
            raise UsageError(
                f"Task {self.title} asks about images or sound:", "choose one of texts."
            )
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if most is not None and task.get_config("generation_kwargs") is not None:
            task.set_config("generation_kwargs", {"max_gen_toks": most}, update=True)
        self._built: dict[bool, dict[int, list[Any]]] = {}
        self.docs: dict[str, int] = {}  # item -> document
        self.key: MetricOfFilter = ("", "")
        self.read: Callable[[Any], float] = float
        self.loss = False

    def __str__(self) -> str:
        return f"{self.title} {self.key} {self._config}"

    @functools.cached_property
    def _config(self) -> str:
        config = json.dumps(self.task.dump_config(), sort_keys=True, default=str)
        return f"{importlib.metadata.version('lm_eval')} {sha256(config.encode()).hexdigest()}"

    @classmethod
    def ask(cls, scorer: Any, items: Sequence[Item]) -> Sequence[tuple[float, str]]:
        """The requests of all tasks go to the model together, which transformers runs."""
        from loraprobe.extensions.harness.system_lm import SystemLM
        from loraprobe.scoring import ModelScorer

        if not isinstance(scorer, ModelScorer):
            raise UsageError(f"Tasks of {cls.name} need transformers; name no other engine.")
        lm, ids = SystemLM(scorer), defaultdict[Any, list[str]](list)
        for item in items:
            ids[item.examiner].append(item.id)
        asked = {task: task.requests(own, lm) for task, own in ids.items()}
        by_kind = defaultdict[str, list[Any]](list)
        for request in (one for requests in asked.values() for one in requests):
            by_kind[request.request_type] += [request] * (request.repeats or 1)
        for kind, requests in by_kind.items():
            for request, reply in zip(requests, getattr(lm, kind)(requests), strict=True):
                request.resps.append(reply)
        values = {task: iter(task.values(requests)) for task, requests in asked.items()}
        return [next(values[item.examiner]) for item in items]

    def told(self, task: str) -> str:
        loss = ", as a loss in nats of which less is better" if self.loss else ""
        return f"Task {task} is judged by {' of filter '.join(self.key)}{loss}, as lm-eval does."

    def requests(self, items: Sequence[str], lm: Any = None) -> list[Any]:
        """New requests for these items. lm: its chat template forms the prompts, if it has one."""
        return self._fresh([self.docs[item] for item in items], lm)

    def values(self, answered: Sequence[Any]) -> list[tuple[float, str]]:
        """The value of each item and its reply as text, from requests with their replies.

        The requests of an item follow each other. Raises TaskError for a value that is no share.
        """
        return [
            (self._value(metrics), _text(of, self.key[1]))
            for of, metrics in self._judged(answered, self.key[1])
        ]

    def items(self, named: bool) -> list[Item]:
        """The items; named: their ids begin with the task's name."""
        items = []
        for doc, requests in self._by_doc().items():
            name = f"{self.title}/{doc}" if named else str(doc)
            self.docs[name] = doc
            metric = LOSS if self.loss else PREFIX + self.key[0]
            items.append(Item(name, *self._texts(requests), metric=metric, examiner=self))
        return items

    def readings(self) -> dict[MetricOfFilter, tuple[Callable[[Any], float] | None, bool]]:
        """For each metric and filter: how a value is read, None if it is no mean; if it is a loss.

        The harness judges an empty reply to the first item, which shows its metrics.
        """
        first = next(iter(self._by_doc()))
        readings: dict[MetricOfFilter, tuple[Callable[[Any], float] | None, bool]] = {}
        for name in [lm_filter.name for lm_filter in self.task._filters]:
            _, values = self._judged(_dummies(self._fresh([first])), name)[0]
            better, aggregated = self.task.higher_is_better(), self.task.aggregation()
            for metric, value in values.items():
                readings[metric, name] = self._reading(
                    (metric, name), aggregated.get(metric), value, better.get(metric, True)
                )
        return readings

    def _reading(
        self, key: MetricOfFilter, aggregation: Any, value: Any, better: bool
    ) -> tuple[Callable[[Any], float] | None, bool]:
        known = getattr(aggregation, "__name__", "")
        if known in WEIGHTED:
            every = self._fresh(list(self._by_doc()))
            weights = [values[key[0]][1] for _, values in self._judged(_dummies(every), key[1])]
            unit = WEIGHTED[known] * sum(weights) / len(weights)
            return (lambda pair: -pair[0] / unit), True
        if known == "perplexity":
            return (lambda logprob: -logprob), True
        return (float if _number(value) and _is_mean(aggregation) else None), not better

    def _value(self, metrics: Mapping[str, Any]) -> float:
        metric = self.key[0]
        if metric not in metrics or not _number(value := self.read(metrics[metric])):
            raise TaskError(
                f"Task {self.title} gives no number as {metric}:", "choose another metric."
            )
        if value < 0 or (value > 1 and not self.loss):
            raise TaskError(
                f"{metric} of task {self.title} is {value:g} for one item, and loraprobe compares "
                f"shares from 0 to 1:",
                f"choose another one by --metric={self.title}=METRIC (it has "
                f"{', '.join(metrics)}).",
            )
        return float(value)

    def _judged(
        self, answered: Sequence[Any], by: str
    ) -> list[tuple[list[Any], Mapping[str, Any]]]:
        """The requests of each item, and the harness's metrics of it. by: the filter."""
        by_doc: dict[int, list[Any]] = {}
        for request in answered:
            by_doc.setdefault(request.doc_id, []).append(request)
        with (
            silent_harness(),
            as_task_error(self.title, "cannot be judged", "check its YAML and its filters"),
        ):
            self.task._instances = list(answered)
            self.task.apply_filters()
            return [
                (of, self.task.process_results(of[0].doc, [one.filtered_resps[by] for one in of]))
                for of in by_doc.values()
            ]

    def _fresh(self, docs: Sequence[int], lm: Any = None) -> list[Any]:
        held = self._by_doc(lm)
        return [
            dataclasses.replace(request, resps=[], filtered_resps={})
            for doc in docs
            for request in held[doc]
        ]

    def _by_doc(self, lm: Any = None) -> dict[int, list[Any]]:
        """The requests of each document in the form of prompts that the model is asked in."""
        chat = lm is not None and lm.chat
        if chat not in self._built:
            template = {"apply_chat_template": True, "fewshot_as_multiturn": True}
            template |= {"chat_template": lm.apply_chat_template} if chat else {}
            template |= {"tokenizer_name": lm.tokenizer_name} if chat else {}
            with (
                silent_harness(),
                as_task_error(self.title, "cannot be asked", "check its YAML and its data"),
            ):
                self.task.set_fewshot_seed(seed=SEED)
                self.task.build_all_requests(limit=self.limit, **(template if chat else {}))
            by_doc = self._built.setdefault(chat, {})
            for request in self.task.instances:
                by_doc.setdefault(request.doc_id, []).append(request)
        return self._built[chat]

    def _texts(self, requests: Sequence[Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Prompt, right answers and choices of an item; a text for its perplexity has no answer."""
        first = requests[0]
        if first.request_type == "loglikelihood_rolling":
            return first.args[0], (), ()
        choices: tuple[str, ...] = ()
        if len(requests) > 1 and len({entry.args[0] for entry in requests}) == 1:
            choices = tuple(entry.args[1].strip() for entry in requests)
        target = self.task.doc_to_target(first.doc)
        gold = target if isinstance(target, list) else [target]
        answers = (
            choices[entry] if isinstance(entry, int) and 0 <= entry < len(choices) else str(entry)
            for entry in gold
        )
        return first.args[0], tuple(answers), choices


def load_harness(
    reference: str,
    limit: int | None = None,
    *,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    run_unsafe_code: bool = False,
) -> list[Task]:
    """The tasks of a reference, with their data; limit: only the first items of every subtask.

    metric: the text of `--metric`. run_unsafe_code: a folder of YAML files may be read, which can
    run any code, and a task may run what a model writes. Raises UsageError for an unknown name, for
    code that is not confirmed, and without lm-eval; TaskError for a task that cannot be loaded, or
    that has no metric which is a mean over items.
    """
    names, _, folder = reference.removeprefix(PREFIX).partition("@")
    if folder and not run_unsafe_code:
        raise UsageError(
            f"The YAML files in {folder} can run any code on this machine when lm-eval reads them:",
            "add --run-unsafe-code if you trust whoever wrote them.",
        )
    place = f"@{Path(folder).resolve().name}" if folder else ""
    with silent_harness():
        manager, tasks = _manager(folder), list[Task]()
        for name in filter(None, names.split(",")):
            if name not in manager.all_tasks:
                others = "lm_eval ls tasks lists them, and lm_eval:TASK@DIR takes your own."
                if folder:
                    others = "" if manager.all_tasks else "check the folder, it has no task."
                raise UsageError(
                    f"{folder or 'lm-evaluation-harness'} has no task {name!r}:",
                    nearest(name, manager.all_tasks, others),
                )
            with as_task_error(
                name, "cannot be loaded", "check its YAML and the place of its data"
            ):
                loaded = manager.load([name])
            group = loaded["groups"].get(name)
            for title, leaves, counted in _separate([group] if group else loaded["tasks"].values()):
                parts = [HarnessTask(one, limit, max_new_tokens, run_unsafe_code) for one in leaves]
                _choose(title, parts, counted, metric)
                items = [item for part in parts for item in part.items(len(parts) > 1)]
                digest = sha256(f"{[*map(str, parts)]} {items}".encode()).hexdigest()
                tasks.append(Task(title, tuple(items), f"{PREFIX}{title}{place}", digest))
    if not tasks:
        raise UsageError(
            f"{reference} names no task:", f"write {PREFIX}TASK, such as lm_eval:arc_easy."
        )
    return tasks


def _choose(
    title: str, parts: Sequence[HarnessTask], counted: Sequence[str] | None, metric: str | None
) -> None:
    """Chooses the metric by which the parts of a task are judged. counted: those of a group."""
    readings = [part.readings() for part in parts]
    wanted = given_metric(title, metric)
    known = [
        key
        for key in readings[0]
        if (counted is None or key[0] in counted) and all(key in reading for reading in readings)
    ]
    named = [key for key in known if wanted in (None, key[0], ":".join(key))]
    if wanted is not None and not named:
        names = list(dict.fromkeys(key[0] for key in known))
        raise UsageError(f"Task {title} has no metric {wanted!r}:", nearest(wanted, names))
    usable = [key for key in named if all(reading[key][0] for reading in readings)]
    if not usable:
        names = list(dict.fromkeys(key[0] for key in named))
        raise TaskError(
            f"Task {title} is judged by {listing(names) or 'nothing'}, which is no mean over its "
            "items, so answers cannot be compared item by item:",
            "choose another metric by --metric, or name one such as exact_match in metric_list of "
            "its YAML.",
        )
    chosen = min(usable, key=lambda key: readings[0][key][1])  # the first share, else a loss
    for part, reading in zip(parts, readings, strict=True):
        read, loss = reading[chosen]
        part.key, part.loss, part.read = chosen, loss, read or float


def _separate(
    things: Iterable[Any],
) -> Iterator[tuple[str, list[Any], Sequence[str] | None]]:
    """Each task's name, its leaves, and the metrics that a group counts (None without a group)."""
    for thing in things:
        if not hasattr(thing, "get_all_tasks"):
            yield thing.task_name, [thing], None
        elif (metrics := thing.aggregate_metric_list) and all(
            metric.weight_by_size for metric in metrics
        ):
            yield thing.name, thing.get_all_tasks(), [metric.metric for metric in metrics]
        else:
            yield from _separate(thing)


def _manager(folder: str) -> Any:
    """lm-eval's index of the tasks in a folder, or of its own; these take some seconds to list."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        TaskManager = None
    if TaskManager is None or not hasattr(TaskManager, "load"):
        raise UsageError(
            "Tasks of lm-evaluation-harness need lm-eval 0.4.13 or later:",
            'pip install "loraprobe[lm-eval]".',
        )
    if folder and not Path(folder).is_dir():
        raise UsageError(
            f"There is no directory {folder} with YAML files of tasks:", "check the path."
        )
    return TaskManager(include_path=folder or None, include_defaults=not folder)


@contextlib.contextmanager
def as_task_error(name: str, problem: str, cure: str) -> Iterator[None]:
    """Whatever a task's YAML, its code or its data raise, as one sentence."""
    try:
        yield
    except Exception as error:
        raise TaskError(
            f"Task {name} of lm-evaluation-harness {problem} ({error_line(error)}):", f"{cure}."
        ) from None


@contextlib.contextmanager
def silent_harness() -> Iterator[None]:
    """Nothing of the harness's logs and progress bars is printed within the block."""
    nowhere = io.StringIO()
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def _dummies(requests: list[Any]) -> list[Any]:
    for request in requests:
        request.resps = [DUMMY[request.request_type]] * (request.repeats or 1)
    return requests


def _is_mean(aggregation: Any) -> bool:
    """Whether a function computes the mean of numbers."""
    try:
        mean = aggregation([0.0, 1.0, 0.25, 1.0])
    except Exception:
        return False
    return _number(mean) and math.isclose(mean, 0.5625)


def _number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, tuple, list)) and math.isfinite(value)
    except TypeError:
        return False


def _text(requests: Sequence[Any], by: str) -> str:
    """The filtered reply; of texts that were scored, each with its log-likelihood."""
    first = requests[0]
    if first.request_type == "generate_until":
        return str(first.filtered_resps[by])
    if first.request_type == "loglikelihood_rolling":
        return ""
    return ", ".join(
        f"{request.args[1].strip()} ({request.resps[0][0]:.2f})" for request in requests
    )
