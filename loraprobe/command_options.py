"""Which fields of `Options` each command takes, on the command line and as Python keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from loraprobe.declarations import declarations
from loraprobe.options import Options

Function = TypeVar("Function", bound=Callable[..., Any])

INSPECT = (
    "per_module diagnostics exact allow device dtype batch_size threads limit max_new_tokens "
    "metric margin prior calibration chat_template trust_remote_code seed resume"
).split()
MERGE = (
    "methods weights search_budget search_items balance subtract space rank dtype device limit "
    "allow threads seed"
).split()
ROUTE = (
    "routers router_prompts weights search_budget search_items balance subtract limit "
    "chat_template device quantize device_map batch_size threads allow trust_remote_code seed"
).split()
EVALUATE = (
    "methods routers systems space rank weights search_budget search_items balance subtract "
    "router_prompts metric margin retention prior calibration limit max_new_tokens chat_template "
    "device dtype quantize device_map batch_size threads per_module diagnostics exact allow "
    "trust_remote_code seed resume"
).split()


def documents(names: Sequence[str]) -> Callable[[Function], Function]:
    """Adds to a function's docstring the options that it takes as keywords, each with its help."""

    def decorate(function: Function) -> Function:
        own = inspect.signature(function).parameters
        declared, plain = declarations(Options), Options()
        lines = ["", "", "options:"]
        for name in names:
            if not {name, name.removesuffix("s")} & own.keys():
                default = getattr(plain, name)
                lines.append(f"    {name}: {declared[name].help} Default: {default!r}.")
        function.__doc__ = (inspect.getdoc(function) or "") + "\n".join(lines)
        return function

    return decorate
