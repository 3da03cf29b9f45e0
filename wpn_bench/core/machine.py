"""What this process finds where it runs: how much memory and disk there is to be had (what the machine has free, and what a
container or a shell allows), and its environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USABLE_FRACTION = 0.9  # of the free memory: the rest is lost between blocks
CGROUPS = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """For as long as this lasts, these variables of the environment have these values, here and in processes started
    meanwhile; then those that they had."""
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


def free_memory() -> int:
    """Bytes of main memory that this process may still take, by the tightest of all limits on it."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    free += [limit - used for limit, used in (*_cgroup_limits(), *_ulimits())]
    return max(0, min(free))


def free_under_ulimit() -> float:
    """Bytes that the shell's limits leave (infinity: it sets none). They count the files that weights are read from, too,
    which the machine and a container do not."""
    return max(0.0, min((limit - used for limit, used in _ulimits()), default=float("inf")))


def total_memory() -> int:
    """Bytes of main memory of the machine, or of the container that this process runs in."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _cgroup_limits())])


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    folder = folder.expanduser().absolute()
    return next(p for p in (folder, *folder.parents) if p.exists())


def _ulimits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of `ulimit -v` (addresses) and `ulimit -d` (data), where they are set."""
    import resource

    import psutil

    used = psutil.Process().memory_info()
    for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, getattr(used, "data", 0))):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most, taken


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of the control groups that this process is in, each and those above it, versions 1 and 2.

    Cached pages of files do not count as used: they go when memory is wanted.
    """
    try:
        lines = [line.split(":", 2) for line in PROC_CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return  # no Linux
    for _, controllers, name in lines:
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        else:
            continue
        folder = Path(os.path.normpath(root / name.lstrip("/")))
        # Inside of a container its own group may be mounted as the root, under another name than it has outside.
        for group in (folder, *folder.parents):
            if group == root or root in group.parents:
                yield from _read_cgroup(group, *names)


def _read_cgroup(group: Path, limit: str, used: str, cached: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    try:
        most = int((group / limit).read_text(encoding="utf-8"))
        taken = int((group / used).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return  # no such group here, or no limit ("max")
    yield most, taken - sum(int(stat.get(name, 0)) for name in cached)
