"""The options of all commands, each declared once: default, meaning, group and limits.

The command line (`loraprobe.cli.options`), the keywords of the Python functions and the table in
the documentation come from these declarations; `loraprobe.cli.output` has those that say how a
command prints and where it writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loraprobe.declarations import (
    LEARNED,
    adapter_option,
    as_given,
    check_values,
    composition_option,
    evaluation_option,
    machine_option,
    output_option,
    read_auto_or_count,
    read_executor,
    read_named_file,
    read_weights,
    task_option,
)
from loraprobe.defaults import KEEP, MARGIN, RETENTION, SCREENING_ITEMS
from loraprobe.errors import UsageError
from loraprobe.formatting import count


@dataclass(frozen=True)
class Options:
    """The options that decide a result. Python functions take these fields as keywords.

    `subtract` holds adapters or references, `router_prompts` pairs of an adapter's name and a file
    with one prompt per line. Those on the file of a task hold one text for all tasks or one for
    each, "" for a task that needs none. `state` is the directory for the results of a run, None for
    the user's cache. `layers` has weights of single layers (layer -> one for each adapter), as a
    card tells them. `arguments` is the command line and `started` its start (time.perf_counter),
    for the provenance. Raises UsageError for values that are out of range or contradict each other.
    """

    device: str = machine_option("auto", "auto, cpu, cuda[:n] or mps.")
    dtype: str = machine_option(
        "auto", "Of the base: auto (by the device), float32, bfloat16 or float16."
    )
    quantize: Literal["none", "4bit", "8bit"] = machine_option(
        "none", "Load the base as it is (none), in 4bit or in 8bit."
    )
    device_map: Literal["none", "auto"] = machine_option(
        "none", "auto: spread the base over all devices (needs accelerate); or none."
    )
    trust_remote_code: bool = machine_option(
        False, "Run model code that the base's repository holds."
    )
    run_unsafe_code: bool = machine_option(
        False, "Let lm_eval: run the code in a folder of YAML, or what a model writes."
    )
    batch_size: int | Literal["auto"] = machine_option(
        "auto", "Prompts a batch, or auto.", least=1, read=read_auto_or_count
    )
    threads: int | None = machine_option(None, "CPU threads.", least=1, most=4096)
    executor: str | None = machine_option(
        None,
        "Ask the base by tasks of a Ray cluster: ray (this machine) or ray://ADDRESS.",
        metavar="WHERE",
        read=read_executor,
    )
    fields: tuple[Any, ...] = task_option(
        (),
        "Which fields of the task's file hold an item's keys, such as prompt=question, with commas "
        "between them; repeated: one for each task.",
        metavar="KEY=FIELD",
    )
    prompt_template: tuple[str, ...] = task_option(
        (),
        "The prompt, with {field} for a field of the task's file; repeated: one for each task.",
        metavar="FILE|TEXT",
    )
    answer_after: tuple[str, ...] = task_option(
        (),
        "The gold answer follows this text in its field, as #### in gsm8k; repeated: one for each "
        "task.",
    )
    answer_pattern: tuple[str, ...] = task_option(
        (),
        "The gold answer is what this regular expression finds last in its field (its first "
        "group); repeated: one for each task.",
        metavar="REGEX",
    )
    allow: tuple[str, ...] = adapter_option(
        (), "Accept one named issue, such as base-mismatch; may be repeated."
    )
    serve: tuple[str, ...] = adapter_option(
        (),
        "Tell what these servers would refuse or misread in the file: vllm, sglang, llama.cpp, "
        "ollama, peft (each may have @VERSION), or all; with commas, or repeated.",
        metavar="SERVER",
    )
    balance: Literal["none", "norm"] = adapter_option(
        "none",
        "norm: scale the adapters to one Frobenius norm, the mean of theirs, first; or none.",
    )
    subtract: tuple[Any, ...] = adapter_option(
        (),
        "Subtract this adapter's deltas (the mean of several) from every other's first; may be "
        "repeated.",
    )
    methods: tuple[str, ...] = composition_option(
        ("uniform", "sum"),
        "Merge method, such as ties:density=0.3; may be repeated; none: no merge.",
        flag="--method",
    )
    routers: tuple[str, ...] = composition_option(
        ("arrow",),
        "Router, such as arrow:top_k=1; may be repeated; none: no router.",
        flag="--router",
    )
    systems: tuple[str, ...] = composition_option(
        (),
        "Compose only this system; may be repeated. The base, the single adapters and the controls "
        "stay.",
        flag="--system",
    )
    router_prompts: tuple[tuple[str, Path], ...] = composition_option(
        (),
        "Unlabelled prompts of one adapter, one a line, for a router that learns from prompts; "
        "may be repeated.",
        metavar="NAME=FILE",
        read=read_named_file,
    )
    weights: tuple[float, ...] | Literal["learn", "learn:per=layer"] | None = composition_option(
        None,
        "One weight for each adapter, such as 0.7,0.3 or 1,-0.5, used as given (uniform ignores "
        "them); or learn, or learn:per=layer: by gradient descent on a part of the task that "
        "serves nothing else.",
        read=read_weights,
    )
    space: str | None = composition_option(
        None, "Space in which a merge runs: full, core or knots; without it the method's own."
    )
    rank: int | Literal["auto"] = composition_option(
        "auto",
        "Rank of the merge; auto: as many as lose nothing, at most the sum of the ranks.",
        read=read_auto_or_count,
    )
    limit: int | None = evaluation_option(None, "Use only the first N items.", least=1)
    all_items: bool = evaluation_option(
        False, "Ask every system all items; otherwise a run stops as soon as the decision holds."
    )
    items: int = evaluation_option(
        SCREENING_ITEMS, "Items of each task on which a library is screened.", least=10
    )
    keep: int = evaluation_option(KEEP, "Sets of a library that are proved.", least=1, most=64)
    budget: float | None = evaluation_option(None, "Minutes that a screen may take.", least=0)
    max_new_tokens: int | None = evaluation_option(None, "Longest answer, in tokens.", least=1)
    metric: str = evaluation_option(
        "auto",
        "How answers are judged: auto (by what the gold answers need), exact_match, strict, "
        "contains, json, numeric, regex, choice or answer_loss; TASK=metric for one task; may be "
        "repeated.",
        repeats=True,
    )
    margin: float | None = evaluation_option(
        None, f"Gain below which composing is not worth it (default {MARGIN:g}).", least=0, most=1
    )
    retention: float = evaluation_option(
        RETENTION, "Share of each specialist's gain that one model must keep.", least=0, most=1
    )
    prior: float | None = evaluation_option(
        None,
        "Share of such compositions that you expect to gain; the probability is for it (without "
        "it the calibration's own).",
    )
    calibration: Path | None = evaluation_option(
        None, "Calibration that lab calibrate wrote, in place of the shipped one."
    )
    chat_template: Literal["auto", "on", "off"] = evaluation_option(
        "auto", "auto (the better for the single adapters), on or off."
    )
    diagnostics: tuple[str, ...] = evaluation_option(
        (),
        "Also compute this diagnostic, such as intruder_dimensions (needs --base); may be "
        "repeated.",
        flag="--diagnostic",
    )
    per_module: bool = evaluation_option(False, "Also give a row for every module.")
    seed: int = evaluation_option(0, "Seed of everything that is drawn.", least=0)
    resume: bool = output_option(
        False, "Use what an interrupted run of this call, or inspect, kept."
    )
    state: Path | None = None
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    started: float | None = None

    def __post_init__(self) -> None:
        # A single reference is a string and so a sequence: it counts as one adapter.
        one = isinstance(self.subtract, (str, Path)) or not isinstance(self.subtract, Sequence)
        object.__setattr__(self, "subtract", (self.subtract,) if one else tuple(self.subtract))
        if any(isinstance(one, tuple) for one in self.fields):  # a mapping, as Python has them
            pairs = ((key, [at] if isinstance(at, str) else at) for key, at in self.fields)
            one_text = ",".join(f"{key}={','.join(names)}" for key, names in pairs)
            object.__setattr__(self, "fields", (one_text,))
        for name in ("methods", "routers"):
            if "none" in (held := getattr(self, name)):
                if len(held) > 1:
                    raise UsageError(f"--{name[:-1]} none leaves out all {name}; give it alone.")
                object.__setattr__(self, name, ())
        if not isinstance(self.metric, str):
            object.__setattr__(self, "metric", ",".join(self.metric or ()) or "auto")
        check_values(self)
        self._check_combinations()

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Options:
        """The options of a Python call, whose texts are read as on the command line."""
        return cls(**{name: as_given(cls, name, value) for name, value in keywords.items()})

    def _check_combinations(self) -> None:
        """Raises UsageError for options that do not go together, or that need another option."""
        if self.device_map == "auto" and self.device != "auto":
            raise UsageError("--device-map auto places the base by itself; leave --device out.")
        if self.learns and self.weights not in LEARNED:
            raise UsageError(
                f"--weights takes one number an adapter or {' or '.join(LEARNED)}, not "
                f"{self.weights!r}."
            )
        if not all(map(math.isfinite, self.given_weights or ())):
            raise UsageError(f"--weights must be finite numbers, not {self.weights!r}.")
        if self.metric == "answer_loss" and self.margin is None:
            raise UsageError(
                "--metric answer_loss needs --margin; give the loss difference that matters."
            )
        if self.prior is not None and not 0 < self.prior < 1:
            raise UsageError(
                "--prior, the share of compositions expected to gain, must be above 0 and below 1, "
                f"not {self.prior}."
            )
        named = [name for name, _ in self.router_prompts]
        for name, file in self.router_prompts:
            if named.count(name) > 1:
                raise UsageError(
                    f"--router-prompts names {name} twice; put all its lines into one file."
                )
            if not Path(file).is_file():
                raise UsageError(f"--router-prompts: {file} is no file; check the path.")

    def check_count(self, adapters: int) -> None:
        """Raises UsageError where the weights are not one for each adapter."""
        given = self.given_weights
        if given is not None and len(given) != adapters:
            numbers = count(len(given), "number")
            raise UsageError(
                f"--weights gives {numbers} for {adapters} adapters; give one for each."
            )

    @property
    def needed_gain(self) -> float:
        """The margin as given, else the default."""
        return MARGIN if self.margin is None else self.margin

    @property
    def given_weights(self) -> tuple[float, ...] | None:
        """The weights as numbers; None where there are none or they are to be learned."""
        return None if isinstance(self.weights, str) else self.weights

    @property
    def learns(self) -> bool:
        """Whether the weights are to be learned."""
        return isinstance(self.weights, str)

    @property
    def learns_layers(self) -> bool:
        """Whether each layer is to get weights of its own."""
        return self.weights == "learn:per=layer"

    def fingerprint(self) -> Mapping[str, Any]:
        """The options on which an item's result depends, as plain data.

        `--limit` counts through the items of the tasks, `--router-prompts` through their lines.
        """
        decides = (
            "methods routers systems weights space rank allow max_new_tokens metric seed balance "
            "quantize device_map trust_remote_code"
        ).split()
        subtracted = len(self.subtract)  # the last of the adapters, whose content is known
        return {name: getattr(self, name) for name in decides} | {"subtracted": subtracted}
