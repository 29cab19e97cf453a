"""CUDA devices that are pretended: tensors report a device, and the CPU computes their values.

A tensor "on" a pretended device is a `DeviceTensor`, which holds its values on the CPU. Every
operation of torch checks devices as CUDA's kernels do and raises torch's error if they differ; its
values are the CPU's. Unlike torch's FakeTensorMode, which has no values, this runs code that looks
at values: a generation, a verdict, the whole command line. Memory is counted per device, and
an allocation beyond `capacity` raises torch.OutOfMemoryError. It needs a CUDA build of torch.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CPU = torch.device("cpu")
COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy_}  # between devices
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
TAKE_SCALARS = {aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.addcmul}


class Allocation:
    """Bytes of one storage on a device, until nothing uses it."""

    live: ClassVar[Any] = weakref.WeakValueDictionary()  # (device, address) -> Allocation
    used: ClassVar[dict[torch.device, int]] = {}
    peak: ClassVar[dict[torch.device, int]] = {}
    capacity: ClassVar[int] = 1 << 40

    def __init__(self, device: torch.device, size: int) -> None:
        used = self.used.get(device, 0) + size
        self.device, self.size = device, 0
        if used > self.capacity:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.size, self.used[device] = size, used
        self.peak[device] = max(used, self.peak.get(device, 0))

    def __del__(self) -> None:
        self.used[self.device] = self.used.get(self.device, 0) - self.size

    @classmethod
    def of(cls, held: Tensor, device: torch.device) -> Allocation:
        """The allocation of a tensor's storage; views of a storage share one."""
        storage = held.untyped_storage()
        key = device, storage.data_ptr()
        found = cls.live.get(key)
        if found is None:
            found = cls(device, storage.nbytes())
            if storage.nbytes():
                cls.live[key] = found
        return found


class DeviceTensor(Tensor):
    """A tensor of a pretended device. held: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> DeviceTensor:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=False,
        )
        made.held, made.allocation = held, Allocation.of(held, device)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.held}, device={self.device})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)


def numbered(device: Any) -> torch.device:
    """The device with its number."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def common_device(func: Any, args: Any) -> torch.device:
    """The device on which an operation runs. Raises torch's error if its tensors have several."""
    packet, tensors = func.overloadpacket, [t for t in tree_leaves(args) if isinstance(t, Tensor)]
    if packet in COPIES:
        return tensors[0].device
    if packet in INDEXING:  # an index may be on the CPU
        first, *others = tensors
        tensors = [first, *(t for t in others if t.device != CPU)]
        if packet is not aten.index:
            tensors += [args[2]] if args[2].dim() else []
    scalars = torch.Tag.pointwise in func.tags or packet in TAKE_SCALARS
    devices = {t.device for t in tensors if not (scalars and t.dim() == 0 and t.device == CPU)}
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(map(str, devices)))}! ({func})"
        )
    return next(iter(devices), CPU)


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return CPU if leaf.type == "cuda" else leaf
    return leaf.held if isinstance(leaf, DeviceTensor) else leaf


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device that its arguments say."""
    device, kwargs = common_device(func, (*args, *kwargs.values())), dict(kwargs)
    kwargs.pop("pin_memory", None)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    device = numbered(given[0]) if given else device
    if func.overloadpacket is aten._fused_sdp_choice and device != CPU:
        return 0  # plain arithmetic: the CPU has none of CUDA's fused kernels
    plain, named = tree_map(_on_cpu, (args, kwargs))
    made = func(*plain, **named)
    if func._schema.is_mutable and isinstance(made, Tensor):
        changed = kwargs.get("out", args[0] if args else None)
        if isinstance(changed, DeviceTensor):
            return changed
    if device.type != "cuda":
        return made
    if func.overloadpacket is aten._to_copy and not isinstance(args[0], DeviceTensor):
        made = made.clone() if made.data_ptr() == args[0].data_ptr() else made
    return tree_map(lambda t: DeviceTensor(t, device) if type(t) is Tensor else t, made)


class Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


@contextlib.contextmanager
def pretended_cuda(devices: int = 1, capacity: int = 1 << 40) -> Iterator[None]:
    """torch sees this many CUDA devices of `capacity` bytes while the context lasts."""
    used, peak = Allocation.used, Allocation.peak

    def index(device: Any = None) -> torch.device:
        return numbered("cuda" if device is None else device)

    def free(device: Any = None) -> tuple[int, int]:
        return capacity - used.get(index(device), 0), capacity

    patches = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: devices,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_: True,
        "get_device_name": lambda *_: "a pretended device",
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": free,
        "memory_allocated": lambda device=None: used.get(index(device), 0),
        "max_memory_allocated": lambda device=None: peak.get(index(device), 0),
        "reset_peak_memory_stats": lambda device=None: peak.update(used),
        "get_rng_state": lambda *_: torch.random.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.random.set_rng_state(state),
    }
    still = ("_lazy_init", "empty_cache", "synchronize", "manual_seed", "manual_seed_all")
    before = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as undo:
        for name, value in patches.items():
            undo.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in still:
            undo.enter_context(mock.patch.object(torch.cuda, name, lambda *_, **__: None))
        undo.enter_context(mock.patch.object(Allocation, "capacity", capacity))
        # Models are then loaded by this thread, which has the mode.
        undo.enter_context(mock.patch.dict("os.environ", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
        # Or `param.data = value` would drop the Python side of a DeviceTensor.
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        undo.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._ensureCUDADeviceGuardSet()  # this and the next line as in FakeTensorMode
        torch._C._set_only_lift_cpu_tensors(True)
        undo.callback(torch._C._set_only_lift_cpu_tensors, before)
        undo.enter_context(Pretending())
        yield
