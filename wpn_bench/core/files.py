"""Files and folders: written whole or not at all, digests, locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wpn_bench.errors import exception_chain

Signature = tuple[tuple[str, int, int], ...]
# The last: a folder of the store is a mount of its own, so nothing can be renamed into it.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EXDEV)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_signature(folder: Path) -> Signature:
    """(name, bytes, time of the last change in ns) of each file: when it is the same, so are the files, as far as a look
    from outside can tell."""
    stats = [(p.name, p.stat()) for p in sorted(folder.iterdir()) if p.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def disk_error_text(error: BaseException) -> str | None:
    """What an error says of a place that takes no more (full, read-only, over quota, failing, not ours); None if it is another.

    Libraries wrap what the system says, some of them in errors of their own.
    """
    for link in exception_chain(error):
        for number in _NO_ROOM:
            said = os.strerror(number)
            if getattr(link, "errno", None) == number or said in str(link):
                return said.lower()
    return None


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically (a temporary file beside it, flushed to disk, then renamed)."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
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


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Make `folder` and hold it against other processes; yields False if one of them holds it.

    The lock is the kernel's, so it ends with the process however that ends.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "lock"
        try:
            f = lock.open("a")
        except FileNotFoundError:
            continue  # its former holder removed the folder just now
        with f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # Its former holder may have removed the folder since the file was opened: then this lock is of no file.
            try:
                same = lock.stat().st_ino == os.fstat(f.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield True
                return


@contextmanager
def try_lock_temporary(place: Path) -> Iterator[bool]:
    """`held`, by a folder that is there for nothing else and goes when it is let go."""
    with try_lock(place) as free:
        try:
            yield free
        finally:
            if free:
                # Still held: whoever opened this lock meanwhile finds that it is of no file any more, and makes a new one.
                shutil.rmtree(place, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """What was written there survives a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
