"""`loraprobe env`: what a bug report needs, without anything private."""

from __future__ import annotations

import os
import platform
from typing import Any

from loraprobe._version import __version__
from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output

PACKAGES = (
    "torch transformers peft safetensors tokenizers huggingface_hub accelerate bitsandbytes "
    "lm_eval ray typer rich pydantic numpy scipy"
).split()
VARIABLES = (
    "HF_HOME HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE LORAPROBE_CACHE LORAPROBE_LIMITS "
    "CUDA_VISIBLE_DEVICES OMP_NUM_THREADS"
).split()


@with_options("json")
def env(output: Output) -> None:
    """Print versions, devices and memory for a bug report: no path, no name and no token.

    Of environment variables it says only which are set.
    """
    found = described()
    if output.json:
        from loraprobe.records import document

        print(document("env", found))
        return
    for name, value in found.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        print(f"{name}: {', '.join(shown) if isinstance(shown, list) else shown}")


def described() -> dict[str, Any]:
    """Versions, machine and which variables are set, as plain data."""
    import torch

    from loraprobe.memory import available, gib

    free = available()
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "loraprobe": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": None if free is None else gib(free),
        "devices": ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])],
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "set": [name for name in VARIABLES if os.environ.get(name)],
    }


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
