"""What can go wrong, as a tree. Every message is one sentence that names the thing and the cure.

LoraprobeError                  exit code 2
├── UsageError                  the call itself: an unknown method, option or value
├── ReferenceError_             a reference that is neither a directory nor a Hub repository
├── HubError                    the Hub said no: missing, gated, rate limited, broken body
├── AdapterError                an adapter that cannot be read
│   └── UnsupportedAdapter      one that can be read but whose mathematics would be lost
├── BaseError                   a base model that cannot be found, read or loaded
├── TaskError                   a task or probe file with a bad line
├── CompatibilityError          adapters (and base) that do not fit together
├── OutputError                 an output that exists, or cannot be written
└── OutOfMemory                 what is asked for does not fit into memory, a batch of one at last
"""

from __future__ import annotations


class LoraprobeError(Exception):
    """Anything loraprobe tells its user went wrong."""

    exit_code = 2


class UsageError(LoraprobeError):
    """The call itself is wrong."""


class ReferenceError_(LoraprobeError):
    """A reference that names neither a directory nor a Hub repository."""


class HubError(LoraprobeError):
    """The Hub did not give what was asked for."""


class AdapterError(LoraprobeError):
    """An adapter's files cannot be read."""


class UnsupportedAdapter(AdapterError):
    """An adapter that is read, but cannot be used without losing part of it."""


class BaseError(LoraprobeError):
    """A base model cannot be found, read or loaded."""


class TaskError(LoraprobeError):
    """A task or probe file has a bad line."""


class CompatibilityError(LoraprobeError):
    """Adapters, or adapters and base, do not fit together."""


class OutputError(LoraprobeError):
    """An output exists already or cannot be written."""


class OutOfMemory(LoraprobeError):
    """What is asked for does not fit into memory: a merge, a model, or even a batch of one."""
