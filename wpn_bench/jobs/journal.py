"""What a job has finished so far, item by item, so that one that was killed goes on where it was.

A stage whose model does not change while it works has a journal beside it: the engine asks it what is known already and
tells it of what it finds, batch by batch, so that neither stages nor judges, plug-ins included, need to know of it:

    answers = journal.section("decode", lambda: fingerprint(prompts))
    answers.known                   # what an earlier attempt found: position -> value
    answers.add({4: [17, 2]})       # outlives the process from here on

Each line of a journal is checked by itself: of one that was cut off or damaged only that line is lost. Several processes
may work at one job: each takes its share of the items (`share`), and writes to a file of its own.
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

SYNC_SECONDS = 2.0  # what a power cut may cost; a killed process loses nothing that was added


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `of` parts of a job's items, counted from 0."""

    number: int
    of: int

    def holds(self, position: int) -> bool:
        return position % self.of == self.number


class Section:
    """The items of one call of the engine, by position. This one forgets: what there is without a journal."""

    known: Mapping[int, Any] = {}

    def add(self, found: Mapping[int, Any]) -> None:
        """Keep these values, which JSON must be able to hold."""

    def in_shard(self, position: int) -> bool:
        """Whether this process is to work at the item (or the batch) of this number."""
        return True

    def save_due(self) -> bool:
        """Whether a state that is costly to keep should be kept now."""
        return False


class _StoredSection(Section):
    def __init__(self, journal: Journal, key: str) -> None:
        self._journal, self._key = journal, key
        self.known: dict[int, Any] = journal.found.setdefault(key, {})

    def add(self, found: Mapping[int, Any]) -> None:
        self._journal.write(self._key, found)
        self.known.update(found)

    def in_shard(self, position: int) -> bool:
        share = self._journal.share
        return share is None or share.holds(position)

    def save_due(self) -> bool:
        return self._journal.save_due()


class Journal:
    """The journal of a job in `folder`, which is made when there is something to keep."""

    def __init__(self, folder: Path, share: Shard | None = None) -> None:
        self.folder, self.share = folder, share
        self.found: dict[str, dict[int, Any]] = {}
        self.spent = 0.0  # seconds that earlier attempts, or other processes, took for what is known
        self._opened: Counter[str] = Counter()
        self._file: int | None = None
        self._begun = self._synced = self._written = time.monotonic()
        for file in sorted(folder.glob("items-*.jsonl")):
            seconds = 0.0
            for key, pairs, seconds in _read_lines(file):  # noqa: B007 - the last line's counts
                self.found.setdefault(key, {}).update({int(k): value for k, value in pairs})
            self.spent += seconds

    def section(self, name: str, of: str) -> Section:
        """The section of the call `name` with inputs of this fingerprint. The same call made again is another section, for
        something else may have changed in between."""
        key = f"{name}/{of}"
        self._opened[key] += 1
        return _StoredSection(self, f"{key}/{self._opened[key]}")

    def write(self, key: str, found: Mapping[int, Any]) -> None:
        """Append one line; it is the kernel's when this returns."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # In order of time, for of a search's states the newest counts.
            name = f"items-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        seconds = round(time.monotonic() - self._begun, 3)
        text = json.dumps([key, list(found.items()), seconds], separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        while line:
            line = line[os.write(self._file, line) :]
        self._written = time.monotonic()
        if self._written - self._synced > SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = self._written

    def save_due(self) -> bool:
        """Whether nothing was kept for some seconds."""
        return time.monotonic() - self._written > SYNC_SECONDS

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_lines(file: Path) -> Iterator[tuple[str, list[tuple[int, Any]], float]]:
    """(section, items, seconds since its process began) of the whole lines of a journal's file; one that was cut off or damaged is as if it were not there."""
    for line in file.read_bytes().split(b"\n"):
        check, _, text = line.partition(b" ")
        if check == b"%08x" % zlib.crc32(text) and text:
            key, pairs, seconds = json.loads(text)
            yield key, pairs, seconds


_CURRENT: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def use_journal(journal: Journal) -> Iterator[None]:
    """Within it, the engine tells this journal what it finds."""
    token = _CURRENT.set(journal)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        journal.close()


def section(name: str, of: Callable[[], str]) -> Section:
    """The section for a call in the job at hand; one that forgets where there is no journal. `of` gives the fingerprint of
    all that the call's answers depend on but the model."""
    journal = _CURRENT.get()
    return Section() if journal is None else journal.section(name, of())


def is_sharded() -> bool:
    """Whether this process works at a share of a job. What no section holds is then left to whoever puts the shares
    together: each share would do all of it, for nothing."""
    journal = _CURRENT.get()
    return journal is not None and journal.share is not None


def fingerprint(parts: Iterable[Sequence[int] | str], *more: Any) -> str:
    """32 hexadecimal digits over texts or rows of token ids, in their order, and plain values."""
    digest = hashlib.sha256(repr(more).encode())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else repr(list(part)).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:32]
