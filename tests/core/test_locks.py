"""Locks between processes, on file systems with and without `flock`."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wpn_bench.core.files import check_locks, try_lock, try_lock_temporary
from wpn_bench.errors import UserError
from wpn_bench.jobs import store as jobs_store
from wpn_bench.jobs.store import Store

REFUSALS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO]
# What another process sees: it gets the same refusal.
OTHER = """
import errno, fcntl, sys
from pathlib import Path
from wpn_bench.core.files import try_lock
def refuse(*_): raise OSError(int(sys.argv[2]), "no flock")
if int(sys.argv[2]): fcntl.flock = refuse
with try_lock(Path(sys.argv[1])) as acquired: print(acquired)
"""


def refuse(number: int) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def other(folder: Path, number: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", OTHER, str(folder), str(number)], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("number", REFUSALS)
def test_without_flock_a_lock_still_excludes_other_processes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with try_lock(tmp_path / "a") as mine:
        assert mine
        assert other(tmp_path / "a", number) == "False"
        with try_lock(tmp_path / "a") as again:  # lockf alone would give it to the same process twice
            assert not again
        assert other(tmp_path / "a", number) == "False"  # and the second attempt did not end the first lock
    assert other(tmp_path / "a", number) == "True"
    with try_lock(tmp_path / "a") as again:
        assert again


@pytest.mark.parametrize("number", REFUSALS)
def test_without_any_locks_there_is_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    monkeypatch.setattr(fcntl, "lockf", refuse(number))
    with pytest.raises(UserError, match="does not support file locks") as e:
        Store(tmp_path / "store")
    assert os.strerror(number) in e.value.problem
    assert "--store" in e.value.hint
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_no_refusal(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    monkeypatch.setattr(fcntl, "lockf", lambda *_: pytest.fail("another kind of lock was tried"))
    with try_lock(tmp_path / "a") as mine:
        assert not mine


def test_the_store_works_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, artifacts, scratch folders, and abandoned folders that are locked and those that are not."""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(jobs_store, "ABANDONED_SECONDS", 0)
    store = Store(tmp_path)
    with store.claim("train", "d" * 64) as first, store.claim("train", "d" * 64) as second:
        assert (first, second) == (True, False)
    with store.temporary_folder("train") as work:
        abandoned = tmp_path / "tmp" / "train-left"
        abandoned.mkdir()
        Store(tmp_path)
        assert work.is_dir()
        assert not abandoned.exists()
    with store.build("train", "d" * 64, {}) as work:
        (work / "x").write_text("1")
    assert store.find("train", "d" * 64) is not None
    scratch = store.scratch("train", "d" * 64)
    with try_lock(scratch):
        store.clear_scratch("train", "d" * 64)
        assert scratch.exists()
    store.clear_scratch("train", "d" * 64)
    assert not scratch.exists()


def test_a_temporary_lock_without_flock_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    for _ in range(2):
        with try_lock_temporary(tmp_path / "locks" / "a") as mine:
            assert mine
        assert not (tmp_path / "locks" / "a").exists()


def test_the_probe_leaves_nothing(tmp_path: Path) -> None:
    check_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []
