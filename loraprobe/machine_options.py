"""The options that say on what a run is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.declarations import (
    MACHINE,
    option,
    read_auto_or_count,
    read_executor,
    read_shard,
)
from loraprobe.errors import UsageError


@dataclass(frozen=True)
class MachineOptions:
    """Devices, precision, memory, and the processes that share the work."""

    device: str = option("auto", MACHINE, "auto, cpu, cuda[:n] or mps.")
    dtype: str = option(
        "auto", MACHINE, "Of the base: auto (by the device), float32, bfloat16 or float16."
    )
    quantize: Literal["none", "4bit", "8bit"] = option(
        "none", MACHINE, "Load the base as it is (none), in 4bit or in 8bit."
    )
    device_map: Literal["none", "auto"] = option(
        "none", MACHINE, "auto: spread the base over all devices (needs accelerate); or none."
    )
    trust_remote_code: bool = option(
        False, MACHINE, "Run model code that the base's repository holds."
    )
    run_unsafe_code: bool = option(
        False, MACHINE, "Let lm_eval: tasks run code that a model writes."
    )
    batch_size: int | Literal["auto"] = option(
        "auto", MACHINE, "Prompts a batch, or auto.", least=1, read=read_auto_or_count
    )
    threads: int | None = option(None, MACHINE, "CPU threads.", least=1, most=4096)
    shard: tuple[int, int] | None = option(
        None,
        MACHINE,
        "Compute only the I-th of N shares and write it to --output; combine joins them.",
        metavar="I/N",
        read=read_shard,
    )
    executor: str | None = option(
        None,
        MACHINE,
        "Compute on several processes: local[:N] (one a GPU, or N) or ray[://ADDRESS] (a cluster).",
        metavar="WHERE",
        read=read_executor,
    )

    def check_placement(self) -> None:
        """Raises UsageError where two options place the base."""
        if self.device_map == "auto" and self.device != "auto":
            raise UsageError("--device-map auto places the base by itself; leave --device out.")
