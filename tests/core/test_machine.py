"""Limits of containers and shells, from simulated files and calls."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from wpn_bench.core import machine

GIB = 2**30


@pytest.fixture(autouse=True)
def machine_without_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulate a machine with 64 of 100 GiB free, without limits and cgroups."""
    memory = SimpleNamespace(available=64 * GIB, total=100 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "PROC_CGROUP", tmp_path / "cgroup")
    return tmp_path


def group(folder: Path, version: int, limit: int | str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    total = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 5\n{total}inactive_file {cached - 1}\n{total}active_file 1\n")


def test_no_limits(machine_without_limits: Path) -> None:
    assert (machine.free_memory(), machine.total_memory()) == (64 * GIB, 100 * GIB)
    assert machine.free_under_ulimit() == float("inf")


@pytest.mark.parametrize("version", [1, 2])
def test_container_limit_ignores_the_page_cache(machine_without_limits: Path, version: int) -> None:
    (machine_without_limits / "cgroup").write_text(
        "0::/job/mine\n" if version == 2 else "4:cpu:/job\n3:blkio,memory:/job/mine\n"
    )
    root = machine_without_limits / "groups" / ("" if version == 2 else "memory")
    group(root / "job" / "mine", version, 8 * GIB, 5 * GIB, 2 * GIB)
    assert (machine.free_memory(), machine.total_memory()) == (5 * GIB, 8 * GIB)
    # A parent group may have a lower limit. A group over its limit leaves 0 bytes, not fewer.
    group(root / "job", version, 6 * GIB, 5 * GIB, 2 * GIB)
    assert (machine.free_memory(), machine.total_memory()) == (3 * GIB, 6 * GIB)
    group(root / "job", version, 6 * GIB, 9 * GIB, 2 * GIB)
    assert machine.free_memory() == 0


def test_cgroup_with_another_name_within_the_container(machine_without_limits: Path) -> None:
    (machine_without_limits / "cgroup").write_text("0::/../../docker/0123\n")
    group(machine_without_limits / "groups", 2, "max", 5 * GIB, GIB)
    assert machine.free_memory() == 64 * GIB
    group(machine_without_limits / "groups", 2, 4 * GIB, 2 * GIB, GIB)
    (machine_without_limits / "cgroup").write_text("0::/docker/0123\n")
    assert machine.free_memory() == 3 * GIB


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_ulimit(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = psutil.Process().memory_info()
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: used)
    taken = used.vms if kind == resource.RLIMIT_AS else used.data
    limits = {kind: taken + 3 * GIB}
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (limits.get(asked, resource.RLIM_INFINITY),) * 2)
    assert machine.free_memory() == machine.free_under_ulimit() == 3 * GIB


def test_a_real_ulimit() -> None:
    code = (
        "import resource; from wpn_bench.core import machine\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({GIB}, resource.RLIM_INFINITY))\n"
        "free = machine.free_memory(); print(free)\n"
        "held = bytearray(free // 2); print(machine.free_memory())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    before, after = map(int, said)
    assert 0.8 * GIB < before < GIB
    assert after == pytest.approx(before / 2, rel=0.05)


def test_free_disk_of_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert machine.nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert machine.free_disk(tmp_path / "a" / "b") > 0
