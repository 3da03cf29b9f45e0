"""The journal stores the finished items of a job, so that a restarted job skips them.

A stage has a journal if its model does not change during the job. The engine reads and writes the journal, batch by
batch. So stages and judges (also those of plug-ins) need no code for it:

    answers = journal.section("decode", lambda: fingerprint(prompts))
    answers.known                   # results of earlier attempts, by position
    answers.add({4: [17, 2]})       # from here on, this result survives a crash

Each line has its own checksum, so a truncated or damaged line does not affect the others. Several processes may work on
one job. Each then processes one shard of the items and writes its own file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYNC_SECONDS = 2.0  # a power failure may lose the work of so many seconds; a killed process loses nothing


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of a job's items; `index` counts from 0."""

    index: int
    count: int

    def contains(self, position: int) -> bool:
        """Return whether the item at this position belongs to the shard."""
        return position % self.count == self.index


class Section:
    """The results of one call of the engine, by the position of the item.

    This base class stores nothing. It is used for jobs without a journal.

    Attributes:
        known: Stored results by position.
    """

    known: Mapping[int, Any] = {}

    def add(self, values: Mapping[int, Any]) -> None:
        """Store results, which must be JSON-serialisable, by position."""

    def in_shard(self, position: int) -> bool:
        """Return whether this process computes the item (or batch) at this position."""
        return True

    def save_due(self) -> bool:
        """Return whether enough seconds have passed since the last write to store a large state again."""
        return False


class _StoredSection(Section):
    def __init__(self, journal: Journal, key: str) -> None:
        self._journal, self._key = journal, key
        self.known: dict[int, Any] = journal.sections.setdefault(key, {})

    def add(self, values: Mapping[int, Any]) -> None:
        self._journal.write(self._key, values)
        self.known.update(values)

    def in_shard(self, position: int) -> bool:
        shard = self._journal.shard
        return shard is None or shard.contains(position)

    def save_due(self) -> bool:
        return self._journal.save_due()


class Journal:
    """The journal of one job.

    Args:
        folder: Its folder, which is created at the first write.
        shard: The part of the items that this process computes; None means all items.

    Attributes:
        sections: Stored results by section and position.
        spent: Seconds that earlier attempts and other processes needed for the stored results.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        self.folder, self.shard = folder, shard
        self.sections: dict[str, dict[int, Any]] = {}
        self.spent = 0.0
        self._opened: Counter[str] = Counter()
        self._file: int | None = None
        self._begun = self._synced = self._written = time.monotonic()
        for file in sorted(folder.glob("items-*.jsonl")):
            seconds = 0.0
            for key, pairs, seconds in _read_lines(file):  # noqa: B007 - the value of the last line is used
                self.sections.setdefault(key, {}).update({int(k): value for k, value in pairs})
            self.spent += seconds

    def section(self, name: str, inputs: str) -> Section:
        """Return the section of one call of the engine.

        An identical later call gets another section, because the model may have changed in between.

        Args:
            name: Name of the call.
            inputs: Fingerprint of the inputs of the call.

        Returns:
            The section, which contains the results of earlier attempts.
        """
        key = f"{name}/{inputs}"
        self._opened[key] += 1
        return _StoredSection(self, f"{key}/{self._opened[key]}")

    def write(self, key: str, values: Mapping[int, Any]) -> None:
        """Append results to the file. After this call, they survive a crash of the process.

        Args:
            key: Key of the section.
            values: JSON-serialisable results by position.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The file names sort by time. If several files hold the state of a search, the newest one counts.
            name = f"items-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        seconds = round(time.monotonic() - self._begun, 3)
        text = json.dumps([key, list(values.items()), seconds], separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        while line:
            line = line[os.write(self._file, line) :]
        self._written = time.monotonic()
        if self._written - self._synced > SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = self._written

    def save_due(self) -> bool:
        """Return whether nothing was written in the last `SYNC_SECONDS`."""
        return time.monotonic() - self._written > SYNC_SECONDS

    def close(self) -> None:
        """Close the file. A later write opens a new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_lines(file: Path) -> Iterator[tuple[str, list[tuple[int, Any]], float]]:
    """Yield (section, items, seconds since the start of the process) for each undamaged line of a journal file."""
    for line in file.read_bytes().split(b"\n"):
        check, _, text = line.partition(b" ")
        if check == b"%08x" % zlib.crc32(text) and text:
            key, pairs, seconds = json.loads(text)
            yield key, pairs, seconds


_CURRENT: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def use_journal(journal: Journal) -> Iterator[None]:
    """Make the engine use this journal within a `with` block."""
    token = _CURRENT.set(journal)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        journal.close()


def section(name: str, inputs: Callable[[], str]) -> Section:
    """Return the section of a call in the current job's journal.

    Args:
        name: Name of the call.
        inputs: Function that returns the fingerprint of everything that determines the results, except the model.

    Returns:
        The section. Without a journal, it is a section that stores nothing.
    """
    journal = _CURRENT.get()
    return Section() if journal is None else journal.section(name, inputs())


def is_sharded() -> bool:
    """Return whether this process computes only one shard of a job.

    The process that combines the shards reads from the journal what the shards have computed. So a shard skips all work
    whose results are not written to the journal: they would be lost, and every shard would repeat them.
    """
    journal = _CURRENT.get()
    return journal is not None and journal.shard is not None


def fingerprint(parts: Iterable[Sequence[int] | str], *more: Any) -> str:
    """Return a digest of texts or token ids in their order, and of further values.

    Args:
        parts: Texts or sequences of token ids.
        *more: Values with a stable `repr`.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(repr(more).encode())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else repr(list(part)).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:32]
