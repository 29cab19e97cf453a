"""Measures available and used memory, checks that something fits, and recognises memory errors.

The needed memory is estimated from files and configs, so that a model that cannot fit is refused at
once instead of being killed by the system after minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from loraprobe.errors import OutOfMemory
from loraprobe.formatting import size

# Parts of messages of allocators that raise no error of their own type.
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
    """The bytes that may be used on a device; None if they are unknown.

    On the CPU it is the memory that the kernel or the container's limit leaves, whichever is less.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device != "cpu":
        return None
    known = [_kernel(), *(_container(*files) for files in _CGROUPS)]
    return min((value for value in known if value is not None), default=None)


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes; 0 where the system has none."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def require(needed: int, what: str, instead: str, device: str = "cpu") -> None:
    """Raises OutOfMemory if `what` needs more bytes than are available; `instead` is the cure."""
    free = available(device)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{what} needs about {size(needed)} of memory, and {device} has {size(free)}; "
            f"{instead}."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of any device ran out.

    torch's OutOfMemoryError is recognised by its name, so that torch need not be imported. On the
    CPU and in cuBLAS torch raises a RuntimeError with one of SIGNS.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(
        sign in str(error).lower() for sign in SIGNS
    )


def _kernel() -> int | None:
    """MemAvailable of the Linux kernel in bytes; None on other systems."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _container(limit: str, usage: str) -> int | None:
    """The bytes that a control group leaves; None if it has no limit."""
    try:
        allowed = Path(limit).read_text(encoding="ascii").strip()
        used = int(Path(usage).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if not allowed.isdigit() or int(allowed) >= 1 << 60:
        return None
    return max(0, int(allowed) - used)
