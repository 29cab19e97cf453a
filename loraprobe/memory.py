"""What memory is there, whether something fits before it is taken, and whether it has run out.

The answer is an estimate from what files and configs declare, made so that what cannot fit is
refused with a number in seconds, and not killed by the system after minutes.
"""

from __future__ import annotations

from pathlib import Path

from loraprobe.errors import OutOfMemory
from loraprobe.limits import limits

# What allocators say where they raise no error of their own.
SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "status_alloc_failed",
)

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (  # limit and usage of the second and of the first version
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available(device: str = "cpu") -> int | None:
    """Bytes that may be taken on a device; None where the system does not say.

    `--limits memory=...` decides where it is given. On the CPU it is what the kernel counts as
    available, or what a container's limit leaves, whichever is less.
    """
    if limits().memory:
        return limits().memory
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device != "cpu":
        return None
    known = [_kernel(), *(_container(*files) for files in _CGROUPS)]
    return min((value for value in known if value is not None), default=None)


def require(needed: int, what: str, instead: str, device: str = "cpu") -> None:
    """Raises OutOfMemory where `what` needs more bytes than there are; `instead` says what fits."""
    there = available(device)
    if there is not None and needed > there:
        raise OutOfMemory(
            f"{what} needs about {gib(needed)} of memory, and {gib(there)} are there on {device}; "
            f"{instead}."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whichever device.

    torch's own OutOfMemoryError is known by its name, so that asking needs no torch; on the CPU
    and in cuBLAS it raises a RuntimeError with one of SIGNS.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(
        sign in str(error).lower() for sign in SIGNS
    )


def gib(size: float) -> str:
    """Bytes as people speak of memory."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


def _kernel() -> int | None:
    """MemAvailable of the kernel, or the free pages of other systems."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _container(limit: str, usage: str) -> int | None:
    """What a control group leaves; None where it has no limit."""
    try:
        allowed = Path(limit).read_text(encoding="ascii").strip()
        used = int(Path(usage).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if not allowed.isdigit() or int(allowed) >= 1 << 60:
        return None
    return max(0, int(allowed) - used)
