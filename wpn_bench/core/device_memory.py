"""Free memory of the device that a model runs on, and errors that mean it ran out."""

from __future__ import annotations

import gc


def free_memory(device: str) -> int:
    """Bytes that a pass may still take: of the accelerator, else of the machine (or the container it is in)."""
    import torch

    from wpn_bench.core import machine

    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        # What PyTorch holds and does not use is free to us too.
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    return machine.free_memory()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that was short: PyTorch's own error, its allocator's on a processor, or Python's."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def release() -> None:
    """Give back what a failed pass left. Call it outside the handler: there the traceback still holds the tensors."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
