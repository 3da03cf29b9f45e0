"""Keep memory that was freed in the process, while a training runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt in malloc.h, and glibc's defaults for them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM, _DEFAULT_MAPS = 128 * 1024, 65_536
_NEVER = -1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Reuse freed memory within a `with` block, instead of returning it to the operating system. It is returned at the end.

    Each training step allocates the same activations and gradients as the one before. If their memory is returned in
    between, the system must clear it page by page in every step. This has an effect with glibc only.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)  # large blocks, too, are taken from the heap
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MAPS)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        libc.malloc_trim(0)
