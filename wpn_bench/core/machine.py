"""The memory and disk space available to this process, and temporary changes of its environment variables.

The limits of the machine, of containers (cgroups) and of the shell (`ulimit`) are taken into account.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USABLE_FRACTION = 0.9  # usable part of the free memory; the rest is lost to fragmentation
CGROUPS = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables within a `with` block, also for processes started there, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let PyTorch use this number of threads within a `with` block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory() -> int:
    """Return how many bytes of main memory this process may still allocate. The tightest limit counts."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    free += [limit - used for limit, used in (*_cgroup_limits(), *_ulimits())]
    return max(0, min(free))


def free_under_ulimit() -> float:
    """Return how many bytes this process may still allocate under the shell's `ulimit`; infinity without such a limit.

    Unlike the limits of the machine and of containers, this one also counts memory-mapped weight files.
    """
    return max(0.0, min((limit - used for limit, used in _ulimits()), default=float("inf")))


def total_memory() -> int:
    """Return the main memory in bytes of the machine, or of the container in which this process runs."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _cgroup_limits())])


def free_disk(folder: Path) -> int:
    """Return the number of free bytes on the disk of `folder`. The folder need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.expanduser().absolute()
    return next(p for p in (folder, *folder.parents) if p.exists())


def _ulimits() -> Iterator[tuple[int, int]]:
    """Yield the limit and the used amount in bytes for `ulimit -v` (address space) and `ulimit -d` (data), if set."""
    import resource

    import psutil

    info = psutil.Process().memory_info()
    for resource_id, used in ((resource.RLIMIT_AS, info.vms), (resource.RLIMIT_DATA, getattr(info, "data", 0))):
        limit = resource.getrlimit(resource_id)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit, used


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit and the used amount in bytes of this process's cgroups (versions 1 and 2) and all their parents.

    The page cache does not count as used, because the kernel frees it when memory is needed.
    """
    try:
        lines = [line.split(":", 2) for line in PROC_CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return  # not Linux
    for _, controllers, name in lines:
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        else:
            continue
        folder = Path(os.path.normpath(root / name.lstrip("/")))
        # In a container, the process's own cgroup may be mounted as the root, without its name on the host.
        for group in (folder, *folder.parents):
            if group == root or root in group.parents:
                yield from _read_cgroup(group, *names)


def _read_cgroup(group: Path, limit: str, used: str, cached: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    try:
        limit_bytes = int((group / limit).read_text(encoding="utf-8"))
        used_bytes = int((group / used).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return  # this cgroup does not exist, or it has no limit ("max")
    yield limit_bytes, used_bytes - sum(int(stat.get(name, 0)) for name in cached)
