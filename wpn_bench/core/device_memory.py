"""Free memory of the device that a model runs on, and detection of out-of-memory errors."""

from __future__ import annotations

import gc


def free_memory(device: str) -> int:
    """Return the free memory in bytes of the GPU, or of the machine or container if `device` is "cpu"."""
    import torch

    from wpn_bench.core import machine

    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        # Memory that PyTorch has cached can also be used for new tensors.
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    return machine.free_memory()


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is an out-of-memory error of PyTorch (GPU or CPU) or of Python."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def release() -> None:
    """Free the tensors that a failed forward pass left behind.

    Call this function after the `except` block. Within the block, the traceback still refers to the tensors.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
