"""Which fields of `Options` each command takes, on the command line and as Python keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from loraprobe.declarations import TASKS, declarations
from loraprobe.errors import UsageError
from loraprobe.formatting import nearest
from loraprobe.options import Options

Function = TypeVar("Function", bound=Callable[..., Any])

# How the file of a task is read.
LAYOUT = " ".join(n for n, one in declarations(Options).items() if one.group == TASKS)
INSPECT = (
    f"{LAYOUT} "
    "per_module diagnostics exact allow serve device dtype batch_size threads limit max_new_tokens "
    "metric run_unsafe_code margin prior calibration chat_template trust_remote_code seed "
    "executor resume"
)
MERGE = (
    f"{LAYOUT} "
    "methods weights search_budget search_items balance subtract space rank rank_layout dtype "
    "device limit allow threads seed"
)
CONVERT = "allow threads"
ROUTE = (
    f"{LAYOUT} "
    "routers router_prompts weights search_budget search_items balance subtract limit "
    "chat_template device quantize device_map batch_size threads allow trust_remote_code seed"
)
EVALUATE = (
    f"{LAYOUT} "
    "methods routers systems space rank rank_layout weights search_budget search_items balance "
    "subtract router_prompts metric run_unsafe_code margin retention prior calibration "
    "limit all_items max_new_tokens chat_template device dtype quantize device_map batch_size "
    "threads per_module diagnostics exact allow trust_remote_code seed executor resume"
)
SCREEN = (
    f"{LAYOUT} "
    "items keep budget methods routers balance space rank metric run_unsafe_code margin retention "
    "prior calibration limit all_items max_new_tokens chat_template device dtype quantize "
    "device_map batch_size threads allow trust_remote_code seed executor resume"
)


def takes(fields: str) -> Callable[[Function], Function]:
    """Gives a Python function the options of a command as keywords, and documents each.

    fields: names of fields with spaces between them. The function raises UsageError for any other
    keyword.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function).parameters
        names = fields.split()
        options = [name for name in names if not {name, name.removesuffix("s")} & own.keys()]
        known = [name for name in own if name != "options"] + options
        declared, plain = declarations(Options), Options()
        lines = ["", "", "options:"]
        for name in options:
            default = getattr(plain, name)
            lines.append(f"    {name}: {declared[name].help} Default: {default!r}.")
        if "resume" in options:  # the command line keeps them in LORAPROBE_CACHE
            known.append("state")
            lines.append("    state: Directory of the results that `resume` uses. Default: None.")

        @functools.wraps(function)
        def checked(*given: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in known:
                    hint = nearest(name, known)
                    raise UsageError(f"{function.__name__} has no option {name!r}: {hint}")
            return function(*given, **keywords)

        checked.__doc__ = (inspect.getdoc(function) or "") + "\n".join(lines)
        return cast(Function, checked)

    return decorate
