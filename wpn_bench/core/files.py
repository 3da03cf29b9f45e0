"""Atomic writes, digests, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError, exception_chain, text_of

Signature = tuple[tuple[str, int, int], ...]
# EXDEV means that a folder of the store is itself a mount point, so files cannot be renamed into it.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EXDEV)


def canonical_json(value: Any) -> str:
    """Return the value as JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_signature(folder: Path) -> Signature:
    """Return the name, size in bytes and modification time in ns of each file in `folder`.

    Equal signatures mean that the files have not changed, as far as this can be told without reading them.
    """
    stats = [(p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def disk_error_text(error: BaseException) -> str | None:
    """Return the operating system's message if a failed write to disk caused `error`, else None.

    The disk may be full, over quota, read-only, defective or not writable for this user. The whole chain of exceptions
    is searched, because libraries wrap the system's error, some of them in their own class.
    """
    for link in exception_chain(error):
        for number in _DISK_ERRORS:
            message = os.strerror(number)
            if getattr(link, "errno", None) == number or message in text_of(link):
                return message.lower()
    return None


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file atomically, as `write_text` does.

    Args:
        path: The file to write.
        value: A JSON-serialisable value without NaN and infinity.
        indent: Number of spaces per level of indentation; None writes one line.

    Raises:
        ValueError: `value` contains NaN or infinity.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically.

    The text is written to a temporary file in the same folder and flushed to disk. Then the file is renamed.

    Args:
        path: The file to write.
        text: Its whole content.
    """
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


# Lock files that this process has locked with `lockf`. A second `lockf` in the same process would succeed.
_LOCKED_HERE: set[str] = set()
_HELD = (errno.EAGAIN, errno.EACCES)  # another process has the lock


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Create `folder` if necessary, and try to lock it for the duration of a `with` block.

    Yields True if this process now has the lock, and False if another process has it. The kernel releases the lock when
    the process ends, even if it is killed. The lock is made with `flock`, or with `lockf` (POSIX) on file systems
    without `flock`.

    Raises:
        UserError: The file system supports neither kind of lock.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "lock"
        name = os.path.realpath(lock)
        if name in _LOCKED_HERE and lock.exists():
            # With `lockf`, opening and closing the file a second time in this process would release its lock.
            yield False
            return
        try:
            f = lock.open("a")
        except FileNotFoundError:
            continue  # the previous owner of the lock has just removed the folder
        with f, ExitStack() as until_closed:
            kind = _lock(f.fileno(), folder.parent)
            if kind is None:
                yield False
                return
            # The previous owner may have removed the folder after this process opened the file.
            # In this case the lock is on a deleted file and protects nothing, so try again.
            try:
                is_current = lock.stat().st_ino == os.fstat(f.fileno()).st_ino
            except FileNotFoundError:
                is_current = False
            if is_current:
                if kind is fcntl.lockf:
                    _LOCKED_HERE.add(name)
                    until_closed.callback(_LOCKED_HERE.discard, name)
                yield True
                return


def _lock(fd: int, folder: Path) -> Callable[[int, int], object] | None:
    """Try to lock an open file without waiting.

    Returns the function that locked it, `flock` or `lockf`, or None if another process has the lock. Network and
    user-space file systems may refuse `flock` with ENOSYS, ENOLCK, EOPNOTSUPP and other errors. All processes that use
    the folder get the same refusal, so they all use `lockf`.
    """
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as e:
            if e.errno in _HELD:
                return None
            refused = e
    raise UserError(
        f"the file system of {folder} does not support file locks ({refused.strerror})",
        "keep the store on a local disk: --store DIR (or WPN_BENCH_STORE)",
    ) from refused


def check_locks(folder: Path) -> None:
    """Raise `UserError` if the file system of an existing folder does not support locks between processes."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-") as probe, try_lock(Path(probe)):
        pass


@contextmanager
def try_lock_temporary(folder: Path) -> Iterator[bool]:
    """Lock a folder as `try_lock` does, and remove the folder when the lock is released.

    Use it for a folder that contains nothing but the lock.
    """
    with try_lock(folder) as acquired:
        try:
            yield acquired
        finally:
            if acquired:
                # Remove the folder before the lock is released. A process that has opened this lock file in the
                # meantime then notices that the file is gone, and creates a new one.
                shutil.rmtree(folder, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
