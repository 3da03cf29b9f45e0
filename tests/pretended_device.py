"""A pretended accelerator: tensors on the CPU that say that they are on CUDA, and must not be mixed with others.

    with PretendedDevice():
        model.to(DEVICE)
        ...                     # a tensor that was not moved raises `WrongDevice` where it meets the model's

Each storage has a pretended device, so views and copies in place keep it. The numbers are real and stay on the CPU. So code
that reads them (`tolist`, `item`) runs as usual, and results can be compared with those of a plain run.

- A function mode answers `tensor.device`, and takes the device from the arguments of functions that make or move tensors.
- A dispatch mode sees every operation below autograd, also in a backward pass. Its results are where its inputs are.

As on CUDA, a number (a tensor without dimensions) on the CPU may be mixed with anything, a tensor may be indexed by positions
on the CPU, `copy_` copies between devices, and numpy takes only what is on the CPU. What it cannot show: numbers and memory of a
real accelerator, its kernels, streams, and code that asks for `torch.cuda` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
ACROSS = {"copy_", "_to_copy", "set_", "is_same_size"}  # operations between devices
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}  # positions may be on the CPU
MOVES = {"torch.Tensor.to", "torch.Tensor.cpu", "torch.Tensor.cuda"}
NO_ARRAY = {"torch.Tensor.numpy", "torch.Tensor.__array__"}


class WrongDevice(RuntimeError):
    """An operation on tensors of several devices."""


class _Places:
    """Which storages are on the pretended device."""

    def __init__(self) -> None:
        # A weak reference keeps the address of a storage from being used again.
        self.there: dict[int, StorageWeakRef] = {}

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.there

    def put(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.there.setdefault(storage._cdata, StorageWeakRef(storage))


class _Operations(TorchDispatchMode):
    """Raises where an operation mixes devices, and puts results where the inputs are."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        checked = (args[:1], args[2:], kwargs) if name in INDEXING else (args, kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        mixed = [x for x in tree_leaves(checked) if isinstance(x, torch.Tensor)]
        there = [x for x in given if self.places.has(x)]
        if name not in ACROSS:
            here = [x for x in mixed if x.dim() and not self.places.has(x)]
            if name in INDEXING and not self.places.has(args[0]):
                here.append(args[0])
            if there and here:
                raise WrongDevice(
                    f"{func}: found shapes {[tuple(x.shape) for x in there]} on {DEVICE},"
                    f" and {[tuple(x.shape) for x in here]} on the CPU"
                )
        made = func(*args, **kwargs)
        if there and name not in ("copy_", "set_"):
            for x in tree_leaves(made):
                if isinstance(x, torch.Tensor):
                    self.places.put(x)
        return made


class PretendedDevice(TorchFunctionMode):
    """Pretends that there is a device `DEVICE`, within a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.places = _Places()
        self._operations = _Operations(self.places)

    def __enter__(self) -> PretendedDevice:
        self._operations.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            return DEVICE if self.places.has(tensor) else tensor.device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = resolve_name(func) or ""
        if name == "torch.Tensor.device.__get__":
            return self.device_of(args[0])
        if name == "torch.Tensor.is_cuda.__get__":
            return self.places.has(args[0])
        if name in NO_ARRAY and self.places.has(args[0]):
            raise WrongDevice("a tensor on an accelerator cannot become an array of numpy; use .cpu() first")
        if name in MOVES:
            return self._moved(name, args, kwargs)
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == DEVICE.type:
            kwargs["device"] = CPU
        made = func(*args, **kwargs)
        if target is None and name == "torch.Tensor.new_tensor":
            target = self.device_of(args[0])
        if target is not None and torch.device(target).type == DEVICE.type:
            tree_map(lambda x: self.places.put(x) if isinstance(x, torch.Tensor) else None, made)
        return made

    def _moved(self, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        """Return a tensor at the device that the arguments name, with the other changes that they ask for."""
        tensor, *rest = args
        target = {"torch.Tensor.cpu": CPU, "torch.Tensor.cuda": DEVICE}.get(name, kwargs.pop("device", None))
        left = []
        for x in rest if name == "torch.Tensor.to" else ():
            if isinstance(x, str | int | torch.device) and not isinstance(x, bool):
                target = x
            elif isinstance(x, torch.Tensor):
                target = self.device_of(x)
                left.append(x.dtype)
            else:
                left.append(x)
        target = self.device_of(tensor) if target is None else torch.device(target)
        # Flags such as `non_blocking` are by position after the device, and have no effect here.
        left = [x for x in left if isinstance(x, torch.dtype)]
        if target.type not in (CPU.type, DEVICE.type):
            return tensor.to(target, *left, **kwargs)
        if target.type == self.device_of(tensor).type and tensor.device.type == CPU.type:
            return tensor.to(*left, **kwargs) if left or kwargs else tensor
        moved = _Copied.apply(tensor, self.places, target.type == DEVICE.type)
        return moved.to(*left, **kwargs) if left or kwargs else moved


class _Copied(torch.autograd.Function):
    """A copy on the other device, whose gradient is copied back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, places: _Places, there: bool) -> torch.Tensor:
        ctx.places, ctx.there = places, there
        return _copied(tensor, places, there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _copied(gradient, ctx.places, not ctx.there), None, None


def _copied(tensor: torch.Tensor, places: _Places, there: bool) -> torch.Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype) if tensor.numel() else None
    if copy is None:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    copy.copy_(tensor.detach())
    if there:
        places.put(copy)
    return copy


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[PretendedDevice]:
    """A pretended device with 1 GB of free memory."""
    monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: 2**30)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: None)
    with PretendedDevice() as device:
        yield device
